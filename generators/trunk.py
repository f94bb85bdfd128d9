"""The upsampling trunk most data-free methods generate with: a latent vector to an image, doubling its side twice.

Radford, Metz, Chintala: Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks.
2015. arXiv:1511.06434. Changed: nearest-neighbour upsampling before 3x3 convolutions instead of transposed ones, two
doublings for any image whose sides are multiples of four, and a choice of heads, all read as pixels of the box.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from .doubling import DoublingConv

__all__ = ["Head", "Trunk", "Width"]

Width = Literal["small", "large"]
Head = Literal["sigmoid", "tanh", "tanh_batchnorm", "batchnorm"]

STEM = {"small": 128, "large": 256}
"""Channels of the quarter-size map that the latent vector is mapped to."""


class Trunk(nn.Module):
    """z (n, latent) -> pixels (n, c, h, w) in [low, high].

    shape: (c, h, w), h and w multiples of 4, at least 8. latent: length of z, >= 1. width: `small` (128 channels at
    quarter size; 2.33 M parameters for 32x32 colour images at latent 256) or `large` (256; 4.58 M). low, high: the
    pixel box. batchnorm_eps: what BatchNorm adds to the variance after the two inner convolutions, > 0; the other
    BatchNorm layers keep torch's 1e-5. head: `sigmoid` and `tanh` fill the box; `tanh_batchnorm` (after tanh, a
    BatchNorm without affine parameters) and `batchnorm` (one with them, no tanh) are read as normalised by mean and
    std, in fractions of the box, std > 0, and clipped to it: what leaves it is black or white to all who judge the
    image, or a generator would look for disagreement out where no student is ever trained. biases: of the two inner
    convolutions. spectral_norm: whether the three convolutions are divided by their largest singular value.
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
        head: Head = "sigmoid",
        mean: float = 0.5,
        std: float = 0.25,
        biases: bool = False,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width_px = shape
        if min(height, width_px) < 8 or height % 4 or width_px % 4 or channels < 1:
            raise ValueError(f"shape: expected (channels, height, width) with sides 8, 12, 16, ..., found {shape!r}")
        if latent < 1:
            raise ValueError(f"latent: expected an integer >= 1, found {latent!r}")
        if width not in STEM:
            raise ValueError(f"width: expected one of {', '.join(get_args(Width))}, found {width!r}")
        if head not in get_args(Head):
            raise ValueError(f"head: expected one of {', '.join(get_args(Head))}, found {head!r}")
        if not low < high:
            raise ValueError(f"low: expected a number below high ({high!r}), found {low!r}")
        if not batchnorm_eps > 0.0:
            raise ValueError(f"batchnorm_eps: expected a number > 0, found {batchnorm_eps!r}")
        if not std > 0.0:
            raise ValueError(f"std: expected a number > 0, found {std!r}")
        self.latent, self.low, self.high, self.head_kind = latent, low, high, head
        self.mean, self.std = low + mean * (high - low), std * (high - low)
        self.start = (STEM[width], height // 4, width_px // 4)
        self.stem = nn.Linear(latent, STEM[width] * (height // 4) * (width_px // 4))
        self.body = nn.Sequential(
            nn.BatchNorm2d(STEM[width]),
            nn.Identity(),  # so that the layers, and their weights in files, keep their numbers
            DoublingConv(STEM[width], 128, bias=biases),
            nn.BatchNorm2d(128, eps=batchnorm_eps),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Identity(),
            DoublingConv(128, 64, bias=biases),
            nn.BatchNorm2d(64, eps=batchnorm_eps),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.head = nn.Conv2d(64, channels, 3, padding=1)
        self.norm = (
            nn.BatchNorm2d(channels, affine=head == "batchnorm") if head.endswith("batchnorm") else nn.Identity()
        )
        if spectral_norm:
            for convolution in (self.body[2], self.body[6], self.head):
                normalised(convolution)

    def forward(self, z: Tensor) -> Tensor:
        return self.pixels(self.head(self.body(self.planted(z))))

    def planted(self, z: Tensor) -> Tensor:
        """The quarter-size maps of z, channels last: what follows is quicker so."""
        maps: Tensor = self.stem(z).unflatten(1, self.start)
        return maps.contiguous(memory_format=torch.channels_last)

    def pixels(self, out: Tensor) -> Tensor:
        """What the last convolution gives, as pixels."""
        out = out.contiguous()  # elsewhere images are channels first
        low, high = self.low, self.high
        if self.head_kind == "sigmoid":
            x = low + (high - low) * torch.sigmoid(out)
        elif self.head_kind == "tanh":
            x = low + 0.5 * (high - low) * (1.0 + torch.tanh(out))
        else:
            x = self.mean + self.std * self.norm(torch.tanh(out) if self.head_kind == "tanh_batchnorm" else out)
        return x.clamp(low, high)  # rounding alone may carry low + span past high
