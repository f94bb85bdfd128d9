"""A step's models and objective through torch.compile, for steps of which all have the same shapes.

no paper. Meant for a GPU, where it is recorded as CUDA graphs too, so that a small network's step is not the launching
of its hundreds of kernels. On a CPU, where what never changes is folded, it takes a twentieth to a sixth off a step of
large nets, and nothing off one of small nets (experiments/bench/NOTES.md).
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from dfkd.types import contents, tensors_in

__all__ = ["compiled", "compiling", "forget_changed", "room"]

GRAPHS = 64
"""How many a function may have in a process: one for each batch, mode and layout. torch's own limit is 8."""


def compiled(
    function: Callable[..., Any], device: torch.device, name: str, *, last: bool = False, fold: bool = False
) -> Callable[..., Any]:
    """A function like this one (a module's shares its weights); it compiles at the first call: seconds to minutes.

    last: it is called after others in a step, with what they gave, and is to be differentiated with them. A tensor that
    it returns is the caller's to keep, one inside of something else until the next step only. ValueError, naming
    `name`, where torch.compile fails; errors of the function itself are raised as they are. On a GPU a step begins with
    each call but the `last` ones, for all that the process has compiled (torch.compiler.cudagraph_mark_step_begin).

    fold: a module's weights are constants of what a CPU is given where no gradient is asked for, so that BatchNorm is
    folded into the convolutions before it. They must not change; where they may have, `forget_changed` goes first.
    """
    graphs = device.type == "cuda"
    folding = _folding if fold and not graphs else nullcontext
    fast = torch.compile(function, mode="reduce-overhead" if graphs else "default", dynamic=False)

    def call(*given: Any) -> Any:
        if graphs and not last:
            torch.compiler.cudagraph_mark_step_begin()  # gives back the memory of what was recorded before
        with compiling(name), folding():
            out = fast(*given)
        # a graph writes its next answer where this one lies
        return out.clone() if graphs and isinstance(out, Tensor) else out

    return call


@contextmanager
def compiling(name: str) -> Iterator[None]:
    """Inside, what torch.compile cannot do is a ValueError of one line; a gradient's code is made when it is wanted."""
    from torch._dynamo.exc import TorchDynamoException  # has no public name; importing it takes a second

    try:
        yield
    except TorchDynamoException as error:
        said = str(error).strip().splitlines()
        raise ValueError(
            f"compile: torch.compile cannot compile the {name} here ({said[0] if said else type(error).__name__}); "
            "leave compile out, or install a C++ compiler"
        ) from error


_FOLDED = WeakIdKeyDictionary()
"""Digests of the tensors that code was made of."""


def forget_changed(module: nn.Module) -> None:
    """The module is compiled with `fold` next.

    Where a tensor that it holds, saved with it or not, was so before with other values, all that the process has
    compiled is let go of: torch knows a tensor again, not what is in it, in whatever module it is.
    """
    now = [(tensor, _digest(tensor)) for part in module.modules() for tensor in tensors_in(vars(part))]
    if any(_FOLDED.get(tensor, digest) != digest for tensor, digest in now):
        torch.compiler.reset()
        _FOLDED.clear()
    for tensor, digest in now:
        _FOLDED[tensor] = digest


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(contents(tensor), digest_size=16).digest()


def _folding() -> AbstractContextManager[Any]:
    # torch.compile's own option of this name leaves weights what they are, and TORCHINDUCTOR_FREEZING is for a process
    from torch._inductor import config

    inside: AbstractContextManager[Any] = config.patch(freezing=True)
    return inside


@contextmanager
def room() -> Iterator[None]:
    """Inside, one function has room for what a comparison compiles: beyond its limit torch compiles no more."""
    from torch.compiler import config  # importing it takes a second

    before = config.recompile_limit
    config.recompile_limit = max(before, GRAPHS)
    try:
        yield
    finally:
        config.recompile_limit = before
