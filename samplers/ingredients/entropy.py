"""The term on how unsure the teacher is of each image, whatever it takes it for."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfkd.problem import Problem

from .views import Views

__all__ = ["Entropy"]


@dataclass(frozen=True)
class Entropy:
    """The mean over rows of -sum p ln p, p the teacher's probabilities: 0 where it is sure, ln k where not at all."""

    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        log_p = views.teacher.logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1).mean()
