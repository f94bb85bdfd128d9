"""A run's state on disk: written whole or not at all, read without running anyone's code."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from dfkd.files import replacing

__all__ = ["load", "save"]

_GPUS = 64  # more than a machine has
_FIELDS = {"identity", "world", "ranks", "versions", "threads", "device"}


def save(path: Path, state: dict[str, Any], identity: str, device: torch.device | str = "cpu", rank: int = 0) -> None:
    """Tensors, numbers, strings and containers of them. Until the new file is whole the old one stays."""
    content = {
        "identity": identity,
        "world": 1,
        "ranks": {rank: state},
        "versions": {"torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
        "device": torch.device(device).type,
    }
    with replacing(path, "checkpoint") as draft, draft.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # its writer's own words for a write that failed, as on a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path, identity: str, device: torch.device | str = "cpu", rank: int = 0) -> dict[str, Any]:
    """The state that `save` wrote for this run; a warning where the same steps may round differently now."""
    # an optimiser's step counter may be on the CPU beside tensors on a GPU: what was there stays there, and what was on
    # a GPU, of whatever number, goes to where the run is now
    where = {f"cuda:{number}": str(device) for number in range(_GPUS)}
    try:
        content = torch.load(path, map_location=where, weights_only=True)
    except OSError as error:
        if error.filename is None:  # the file was opened; what it says of itself leads nowhere
            raise ValueError(f"checkpoint: {path} is cut short or damaged; delete it to start again") from error
        raise ValueError(f"checkpoint: cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error):
            reason = "holds a pickled object, which could run code on loading, where numbers and names are expected"
        else:
            reason = "is not a checkpoint"
        raise ValueError(f"checkpoint: {path} {reason}; delete it to start again") from error
    except Exception as error:  # bytes that are no checkpoint make the reader stumble in any way
        raise ValueError(f"checkpoint: {path} is cut short or damaged; delete it to start again") from error
    if not isinstance(content, dict) or not set(content) >= _FIELDS:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of a run; expected the parts {sorted(_FIELDS)}")
    if content["identity"] != identity:
        raise ValueError(
            f"checkpoint: {path} belongs to another run; expected {identity!r}, found {content['identity']!r}"
        )
    if content["world"] != 1 or rank not in content["ranks"]:
        raise ValueError(f"checkpoint: {path} was written by {content['world']} processes, expected 1")
    _compare(content, device)
    state: dict[str, Any] = content["ranks"][rank]
    return state


def _compare(content: dict[str, Any], device: torch.device | str) -> None:
    now = {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "device": torch.device(device).type,
    }
    saved = {"threads": content["threads"], "torch": content["versions"].get("torch"), "device": content["device"]}
    for what, value in now.items():
        if saved[what] != value:
            message = (
                f"checkpoint: written with {what} {saved[what]}, read with {value}; the rest may round differently"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)
