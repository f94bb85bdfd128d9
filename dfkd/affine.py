"""BatchNorm in evaluation mode as what it is: one multiplication and one addition for each number.

no paper. torch's own takes two to three times as long on a CPU, and its gradient five times, as it goes through all
numbers once more for gradients of weights that are frozen.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["affine"]


@contextmanager
def affine(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these layers are quicker. Their weights and what they have stored must not change meanwhile.

    Of `layers`, those are meant that are torch's own BatchNorm with stored statistics, and that no hook stands before;
    others, and these while in training mode or given maps of another precision, do what they always did. No gradient
    reaches their weights. Answers differ by rounding.
    """
    changed = [
        part
        for part in layers
        if isinstance(part, _BatchNorm)
        and type(part).forward is _BatchNorm.forward
        and "forward" not in vars(part)  # somebody's own
        and not part._forward_pre_hooks  # they may set its weights at each call, as torch's pruning does
        and part.running_mean is not None
    ]
    for part in changed:
        vars(part)["forward"] = _multiplied_and_added(part)
    try:
        yield
    finally:
        for part in changed:
            del vars(part)["forward"]


def _multiplied_and_added(part: _BatchNorm) -> Callable[[Tensor], Tensor]:
    running_mean, running_var, plain = part.running_mean, part.running_var, part.forward
    assert running_mean is not None
    assert running_var is not None  # only layers that store them are asked
    with torch.no_grad():
        scale = (running_var + part.eps).rsqrt()
        scale = scale if part.weight is None else scale * part.weight
        shift = -running_mean * scale
        shift = shift if part.bias is None else shift + part.bias

    def forward(x: Tensor) -> Tensor:
        if part.training or x.dtype != scale.dtype:  # rounded maps would come out in full
            return plain(x)
        channels = (-1, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.view(channels), x, scale.view(channels))

    return forward
