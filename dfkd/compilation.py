"""A network through torch.compile, for steps of which all have the same shapes.

no paper. Meant for a GPU, where it is recorded as CUDA graphs too, so that a small network's step is not the launching
of its hundreds of kernels. On a CPU it brings a tenth or nothing (experiments/bench/NOTES.md).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compiled"]


def compiled(module: nn.Module, device: torch.device, name: str) -> Callable[[Tensor], Any]:
    """A function like the module, sharing its weights; it compiles at the first call, which takes up to minutes.

    What it returns is the caller's to keep. ValueError, naming `name`, where torch.compile fails.
    """
    from torch._dynamo.exc import TorchDynamoException  # has no public name; importing it takes a second

    graphs = device.type == "cuda"
    fast = torch.compile(module, mode="reduce-overhead" if graphs else "default", dynamic=False)

    def call(x: Tensor) -> Any:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            out = fast(x)
        except TorchDynamoException as error:
            said = str(error).strip().splitlines()
            raise ValueError(
                f"compile: torch.compile cannot compile the {name} here ({said[0] if said else type(error).__name__}); "
                "leave compile out, or install a C++ compiler"
            ) from error
        # a graph writes its next answer where this one lies
        return out.clone() if graphs and isinstance(out, Tensor) else out

    return call
