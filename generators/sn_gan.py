"""A residual generator and a spectrally normalised critic, for images of 8 to 64 pixels, with classes as an option.

Miyato, Kataoka, Koyama, Yoshida: Spectral Normalization for Generative Adversarial Networks. 2018. arXiv:1802.05957, at
the sizes of Stanton, Izmailov, Kirichenko, Alemi, Wilson: Does Knowledge Distillation Really Work? 2021.
arXiv:2106.05945. Classes as in Miyato, Koyama: cGANs with Projection Discriminator. 2018. arXiv:1802.05637. Changed:
the number of blocks follows the image, which both read and give as pixels of the box.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["SNCritic", "SNGenerator"]

LEAST = 4
"""Sides that a generator begins with are this, or the first odd number on the way there: 4 for 32 and 64, 7 for 28."""

POOLED_TO = 8
"""A critic halves its maps down to sides of at most this."""


class SNGenerator(nn.Module):
    """z (n, latent), for a generator with classes also y (n,) int64 -> pixels (n, c, h, w) in [low, high].

    shape: (c, h, w), h and w even, at least 8. latent: length of z, >= 1. width: channels of all maps (published: 256).
    classes: how many y can name, >= 1; None for a generator without. low, high: the pixel box.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent: int = 128,
        width: int = 256,
        classes: int | None = None,
        *,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        _check(shape, classes, low, high, latent=latent, width=width)
        channels, height, w = shape
        doublings = 0
        while height % 2 == w % 2 == 0 and min(height, w) > LEAST:
            height, w, doublings = height // 2, w // 2, doublings + 1
        self.latent, self.classes, self.low, self.high = latent, classes, low, high
        self.start = (width, height, w)
        self.stem = nn.Linear(latent, width * height * w)
        self.blocks = nn.ModuleList(_Doubling(width, classes) for _ in range(doublings))
        self.norm = _Norm(width, classes)
        self.head = nn.Conv2d(width, channels, 3, padding=1)
        _initialise(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        _check_classes(self.classes, y)
        maps = self.stem(z).unflatten(1, self.start).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            maps = block(maps, y)
        shade = 0.5 * (1.0 + torch.tanh(self.head(self.norm(maps, y).relu()).contiguous()))
        # rounding may carry low + span past high by one unit in the last place
        return (self.low + (self.high - self.low) * shade).clamp(self.low, self.high)


class SNCritic(nn.Module):
    """pixels (n, c, h, w), for a critic with classes also y (n,) int64 -> how real they look (n,), without bounds.

    shape, classes, low, high: as for the generator. width: channels of all maps (published: 128). In training each call
    is one power iteration on every layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 128,
        classes: int | None = None,
        *,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        _check(shape, classes, low, high, width=width)
        channels, *sides = shape
        halvings = 0
        while min(sides) > POOLED_TO:
            sides, halvings = [side // 2 for side in sides], halvings + 1
        pooled = [True] * halvings + [False] * max(2, 4 - halvings)  # two of four where images have 32 pixels
        self.middle, self.unit, self.classes = 0.5 * (low + high), 0.5 * (high - low), classes
        blocks = [
            _Judging(width if place else channels, width, pool, first=place == 0) for place, pool in enumerate(pooled)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.score = nn.Linear(width, 1)
        self.likeness = None if classes is None else nn.Embedding(classes, width)
        _initialise(self)
        for part in list(self.modules()):
            if isinstance(part, (nn.Conv2d, nn.Linear, nn.Embedding)):
                spectral_norm(part)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        _check_classes(self.classes, y)
        features = self.blocks((x - self.middle) / self.unit).relu().mean(dim=(2, 3))
        score: Tensor = self.score(features).squeeze(1)
        if self.likeness is not None:
            score = score + (self.likeness(y) * features).sum(dim=1)
        return score


# -- blocks ------------------------------------------------------------------------------------------------------------


class _Norm(nn.Module):
    """BatchNorm, its scale and shift one for all rows or one for each class."""

    def __init__(self, width: int, classes: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=classes is None)
        self.affine = None if classes is None else nn.Embedding(classes, 2 * width)
        if self.affine is not None:
            with torch.no_grad():
                self.affine.weight[:, :width], self.affine.weight[:, width:] = 1.0, 0.0

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        normal: Tensor = self.norm(x)
        if self.affine is None:
            return normal
        scale, shift = self.affine(y)[:, :, None, None].chunk(2, dim=1)
        both: Tensor = scale * normal + shift
        return both


class _Doubling(nn.Module):
    def __init__(self, width: int, classes: int | None) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_Norm(width, classes) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        maps = self.convolutions[0](_doubled(self.norms[0](x, y).relu()))
        maps = self.convolutions[1](self.norms[1](maps, y).relu())
        both: Tensor = _doubled(x) + maps
        return both


class _Judging(nn.Module):
    """first: it is given pixels, which no ReLU may cut."""

    def __init__(self, before: int, width: int, pool: bool, first: bool) -> None:
        super().__init__()
        self.first, self.pool = first, pool
        widths = (before, width)
        self.convolutions = nn.ModuleList(nn.Conv2d(given, width, 3, padding=1) for given in widths)
        self.shortcut = nn.Conv2d(before, width, 1) if first or pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.convolutions[0](x if self.first else x.relu())
        maps = self.convolutions[1](maps.relu())
        if self.pool:
            maps, x = avg_pool2d(maps, 2), avg_pool2d(x, 2)
        both: Tensor = maps + self.shortcut(x)
        return both


def _doubled(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear")


def _initialise(network: nn.Module) -> None:
    """Uniform after Glorot and Bengio, wider for 1x1 convolutions; biases 0."""
    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            wide = isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)
            nn.init.xavier_uniform_(part.weight, math.sqrt(2.0) if wide else 1.0)
            assert part.bias is not None
            nn.init.zeros_(part.bias)


# -- what is refused ---------------------------------------------------------------------------------------------------


def _check(shape: tuple[int, int, int], classes: int | None, low: float, high: float, **least_one: int) -> None:
    channels, *sides = shape
    if channels < 1 or min(sides) < 8 or any(side % 2 for side in sides):
        raise ValueError(f"shape: expected (channels, height, width) with even sides of 8 or more, found {shape!r}")
    for name, value in {**least_one, **({} if classes is None else {"classes": classes})}.items():
        if value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")
    if not low < high:
        raise ValueError(f"low: expected a number below high ({high!r}), found {low!r}")


def _check_classes(classes: int | None, y: Tensor | None) -> None:
    if classes is None and y is not None:
        raise ValueError("y: expected none, as this network was made without classes")
    if classes is not None and y is None:
        raise ValueError(f"y: expected one of {classes} classes for each row, as this network was made with classes")
