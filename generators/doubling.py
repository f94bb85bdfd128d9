"""A 3x3 convolution of maps whose side is doubled first, from the maps as they were: 4 products for 9.

no paper. A pixel doubled by its nearest neighbours stands there four times, so it adds the kernel four times to the
four by four pixels around them: that sum is the kernel of one transposed convolution of the small maps.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, pad

__all__ = ["DoublingConv"]


class DoublingConv(nn.Conv2d):
    """x (n, before, h, w) -> (n, after, 2 h, 2 w): Upsample(scale_factor=2), then Conv2d(before, after, 3, padding=1).

    Weights are kept, drawn and named as that convolution's.
    """

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 3, padding=1, bias=bias)

        self._prepared: tuple[Tensor, Tensor] | None = None  # weights as they were, and their kernel

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose2d(x, self._kernel(), self.bias, stride=2, padding=1)

    def _kernel(self) -> Tensor:
        """(before, after, 4, 4). On a CPU, where no gradient is wanted, it is kept until the weights are others.

        Their values are compared, as a fused optimiser changes them without counting that. On a GPU that would wait.
        """
        weight = self.weight
        if weight.device.type != "cpu" or (weight.requires_grad and torch.is_grad_enabled()):
            return _added(weight).transpose(0, 1)
        if self._prepared is None or not torch.equal(self._prepared[0], weight):
            weight = weight.detach()
            self._prepared = weight.clone(), _added(weight).transpose(0, 1).contiguous()
        return self._prepared[1]


def _added(weight: Tensor) -> Tensor:
    """(after, before, 3, 3) -> (after, before, 4, 4)."""
    kernel = pad(weight.flip(2, 3), (1, 1, 1, 1))
    kernel = kernel[:, :, :-1] + kernel[:, :, 1:]  # one for each of the two rows that a row has become
    return kernel[..., :-1] + kernel[..., 1:]
