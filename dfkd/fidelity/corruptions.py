"""Named corruptions of test images, at five severities.

Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations. 2019.
arXiv:1903.12261. Changed: only corruptions that mean something from 8x8 grey to 224x224 colour, with lengths as parts
of the image's side (at least some pixels for blur), and parameters of this project's own choice: the numbers compare
students here, not with published tables.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate, pad

from dfkd.fidelity.columns import Column
from dfkd.naming import unknown
from dfkd.rng import derive

__all__ = ["CORRUPTIONS", "corrupted", "corrupted_column", "parse_corruption"]

SEVERITIES: Final = (1, 2, 3, 4, 5)
_ROWS: Final = 256  # together, so that large images fit in memory; fixed, so that the random numbers are


def corrupted(x: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """x uint8 (n, c, h, w) -> the same rows corrupted, uint8. Equal arguments give equal bits on one device."""
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ValueError(f"severity: expected an integer from 1 to 5, found {severity!r}")
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise ValueError(f"x: expected uint8 (n, c, h, w), found {x.dtype} {tuple(x.shape)}")
    generator = torch.Generator(device=x.device).manual_seed(derive(seed, "corruption", name, severity))
    apply = CORRUPTIONS[name]
    done = [apply(part.float() / 255.0, severity - 1, generator) for part in x.split(_ROWS)]
    return torch.cat([(part * 255.0).round().clamp(0, 255).to(torch.uint8) for part in done])


def corrupted_column(column: Column, name: str, severity: int, seed: int) -> Column:
    """The column's images corrupted, under the name `noise@3`."""
    x = corrupted(column.x, name, severity, seed)
    return Column(f"{name}@{severity}", x, column.y, column.labelling, "corrupted")


def parse_corruption(text: str) -> tuple[str, int]:
    """`noise@3` -> ("noise", 3); ValueError for an unknown name or severity."""
    name, _, severity = text.partition("@")
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in {str(known) for known in SEVERITIES}:
        raise ValueError(f"corruption: expected {name}@1 to {name}@5, found {text!r}")
    return name, int(severity)


# x (n, c, h, w) in [0, 1], level 0 ... 4; what leaves the box is cut off afterwards


def _noise(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Independent normal noise; the numbers are its standard deviation."""
    scale = (0.04, 0.08, 0.12, 0.18, 0.26)[level]
    return x + scale * torch.randn(x.shape, generator=generator, device=x.device)


def _blur(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """A Gaussian blur; its standard deviation is a part of the shorter side, but at least so many pixels."""
    del generator
    c, h, w = x.shape[1:]
    sigma = max((0.4, 0.5, 0.6, 0.8, 1.0)[level], min(h, w) * (0.005, 0.010, 0.014, 0.018, 0.027)[level])
    reach = max(1, round(3.0 * sigma))
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(c, 1)  # (c, 2 reach + 1)
    x = conv2d(pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=c)
    return conv2d(pad(x, (0, 0, reach, reach), mode="replicate"), kernel[:, None, :, None], groups=c)


def _contrast(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Every image drawn towards its own mean; the numbers are what is left of the contrast."""
    del generator
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[level] * (x - mean)


def _brightness(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """All pixels raised by so much."""
    del generator
    return x + (0.05, 0.1, 0.15, 0.2, 0.3)[level]


def _pixelate(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Averaged over fewer, larger pixels; the numbers are the side's share of the pixels that is left."""
    del generator
    h, w = x.shape[2:]
    share = (0.85, 0.7, 0.55, 0.4, 0.3)[level]
    small = adaptive_avg_pool2d(x, (max(1, round(share * h)), max(1, round(share * w))))
    return interpolate(small, size=(h, w), mode="nearest")


def _occlude(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """A grey rectangle somewhere in every image; the numbers are its sides' shares of the image's."""
    n, _, h, w = x.shape
    share = (0.2, 0.3, 0.4, 0.5, 0.6)[level]
    covered = torch.ones(n, 1, h, w, dtype=torch.bool, device=x.device)
    for axis, side in ((2, h), (3, w)):
        length = max(1, round(share * side))
        start = torch.randint(side - length + 1, (n, 1, 1, 1), generator=generator, device=x.device)
        at = torch.arange(side, device=x.device).view([-1 if d == axis else 1 for d in range(4)])
        covered = covered & (at >= start) & (at < start + length)
    return torch.where(covered, 0.5, x)


CORRUPTIONS: Final[Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixelate": _pixelate,
    "occlude": _occlude,
}
