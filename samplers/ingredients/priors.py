"""Terms on the pixels alone: neighbours alike, values near the middle of the box. All in units of the box's span."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from dfkd.problem import Problem

from .views import Views

__all__ = ["PixelNorm", "Smoothness", "TotalVariation", "Variation", "row_variation"]

Variation = Literal["l1", "l2"]


def _differences(x: Tensor) -> list[Tensor]:
    """Neighbours to the right, below, and on both diagonals; a side of one pixel has none."""
    shifts = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return [shift for shift in shifts if shift.numel()]


def row_variation(x: Tensor, span: float) -> Tensor:
    """(n,): the mean absolute difference of a row's neighbours, summed over the four directions; its mean is `l1`."""
    total = x.new_zeros(len(x))
    for shift in _differences(x / span):
        total = total + shift.abs().mean(dim=(1, 2, 3))
    return total


@dataclass(frozen=True)
class TotalVariation:
    """How much neighbouring pixels differ, summed over the four directions.

    norm: `l1`, the mean absolute difference, or `l2`, the root of the rows' mean squared length.
    """

    norm: Variation = "l1"
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.norm not in get_args(Variation):
            raise ValueError(f"norm: expected one of {', '.join(get_args(Variation))}, found {self.norm!r}")

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        if self.norm == "l1":
            return row_variation(views.x, views.spec.span).mean()
        total = views.x.new_zeros(())
        for shift in _differences(views.x / views.spec.span):
            # vector_norm has gradient 0 at 0, where the root of a sum of squares has none
            total = total + torch.linalg.vector_norm(shift) / shift.shape[0] ** 0.5
        return total


@dataclass(frozen=True)
class PixelNorm:
    """The mean over rows of the Euclidean distance from the middle of the box."""

    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        offset = (views.x - views.spec.middle) / views.spec.span
        lengths: Tensor = torch.linalg.vector_norm(offset, dim=(1, 2, 3))
        return lengths.mean()


@dataclass(frozen=True)
class Smoothness:
    """The mean squared difference between an image and its blur by a 5x5 Gaussian, edges reflected.

    sigma: of the Gaussian in pixels, > 0; the published 1 is in an exponent without its 2 in the usual place, hence
    the root of 2.
    """

    sigma: float = math.sqrt(2.0)
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a number > 0, found {self.sigma!r}")

    def init(self, problem: Problem, seed: int) -> None:
        del seed
        if min(problem.spec.height, problem.spec.width) < 3:
            raise ValueError(f"smoothness: expected images of at least 3x3 pixels, found {problem.spec.shape}")

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        x = views.x / views.spec.span
        at = torch.arange(-2, 3, device=x.device, dtype=x.dtype)
        line = torch.exp(-0.5 * (at / self.sigma) ** 2)
        line = line / line.sum()
        planes = pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="reflect")
        blurred = conv2d(conv2d(planes, line.view(1, 1, 5, 1)), line.view(1, 1, 1, 5)).reshape(x.shape)
        return (x - blurred).square().mean()
