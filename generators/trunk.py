"""The upsampling trunk most data-free methods generate with: a latent vector to an image, doubling its side twice.

Radford, Metz, Chintala: Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks.
2015. arXiv:1511.06434. Changed: nearest-neighbour upsampling before 3x3 convolutions instead of transposed ones, two
doublings for any image whose sides are multiples of four, a sigmoid scaled to the pixel box.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

__all__ = ["Trunk", "Width"]

Width = Literal["small", "large"]

STEM = {"small": 128, "large": 256}
"""Channels of the quarter-size map that the latent vector is mapped to."""


class Trunk(nn.Module):
    """z (n, latent) -> pixels (n, c, h, w) in [low, high].

    shape: (c, h, w), h and w multiples of 4, at least 8. latent: length of z, >= 1. width: `small` (128 channels at
    quarter size; 2.33 M parameters for 32x32 colour images at latent 256) or `large` (256; 4.58 M). low, high: the
    pixel box. batchnorm_eps: what BatchNorm adds to the variance, > 0.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent: int = 256,
        width: Width = "large",
        *,
        low: float = 0.0,
        high: float = 1.0,
        batchnorm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        channels, height, width_px = shape
        if min(height, width_px) < 8 or height % 4 or width_px % 4 or channels < 1:
            raise ValueError(f"shape: expected (channels, height, width) with sides 8, 12, 16, ..., found {shape!r}")
        if latent < 1:
            raise ValueError(f"latent: expected an integer >= 1, found {latent!r}")
        if width not in STEM:
            raise ValueError(f"width: expected one of {', '.join(get_args(Width))}, found {width!r}")
        if not low < high:
            raise ValueError(f"low: expected a number below high ({high!r}), found {low!r}")
        if not batchnorm_eps > 0.0:
            raise ValueError(f"batchnorm_eps: expected a number > 0, found {batchnorm_eps!r}")
        self.latent, self.low, self.high = latent, low, high
        self.start = (STEM[width], height // 4, width_px // 4)
        self.stem = nn.Linear(latent, STEM[width] * (height // 4) * (width_px // 4))
        self.body = nn.Sequential(
            nn.BatchNorm2d(STEM[width], eps=batchnorm_eps),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(STEM[width], 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128, eps=batchnorm_eps),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64, eps=batchnorm_eps),
            nn.LeakyReLU(0.2),
        )
        self.head = nn.Conv2d(64, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        shade = torch.sigmoid(self.head(self.body(self.stem(z).unflatten(1, self.start))))
        # rounding may carry low + span past high by one unit in the last place
        return (self.low + (self.high - self.low) * shade).clamp(self.low, self.high)
