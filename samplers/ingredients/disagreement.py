"""Terms that look for images on which the student still differs from the teacher."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from dfkd.losses import js_nats, kl_nats
from dfkd.problem import Problem

from .views import Views

__all__ = ["Disagreement", "Divergence", "disagreement"]

Divergence = Literal["kl", "l1", "js", "masked_kl"]


def disagreement(student: Tensor, teacher: Tensor, divergence: Divergence, temperature: float = 1.0) -> Tensor:
    """Two (n, k) logits -> (n,), larger where the models differ more.

    `kl` KL(teacher || student), `js` Jensen-Shannon, both in nats at `temperature`; `masked_kl` is `kl` on the rows
    where both give the same class and 0 elsewhere; `l1` the sum over classes of |teacher - student| on logits.
    """
    if divergence == "l1":
        return (teacher - student).abs().sum(dim=1)
    if divergence == "js":
        return js_nats(student, teacher, temperature)
    rows = kl_nats(student, teacher, temperature)
    if divergence == "masked_kl":
        rows = rows * (student.argmax(dim=1) == teacher.argmax(dim=1))
    return rows


@dataclass(frozen=True)
class Disagreement:
    """Minus the mean disagreement of the two models; gradients pass through both.

    divergence: `kl`, `l1`, `js` or `masked_kl`. temperature: softens all but `l1`, > 0.
    """

    divergence: Divergence = "kl"
    temperature: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.divergence not in get_args(Divergence):
            known = ", ".join(get_args(Divergence))
            raise ValueError(f"divergence: expected one of {known}, found {self.divergence!r}")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature: expected a number > 0, found {self.temperature!r}")

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        rows = disagreement(views.student.logits, views.teacher.logits, self.divergence, self.temperature)
        return -rows.mean()
