"""A 3x3 convolution of maps whose side is doubled first, from the maps as they were: 4 products for 9.

no paper. Each pixel of a map doubled by its nearest neighbours stands there four times, so of the nine weights that
meet it in a 3x3 window some meet the same pixel and may be added beforehand: what is left are four 2x2 convolutions of
the small maps, one for each place in a square of four pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

__all__ = ["DoublingConv"]


class DoublingConv(nn.Conv2d):
    """x (n, before, h, w) -> (n, after, 2 h, 2 w): Upsample(scale_factor=2), then Conv2d(before, after, 3, padding=1).

    Weights are kept, drawn and named as that convolution's.
    """

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        # a 2x2 convolution with a border of 1 has a row and a column more than there are pixels
        places = [
            [
                conv2d(x, columns, self.bias, padding=1)[:, :, down : down + h, right : right + w].permute(0, 2, 3, 1)
                for right, columns in enumerate(_halves(rows, 3))
            ]
            for down, rows in enumerate(_halves(self.weight, 2))
        ]
        lines = [torch.stack(line, dim=3) for line in places]  # each (n, h, w, 2, after)
        return torch.stack(lines, dim=2).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)  # channels last


def _halves(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """3 weights along dim -> 2 for the first and 2 for the second pixel that an old one has become.

    The first one's window ends, and the second one's begins, with two pixels that were one.
    """
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)
