"""Terms that ask more of images worth more to the student: of classes it has seen little of, hard ones, unlearnt ones.

After Liu, Wang, Liu, Sun, Yao: Small Scale Data-Free Knowledge Distillation. 2024. arXiv:2406.07876. Changed: the
formulas, which are our reading of what they say of theirs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dfkd.problem import Problem

from ..state import State
from .views import Views

__all__ = ["Modulated", "Reward"]


@dataclass(frozen=True)
class Modulated:
    """The teacher's cross-entropy against the class aimed at, each row times (1 + ln(max n / n_y)) (1 - p_y) ** focus.

    n_c is one more than how many of the last `memory` images that rounds kept the teacher takes for class c, y the
    class aimed at and p_y the teacher's probability of it. A row's factor is a number to its gradient, not a function.

    memory: images that are counted, >= 1. focus: how little images count that the teacher is sure of, >= 0; at 0 and
    with equal counts it is the plain cross-entropy.
    """

    memory: int = 5000
    focus: float = 2.0
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise ValueError(f"memory: expected an integer >= 1, found {self.memory!r}")
        if not self.focus >= 0.0:
            raise ValueError(f"focus: expected a number >= 0, found {self.focus!r}")

    def init(self, problem: Problem, seed: int) -> State:
        """classes (m,): what the teacher takes the last images for, the newest last."""
        del seed
        return State(classes=torch.empty(0, dtype=torch.int64, device=problem.device))

    def __call__(self, state: State, views: Views) -> Tensor:
        if views.target is None:
            raise ValueError("target: expected a class for each row, found None")
        logits, target = views.teacher.logits, views.target
        rows = cross_entropy(logits, target, reduction="none")
        return (self.factors(state, logits.detach(), target) * rows).mean()

    def factors(self, state: State, logits: Tensor, target: Tensor) -> Tensor:
        """logits (n, k), target (n,) -> (n,)."""
        seen = torch.ones(logits.shape[1], device=logits.device)
        seen = seen.scatter_add(0, state.classes, torch.ones_like(state.classes, dtype=seen.dtype))
        rare = 1.0 + (seen.max() / seen).log()
        p = logits.softmax(dim=1).gather(1, target[:, None]).squeeze(1)
        return rare[target] * (1.0 - p) ** self.focus

    def after_step(self, state: State) -> None:
        del state

    def end_round(self, state: State, views: Views) -> None:
        taken_for = views.teacher.logits.argmax(dim=1)
        state.classes = torch.cat([state.classes, taken_for])[-self.memory :]


@dataclass(frozen=True)
class Reward:
    """Minus the mean of p_y (1 - q_y): the teacher takes the image for the class aimed at, the student does not yet."""

    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        if views.target is None:
            raise ValueError("target: expected a class for each row, found None")
        at = views.target[:, None]
        p, q = (answers.logits.softmax(dim=1).gather(1, at) for answers in (views.teacher, views.student))
        return -(p * (1.0 - q)).mean()
