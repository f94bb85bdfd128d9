"""The term on the teacher's BatchNorm layers: what they are given should have the statistics they have stored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dfkd.problem import BatchNormInput, Problem

from ..state import State
from .views import Views

__all__ = [
    "AUTO",
    "BatchNormGauss",
    "BatchNormNorm",
    "BatchNormWeight",
    "MovingBatchNorm",
    "batchnorm_distance",
    "batchnorm_term",
    "noise_start",
]

BatchNormWeight = float | Literal["auto"]

AUTO = 10.0
"""The weight that `auto` stands for, of the distance divided by what the teacher has for noise."""

NOISE_ROWS = 256


def noise_start(problem: Problem, n: int, generator: torch.Generator, clip: bool = True) -> Tensor:
    """n images N(middle, (span / 4)^2), clipped to the box unless told: where a search over pixels begins."""
    spec = problem.spec
    x = torch.empty(n, *spec.shape, device=problem.device)
    x.normal_(spec.middle, spec.span / 4, generator=generator)
    return x.clamp_(spec.low, spec.high) if clip else x


def batchnorm_distance(layers: Sequence[BatchNormInput], first_layer: float = 1.0) -> Tensor:
    """Sum over layers of |mean - stored mean| + |variance - stored variance|, Euclidean over channels, not squared."""
    total = torch.zeros((), device=layers[0].mean.device)
    for position, layer in enumerate(layers):
        gap = torch.linalg.vector_norm(layer.mean - layer.running_mean)
        gap = gap + torch.linalg.vector_norm(layer.var - layer.running_var)
        total = total + (first_layer if position == 0 else 1.0) * gap
    return total


@dataclass(frozen=True)
class BatchNormNorm:
    """How far the statistics of the batch are from those the teacher has stored, over all its BatchNorm layers.

    first_layer: what the first layer counts, >= 0. relative: divides by the distance of noise, asked once, so that a
    weight means the same for every teacher; published weights differ a hundredfold between nets.
    """

    first_layer: float = 1.0
    relative: bool = False
    needs: ClassVar[tuple[str, ...]] = ("batchnorm",)
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.first_layer >= 0.0:
            raise ValueError(f"first_layer: expected a number >= 0, found {self.first_layer!r}")

    def init(self, problem: Problem, seed: int) -> Tensor | None:
        """The distance of noise, 0-d, where it is needed."""
        if not self.relative:
            return None
        generator = torch.Generator(device=problem.device).manual_seed(seed)
        x = noise_start(problem, NOISE_ROWS, generator)
        with torch.no_grad(), problem.searching(), problem.teacher.batchnorm_inputs() as layers:
            problem.teacher(x)
            return batchnorm_distance(layers, self.first_layer)

    def __call__(self, state: Tensor | None, views: Views) -> Tensor:
        distance = batchnorm_distance(views.batchnorms, self.first_layer)
        return distance if state is None else distance / state


@dataclass(frozen=True)
class BatchNormGauss:
    """KL(stored || batch) of the two Gaussians that each channel's statistics describe, in nats.

    The mean over channels, then over layers; 1e-8 is added to both variances.
    """

    needs: ClassVar[tuple[str, ...]] = ("batchnorm",)
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        layers = []
        for layer in views.batchnorms:
            batch, stored = layer.var + 1e-8, layer.running_var + 1e-8
            gap = (layer.running_mean - layer.mean).square()
            layers.append((0.5 * (batch / stored).log() - 0.5 + (stored + gap) / (2.0 * batch)).mean())
        return torch.stack(layers).mean()


@dataclass(frozen=True)
class MovingBatchNorm:
    """The same distance, of a mixture of the batch's statistics and of a moving average of earlier rounds'.

    momentum: the average's share of the mixture, and of itself when a round is added to it, in [0, 1). It is of the
    last step of each round, and no gradient passes through it; the first round has none. first_layer, relative: as for
    BatchNormNorm.
    """

    momentum: float = 0.9
    first_layer: float = 1.0
    relative: bool = False
    needs: ClassVar[tuple[str, ...]] = ("batchnorm",)
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum: expected a number in [0, 1), found {self.momentum!r}")

    @property
    def _plain(self) -> BatchNormNorm:
        return BatchNormNorm(self.first_layer, self.relative)

    def init(self, problem: Problem, seed: int) -> State:
        none = torch.empty(0, device=problem.device)
        # statistics of all layers end to end, (2, channels): mean, variance; empty where there are none yet
        return State(noise=self._plain.init(problem, seed), average=none, last=none)

    def __call__(self, state: State, views: Views) -> Tensor:
        layers = views.batchnorms
        state.last = torch.stack([torch.cat([x.mean for x in layers]), torch.cat([x.var for x in layers])]).detach()
        if len(state.average):
            past = state.average.split([len(layer.mean) for layer in layers], dim=1)
            layers = tuple(self._mixed(layer, old) for layer, old in zip(layers, past, strict=True))
        distance = batchnorm_distance(layers, self.first_layer)
        return distance if state.noise is None else distance / state.noise

    def _mixed(self, layer: BatchNormInput, old: Tensor) -> BatchNormInput:
        """old (2, c): the average's mean and variance of this layer."""
        m = self.momentum
        return replace(layer, given=(m * old[0] + (1 - m) * layer.mean, m * old[1] + (1 - m) * layer.var))

    def after_step(self, state: State) -> None:
        del state  # the average is of rounds

    def end_round(self, state: State, views: Views) -> None:
        del views  # the images kept may be of an earlier step than the last
        last, m = state.last, self.momentum
        state.average = m * state.average + (1 - m) * last if len(state.average) else last
        state.last = last[:0]


def batchnorm_term(
    weight: BatchNormWeight, first_layer: float = 1.0, momentum: float = 0.0
) -> tuple[float, BatchNormNorm | MovingBatchNorm]:
    """The pair for an objective: `auto` means AUTO times the relative distance; a momentum above 0 the moving form."""
    relative = weight == "auto"
    factor = AUTO if weight == "auto" else float(weight)
    if momentum:
        return factor, MovingBatchNorm(momentum, first_layer, relative)
    return factor, BatchNormNorm(first_layer, relative)
