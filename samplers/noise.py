"""Noise over the pixel box: uniform, Gaussian, and blurred until it has shapes.

Uniform noise is the plain integral over all inputs; Gaussian noise is the stand-in for N(0, 1) in normalised units of
Raikwar, Mishra: Discovering and Overcoming Limitations of Noise-engineered Data-free Knowledge Distillation. 2022.
The blurred kind: no paper. Changed: a fraction of the box for their mean and standard deviation, clipped to the box.
A teacher with BatchNorm says almost nothing about noise when it normalises with stored statistics, so it labels these
in `batch` unless told otherwise.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, whole

from .checks import a_labelling, some_rows
from .state import State, Stream


@dataclass(frozen=True)
class Uniform:
    """Every pixel anywhere in the box.

    labelling: BatchNorm statistics the teacher labels with, `batch` (of the rows asked together) or `eval` (stored).
    """

    labelling: BatchNormMode = "batch"
    name: ClassVar[str] = "uniform"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        a_labelling(self.labelling)

    def init(self, problem: Problem, seed: int) -> State:
        return State(stream=Stream(seed, problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        spec, rng = problem.spec, state.stream.advance()
        x = torch.empty(n, *spec.shape, device=problem.device).uniform_(spec.low, spec.high, generator=rng)
        return Batch(x, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


@dataclass(frozen=True)
class Gaussian:
    """Every pixel normal, clipped to the box.

    mean: as a fraction of the box, 0.5 is its middle. std: as a fraction of the box, > 0. labelling: BatchNorm
    statistics the teacher labels with, `batch` (of the rows asked together) or `eval` (stored).
    """

    mean: float = 0.5
    std: float = 0.25
    labelling: BatchNormMode = "batch"
    name: ClassVar[str] = "gaussian"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.mean <= 1.0:
            raise ValueError(f"mean: expected a fraction of the box in [0, 1], found {self.mean!r}")
        if not 0.0 < self.std < float("inf"):
            raise ValueError(f"std: expected a number > 0, found {self.std!r}")
        a_labelling(self.labelling)

    def init(self, problem: Problem, seed: int) -> State:
        return State(stream=Stream(seed, problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        spec, rng = problem.spec, state.stream.advance()
        mean, std = spec.low + self.mean * spec.span, self.std * spec.span
        x = torch.empty(n, *spec.shape, device=problem.device).normal_(mean, std, generator=rng)
        return Batch(x.clamp_(spec.low, spec.high), labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


@dataclass(frozen=True)
class Smoothed:
    """Gaussian noise, blurred, then stretched so that each image has a pixel at either end of the box.

    sigma: width of the Gaussian blur in pixels, > 0. labelling: BatchNorm statistics the teacher labels with, `batch`
    (of the rows asked together) or `eval` (stored).
    """

    sigma: float = 1.0
    labelling: BatchNormMode = "batch"
    name: ClassVar[str] = "smoothed"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < float("inf"):
            raise ValueError(f"sigma: expected a number of pixels > 0, found {self.sigma!r}")
        a_labelling(self.labelling)

    def init(self, problem: Problem, seed: int) -> State:
        return State(stream=Stream(seed, problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        spec, device, rng = problem.spec, problem.device, state.stream.advance()
        noise = torch.empty(n, *spec.shape, device=device).normal_(generator=rng)
        rows, columns = (_blur(side, self.sigma, device) for side in (spec.height, spec.width))
        x = ((noise @ columns.T).transpose(2, 3) @ rows.T).transpose(2, 3)  # either one product of two matrices
        least, most = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        x = (x - least) / (most - least).clamp_min(1e-12)  # an image of one pixel has no range to stretch
        x = (spec.low + spec.span * x).clamp_(spec.low, spec.high)
        return Batch(x, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def _blur(side: int, sigma: float, device: torch.device) -> Tensor:
    """(side, side), rows that sum to 1: a matrix needs no padding, whatever the width of the blur."""
    at = torch.arange(side, device=device, dtype=torch.float32)
    return (-0.5 * ((at[:, None] - at) / sigma) ** 2).softmax(dim=1)
