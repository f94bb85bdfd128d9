"""The term on the teacher's penultimate features: images of things it knows excite them more than others do."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfkd.problem import Problem

from .views import Views

__all__ = ["Activation"]


@dataclass(frozen=True)
class Activation:
    """Minus the mean absolute value of what the teacher's last linear layer is given."""

    needs: ClassVar[tuple[str, ...]] = ("penultimate",)
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        return -views.penultimate.abs().mean()
