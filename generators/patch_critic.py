"""A critic of patches: it says of every small square of an image, not of the whole, whether it is real.

Fang, Bao, Song, Wang, Xie, Shen, Song: Mosaicking to Distill: Knowledge Distillation from Out-of-Domain Data. 2021.
arXiv:2110.15094. Changed: pixels are the unit, brought to mean 0 and unit scale by the first line of `forward`, where
theirs is given images normalised with the statistics of a data set.
"""

from torch import Tensor, nn

__all__ = ["PatchCritic"]


class PatchCritic(nn.Module):
    """x (n, c, h, w) pixels -> logits (n, h // 4, w // 4), one for each patch of 10x10 pixels, above 0 for real.

    channels: c. width: maps of the first layer, >= 1. low, high: the pixel box.
    """

    def __init__(self, channels: int, width: int = 128, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if min(channels, width) < 1:
            raise ValueError(f"channels, width: expected integers >= 1, found {channels!r} and {width!r}")
        if not low < high:
            raise ValueError(f"low: expected a number below high ({high!r}), found {low!r}")
        self.middle, self.unit = 0.5 * (low + high), 0.25 * (high - low)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body((x - self.middle) / self.unit)
        return logits.squeeze(1)
