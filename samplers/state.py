"""What every sampler's state can do: be saved and be put back, whatever it is made of."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dfkd.rng import Stream

__all__ = ["State", "Stream", "adopt"]


class State:
    """Named parts: streams, networks, optimisers, states, lists of them, tensors, numbers, None. All are saved.

    Set everything in `init`; a part may change between None, a tensor and a tensor of another size, but not its kind
    otherwise. What needs no saving (settings, the problem) does not belong here.
    """

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:  # for the type checker: parts are named at run time
        raise AttributeError(f"state has no part {name!r}")

    if TYPE_CHECKING:

        def __setattr__(self, name: str, part: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {name: _save(part) for name, part in self.__dict__.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != set(self.__dict__):
            raise ValueError(f"state: expected the parts {sorted(self.__dict__)}, found {sorted(state)}")
        for name, saved in state.items():
            self.__dict__[name] = _load(self.__dict__[name], saved)


def _save(part: Any) -> Any:
    if isinstance(part, State):
        return part.state_dict()
    if hasattr(part, "state_dict"):
        return _snapshot(part.state_dict())  # networks and optimisers hand out the tensors that they go on changing
    if isinstance(part, Tensor):
        return _snapshot(part)
    if isinstance(part, list):
        return [_save(entry) for entry in part]
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    raise TypeError(f"state: cannot save a {type(part).__name__}")


def _snapshot(saved: Any) -> Any:
    if isinstance(saved, Tensor):
        return saved.detach().clone()
    if isinstance(saved, dict):
        return {key: _snapshot(value) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        return type(saved)(_snapshot(value) for value in saved)
    return saved


def _load(part: Any, saved: Any) -> Any:
    if hasattr(part, "load_state_dict"):
        part.load_state_dict(saved)
        return part
    if isinstance(saved, Tensor):
        device = part.device if isinstance(part, Tensor) else saved.device
        return saved.to(device=device, copy=True)
    if isinstance(saved, list):
        if not isinstance(part, list) or len(part) != len(saved):
            raise ValueError(f"state: expected a list of {len(saved)} parts")
        return [_load(a, b) for a, b in zip(part, saved, strict=True)]
    return saved


def adopt(new: Any, old: Any) -> Any:
    """`new`, a state from `init`, with what `old` has learnt; only what advances (a stream) stays where `new` has it.

    Networks, optimisers and tensors are shared, not copied: for draws that nothing is learnt from.
    """
    if isinstance(old, State):
        for name, part in old.__dict__.items():
            new.__dict__[name] = adopt(new.__dict__[name], part)
        return new
    if isinstance(old, list):
        return [adopt(a, b) for a, b in zip(new, old, strict=True)] if len(new) == len(old) else list(old)
    return new if hasattr(old, "advance") else old
