"""Terms on the teacher's class probabilities: certain of one class per image, all classes equally often."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dfkd.problem import Problem

from .views import Views

__all__ = ["Balance", "OneHot", "equally"]

Aim = Literal["target", "argmax"]


@dataclass(frozen=True)
class OneHot:
    """The teacher's cross-entropy against one class per row.

    aim: `target`, the class drawn for the row, or `argmax`, the class the teacher itself finds likeliest.
    """

    aim: Aim = "argmax"
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.aim not in get_args(Aim):
            raise ValueError(f"aim: expected one of {', '.join(get_args(Aim))}, found {self.aim!r}")

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        logits = views.teacher.logits
        if self.aim == "argmax":
            return cross_entropy(logits, logits.argmax(dim=1))
        if views.target is None:
            raise ValueError("target: expected a class for each row, found None")
        return cross_entropy(logits, views.target)


@dataclass(frozen=True)
class Balance:
    """Sum over classes of p ln p, p the teacher's mean probabilities over the batch: -ln k where all are equal."""

    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        log_p = views.teacher.logits.log_softmax(dim=1)
        log_mean = torch.logsumexp(log_p, dim=0) - math.log(log_p.shape[0])  # finite where p itself underflows
        return (log_mean.exp() * log_mean).sum()


def equally(k: int, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """(n,) int64: all of k classes equally often, in random order, so that parts are even on average.

    Fewer rows than classes are of different ones, drawn anew each time. Where k does not divide n the first n % k
    classes come once more.
    """
    return torch.randperm(max(n, k), generator=rng, device=device)[:n] % k
