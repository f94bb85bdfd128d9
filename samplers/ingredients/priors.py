"""Terms on the pixels alone: neighbours alike, values near the middle of the box. Both in units of the box's span."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dfkd.problem import Problem

from .views import Views

__all__ = ["PixelNorm", "TotalVariation", "Variation", "row_variation"]

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
