"""A generator of transposed convolutions for larger images: a latent vector to an image, doubling its side four times.

Radford, Metz, Chintala: Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks.
2015. arXiv:1511.06434. Changed: LeakyReLU for ReLU, a 3x3 convolution after the last doubling, tanh scaled to the box.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Dcgan"]

WIDTHS = (512, 256, 128, 64, 64)
"""Channels from a sixteenth of the size to all of it."""


class Dcgan(nn.Module):
    """z (n, latent) -> pixels (n, c, h, w) in [low, high].

    shape: (c, h, w), h and w multiples of 16, at least 32. latent: length of z, >= 1. low, high: the pixel box. Weights
    start at N(0, 0.02^2), those of BatchNorm at N(1, 0.02^2), biases at 0.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int = 256, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 32 or height % 16 or width % 16 or channels < 1:
            raise ValueError(f"shape: expected (channels, height, width) with sides 32, 48, 64, ..., found {shape!r}")
        if latent < 1:
            raise ValueError(f"latent: expected an integer >= 1, found {latent!r}")
        if not low < high:
            raise ValueError(f"low: expected a number below high ({high!r}), found {low!r}")
        self.latent, self.low, self.high = latent, low, high
        self.start = (WIDTHS[0], height // 16, width // 16)
        self.stem = nn.Linear(latent, WIDTHS[0] * (height // 16) * (width // 16))
        layers: list[nn.Module] = [nn.BatchNorm2d(WIDTHS[0])]
        for wide, narrow in pairwise(WIDTHS):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(WIDTHS[-1], channels, 3, padding=1)
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
                nn.init.normal_(part.weight, 1.0 if isinstance(part, nn.BatchNorm2d) else 0.0, 0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, z: Tensor) -> Tensor:
        # channels last inside, which is quicker, and first outside
        maps = self.stem(z).unflatten(1, self.start).contiguous(memory_format=torch.channels_last)
        shade = 0.5 * (1.0 + torch.tanh(self.head(self.body(maps)).contiguous()))
        # rounding may carry low + span past high by one unit in the last place
        return (self.low + (self.high - self.low) * shade).clamp(self.low, self.high)
