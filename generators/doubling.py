"""A 3x3 convolution of maps whose side is doubled first, from the maps as they were: 4 products for 9.

no paper. A pixel doubled by its nearest neighbours stands there four times, so it adds the kernel four times to the
four by four pixels around them: that sum is the kernel of one transposed convolution of the small maps.
"""

from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, pad

__all__ = ["DoublingConv"]


class DoublingConv(nn.Conv2d):
    """x (n, before, h, w) -> (n, after, 2 h, 2 w): Upsample(scale_factor=2), then Conv2d(before, after, 3, padding=1).

    Weights are kept, drawn and named as that convolution's.
    """

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        kernel = pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        kernel = kernel[:, :, :-1] + kernel[:, :, 1:]  # one for each of the two rows that a row has become
        kernel = kernel[..., :-1] + kernel[..., 1:]
        return conv_transpose2d(x, kernel.transpose(0, 1), self.bias, stride=2, padding=1)
