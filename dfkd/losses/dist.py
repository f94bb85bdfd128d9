"""Correlations of the class probabilities in place of their equality: the order is taught, not the values.

Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022. arXiv:2205.10536. Changed: a
row or class whose probabilities are all equal has no correlation: 1 for one model's, 0 for both.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfkd.losses.norms import apart, unit
from dfkd.losses.response import OfLogits, log_probabilities, require_temperature
from dfkd.types import Batch, Outputs

__all__ = ["DIST", "pearson_distances"]


def pearson_distances(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """1 - Pearson's correlation of softened probabilities: two (n, k) -> (n,) of each row, (k,) of each class."""
    q, p = (log.exp() for log in log_probabilities(student_logits, teacher_logits, temperature))
    return _distance(q, p), _distance(q.T, p.T)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(m, l) twice -> (m,): 1 - <a, b> of what varies, at norm 1."""
    return apart(_varying(a), _varying(b), dim=1)


def _varying(a: Tensor) -> Tensor:
    """(m, l) -> each row less its mean, at norm 1; about 0 where it varies by rounding only."""
    largest = a.detach().amax(dim=1, keepdim=True).clamp_min(1e-30)  # classes as unlikely as that still have an order
    a = a / largest
    return unit(a - a.mean(dim=1, keepdim=True), nothing=1e-6 * math.sqrt(a.shape[1]))


@dataclass(frozen=True)
class DIST(OfLogits):
    """1 - the correlation of the two models' probabilities: over the classes of a row, and over the rows for a class.

    beta: >= 0, weight of the first, a mean over rows. gamma: >= 0, of the second, a mean over classes that every row
    gets. temperature: > 0.
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 1.0
    name: ClassVar[str] = "dist"
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("beta", self.beta), ("gamma", self.gamma)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, found {value!r}")
        require_temperature(self.temperature)

    @property
    def scale(self) -> float:
        return self.temperature**2

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        of_rows, of_classes = pearson_distances(student.logits, teacher.logits, self.temperature)
        return self.beta * of_rows + self.gamma * of_classes.mean()
