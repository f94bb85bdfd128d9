"""A step's models and objective through torch.compile, for steps of which all have the same shapes.

no paper. Meant for a GPU, where it is recorded as CUDA graphs too, so that a small network's step is not the launching
of its hundreds of kernels. On a CPU it brings a tenth or nothing (experiments/bench/NOTES.md).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["compiled", "compiling", "room"]

GRAPHS = 64
"""How many a function may have in a process: one for each batch, mode and layout. torch's own limit is 8."""


def compiled(
    function: Callable[..., Any], device: torch.device, name: str, *, last: bool = False
) -> Callable[..., Any]:
    """A function like this one (a module's shares its weights); it compiles at the first call: seconds to minutes.

    last: it is called after others in a step, with what they gave, and is to be differentiated with them. A tensor that
    it returns is the caller's to keep, one inside of something else until the next step only. ValueError, naming
    `name`, where torch.compile fails; errors of the function itself are raised as they are. On a GPU a step begins with
    each call but the `last` ones, for all that the process has compiled (torch.compiler.cudagraph_mark_step_begin).
    """
    graphs = device.type == "cuda"
    fast = torch.compile(function, mode="reduce-overhead" if graphs else "default", dynamic=False)

    def call(*given: Any) -> Any:
        if graphs and not last:
            torch.compiler.cudagraph_mark_step_begin()  # gives back the memory of what was recorded before
        with compiling(name):
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
