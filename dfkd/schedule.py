"""How long a run lasts and how fast its student learns: settings only, functions of how far the run is.

Cosine: Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts. 2016. arXiv:1608.03983 (no restarts).
One cycle: Smith, Topin: Super-Convergence. 2017. arXiv:1708.07120 (momentum stays; rates as in torch's OneCycleLR).
Hold, then fall: Haegele et al.: Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations. 2024.
arXiv:2405.18392 (a constant rate with a cooldown; here along a cosine, and begun by a signal).
Changed in all: the rate follows the run's progress in [0, 1], so it fits a budget of images or seconds too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dfkd.naming import unknown

__all__ = ["OPTIMISERS", "SCHEDULES", "Budget", "Optimiser", "Stop"]

OPTIMISERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "one_cycle", "constant", "steps")

_START, _END = 1 / 25, 1e-4 / 25  # of the peak: where one cycle begins and ends
_RISE = 0.3  # of the run: how long one cycle rises, unless `warmup` says


@dataclass(frozen=True)
class Budget:
    """batch: rows per step, >= 1. The run ends at the first limit reached, and one is needed.

    steps: student updates, >= 1. teacher_images: images forward and backward through the teacher, synthesis and
    labelling, >= 1. seconds: time but for monitoring, > 0.
    """

    batch: int = 256
    steps: int | None = None
    teacher_images: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        _whole("batch", self.batch)
        for name in ("steps", "teacher_images"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name))
        if self.seconds is not None:
            _number("seconds", self.seconds, above=0.0)
        if self.steps is None and self.teacher_images is None and self.seconds is None:
            raise ValueError("budget: expected at least one of steps, teacher_images, seconds, found none")

    def progress(self, steps: int, images: int, seconds: float) -> float:
        """How much of it is spent, in [0, 1], by the limit that is nearest."""
        spent = 0.0
        if self.steps is not None:
            spent = steps / self.steps
        if self.teacher_images is not None:
            spent = max(spent, images / self.teacher_images)
        if self.seconds is not None:
            spent = max(spent, seconds / self.seconds)
        return min(spent, 1.0)

    def horizon(self, steps: int, progress: float) -> int:
        """The planned number of steps; where no number is given, what the pace so far amounts to."""
        if self.steps is not None:
            return self.steps
        if steps and progress > 0.0:
            return max(steps, round(steps / progress))
        return 1 if self.teacher_images is None else max(1, self.teacher_images // self.batch)


@dataclass(frozen=True)
class Optimiser:
    """name: `sgd` or `adamw`. learning_rate: the peak, > 0. momentum: of sgd, in [0, 1). nesterov: of sgd.

    weight_decay: >= 0, on all parameters. schedule: `cosine` (to 0), `one_cycle`, `constant`, `steps`. milestones:
    fractions of the run, rising, in (0, 1), from each of which on `steps` multiplies the rate by `decay`, in (0, 1).
    warmup: fraction of the run in [0, 1) over which the rate rises linearly; for `one_cycle` the part it rises in (0:
    0.3). clip: largest gradient norm, > 0, or None.
    """

    name: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    warmup: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise unknown("optimiser", str(self.name), OPTIMISERS)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", str(self.schedule), SCHEDULES)
        _number("learning_rate", self.learning_rate, above=0.0)
        _number("weight_decay", self.weight_decay)
        _number("momentum", self.momentum, below=1.0)
        _number("warmup", self.warmup, below=1.0)
        if self.clip is not None:
            _number("clip", self.clip, above=0.0)
        check_milestones(self.schedule, self.milestones)
        _number("decay", self.decay, above=0.0, below=1.0)
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov: expected a momentum > 0 with it, found 0.0")

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Fused: one call updates all, on a CPU as on a GPU, and a changed rate costs nothing."""
        if self.name == "adamw":
            return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def rate(self, progress: float) -> float:
        """The learning rate at this progress in [0, 1]."""
        if self.schedule == "one_cycle":
            rise = self.warmup or _RISE
            if progress < rise:
                return self.learning_rate * _between(_START, 1.0, progress / rise)
            return self.learning_rate * _between(1.0, _END, (progress - rise) / (1.0 - rise))
        if progress < self.warmup:  # from a hundredth: a first step of rate 0 would be wasted
            return self.learning_rate * (0.01 + 0.99 * progress / self.warmup)
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "steps":
            return self.learning_rate * self.decay ** sum(progress >= milestone for milestone in self.milestones)
        return self.learning_rate * _between(1.0, 0.0, (progress - self.warmup) / (1.0 - self.warmup))

    def held(self, progress: float, fall: float, end: float) -> float:
        """The rate of a run that may stop early: the peak until progress `fall`, then down to 0 at `end`.

        A `constant` rate does not fall. Warm-up is as without stopping.
        """
        if self.schedule == "constant" or progress < min(self.warmup, fall):
            return self.rate(progress)
        if progress < fall:
            return self.learning_rate
        return self.learning_rate * _between(1.0, 0.0, min(1.0, (progress - fall) / (end - fall)))


