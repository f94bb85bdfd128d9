"""A variational autoencoder of images: what a generator made once comes back from a latent vector drawn anew.

Binici, Aggarwal, Pham, Leman, Mitra: Robust and Resource-Efficient Data-Free Knowledge Distillation by Generative
Pseudo Replay. 2022. arXiv:2201.03019; Kingma, Welling: Auto-Encoding Variational Bayes. 2013. arXiv:1312.6114. Changed:
pixels are the unit, read with mean 0 and a quarter of the box as one, and any image the trunk can make is taken.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from .trunk import Trunk

__all__ = ["VAE", "Encoder", "uniform_kernels"]

KERNELS = 0.08


@torch.no_grad()
def uniform_kernels(module: nn.Module, size: float = KERNELS) -> None:
    """New convolutions and linear layers with weights U(-size, size) and biases 0.

    torch draws them U(-r, r), r the inverse root of the inputs of an output, so they are stretched rather than drawn
    again: what a spectral norm has found out about their direction stays true.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            for name, parameter in part.named_parameters():
                if name == "bias":
                    parameter.zero_()
                else:
                    parameter.mul_(size * parameter[0].numel() ** 0.5)


class Encoder(nn.Module):
    """x (n, c, h, w) pixels -> mean and log-variance of the latent, (n, latent) each. Sides of at least 8 pixels."""

    def __init__(
        self, shape: tuple[int, int, int], latent: int, *, low: float, high: float, batchnorm_eps: float = 0.8
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.middle, self.unit = 0.5 * (low + high), 0.25 * (high - low)
        self.before = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.BatchNorm2d(64, eps=batchnorm_eps),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.BatchNorm2d(128, eps=batchnorm_eps),
            nn.LeakyReLU(0.2),
        )
        self.after = nn.Sequential(nn.Conv2d(128, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128))
        flat = 128 * _eighth(height) * _eighth(width)
        self.mean, self.log_var = nn.Linear(flat, latent), nn.Linear(flat, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # every column of every channel to length 1, as theirs are
        columns = normalize((x - self.middle) / self.unit, dim=2)
        maps = self.after(interpolate(self.before(columns), scale_factor=0.5))
        flat = interpolate(maps, scale_factor=0.5).flatten(1)
        return self.mean(flat), self.log_var(flat)


def _eighth(side: int) -> int:
    """What is left of a side after halving it by nearest neighbours, by a stride of 2, and by nearest neighbours."""
    return ((side // 2 + 1) // 2) // 2


class VAE(nn.Module):
    """Encoder and decoder; the decoder is a small trunk.

    shape: (c, h, w) as for Trunk. latent: >= 1. low, high: the pixel box. batchnorm_eps: of the inner BatchNorms, > 0.
    mean, std: of the images recalled, in fractions of the box, as for Trunk.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent: int,
        *,
        low: float,
        high: float,
        batchnorm_eps: float = 0.8,
        mean: float = 0.5,
        std: float = 0.25,
    ) -> None:
        super().__init__()
        self.decoder = Trunk(
            shape,
            latent,
            "small",
            low=low,
            high=high,
            batchnorm_eps=batchnorm_eps,
            head="tanh_batchnorm",
            mean=mean,
            std=std,
            biases=True,
        )
        self.encoder = Encoder(shape, latent, low=low, high=high, batchnorm_eps=batchnorm_eps)
        uniform_kernels(self)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, c, h, w), noise (n, latent) N(0, 1) -> x again, and KL(q || N(0, 1)) of each row, (n,)."""
        mean, log_var = self.encoder(x)
        again: Tensor = self.decoder(mean + noise * torch.exp(0.5 * log_var))
        return again, 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=1)
