"""A BatchNorm network of three 3x3 convolutions, small enough for 8x8 digits on one CPU thread.

no paper. Mean over positions in front of the classifier, so any image size of 4 or more is taken.
"""

import torch
from torch import Tensor, nn

from dfkd.types import InputSpec

from .norm import norm2d

__all__ = ["DigitsCNN", "digits_cnn"]


class DigitsCNN(nn.Module):
    """channels: maps after each of the three convolutions; the second halves the image. norm: of NORMS."""

    def __init__(self, spec: InputSpec, channels: tuple[int, int, int], norm: str = "batch") -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv2d(spec.channels, first, 3, padding=1, bias=False)
        self.bn1 = norm2d(norm, first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.bn2 = norm2d(norm, second)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1, bias=False)
        self.bn3 = norm2d(norm, third)
        self.linear = nn.Linear(third, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)))
        x = torch.relu_(self.bn3(self.conv3(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def digits_cnn(spec: InputSpec, *, width: int = 16, norm: str = "batch") -> DigitsCNN:
    """width: maps after the first convolution, >= 1; twice as many after the others. norm: batch or group (of one)."""
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width: expected an integer >= 1, found {width!r}")
    if min(spec.height, spec.width) < 4:
        raise ValueError(f"digits_cnn: expected images of at least 4x4, found {spec.height}x{spec.width}")
    return DigitsCNN(spec, (width, 2 * width, 2 * width), norm)