@dataclass(frozen=True)
class Stop:
    """Ends a run before its budget where its signals are flat: numbers for each log point, the lower the better.

    Under a rate that falls to the end of the budget this would be wrong both ways: while the rate is high signals can
    be flat though the fall would still lower them, and during the fall they are not. So the rate is held at its peak
    until all signals are flat, and then falls to 0; where they never are, the fall ends with the budget.

    patience: log points, of which there are 20 in a budget, that must all be no better than the best before them,
    >= 1. tolerance: by what fraction of the best they must be lower to count as better, in [0, 1). decay: length of the
    fall, as a fraction of what was spent until it begins, in (0, 1]; a `constant` rate does not fall and stops at once.
    """

    patience: int = 3
    tolerance: float = 0.02
    decay: float = 0.25

    def __post_init__(self) -> None:
        _whole("patience", self.patience)
        _number("tolerance", self.tolerance, below=1.0)
        _number("decay", self.decay, above=0.0)
        if self.decay > 1.0:
            raise ValueError(f"decay: expected a number > 0 and <= 1, found {self.decay!r}")

    def flat(self, signal: Sequence[float]) -> bool:
        """Whether none of the last `patience` values is lower than the best before them by the tolerance."""
        before, last = signal[: -self.patience], signal[-self.patience :]
        return bool(before) and min(last) >= (1.0 - self.tolerance) * min(before)

    def span(self, optimiser: Optimiser) -> float:
        """How long the fall is, as a fraction of what was spent; ValueError for a rate that cannot be held."""
        if optimiser.schedule not in ("cosine", "constant"):
            raise ValueError(
                f"stop: expected the schedule cosine or constant, whose peak can be held, found {optimiser.schedule!r}"
            )
        return 0.0 if optimiser.schedule == "constant" else self.decay


def check_milestones(schedule: str, milestones: tuple[float, ...]) -> None:
    """Fractions of the run, rising, in (0, 1): some with `steps`, none without."""
    if (schedule == "steps") != bool(milestones):
        wanted = "fractions of the run, such as (0.5, 0.75), with" if schedule == "steps" else "none without"
        raise ValueError(f"milestones: expected {wanted} schedule steps, found {milestones!r}")
    for before, after in zip((0.0, *milestones), (*milestones, 1.0), strict=True):
        if not before < after:
            raise ValueError(f"milestones: expected rising numbers in (0, 1), found {milestones!r}")


def _between(start: float, end: float, fraction: float) -> float:
    """Half a cosine from start to end."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")


def _number(name: str, value: object, *, above: float | None = None, below: float = math.inf) -> None:
    """A finite number in [0, below), or in (above, below)."""
    fine = not isinstance(value, bool) and isinstance(value, (int, float)) and 0.0 <= value < below
    if above is not None:
        fine = fine and isinstance(value, (int, float)) and value > above
    if not fine:
        least = "> 0" if above is not None else ">= 0"
        most = "" if below == math.inf else f" and < {below:g}"
        raise ValueError(f"{name}: expected a number {least}{most}, found {value!r}")
