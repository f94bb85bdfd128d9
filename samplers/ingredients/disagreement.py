"""Terms that look for images on which the student still differs from the teacher."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from dfkd.losses import js_nats, kl_nats
from dfkd.problem import Problem
from dfkd.types import BATCHNORM_MODES, BatchNormMode

from .views import Views

__all__ = ["Disagreement", "Divergence", "Variant", "disagreement", "swapped_clamped_js"]

Divergence = Literal["kl", "l1", "js", "masked_kl"]
Variant = Literal["exact", "swapped_clamped"]


def swapped_clamped_js(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """What public code computes as Jensen-Shannon: two (n, k) logits -> (n,), not bounded by ln 2.

    Half of KL(m || p) + KL(m || q), m = (p + q) / 2, with p, q and m clamped to [0.01, 0.99] once m is formed: its
    arguments are swapped, and probabilities on the clamp, most of them from a hundred classes on, give no gradient.
    """
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    m, p, q = (part.clamp(0.01, 0.99) for part in (0.5 * (p + q), p, q))
    return (m * (m.log() - 0.5 * (p.log() + q.log()))).sum(dim=1)


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

    divergence: `kl`, `l1`, `js` or `masked_kl`. temperature: softens all but `l1`, > 0. student_mode: the student's
    BatchNorm mode, `eval` or `batch` (training mode whose statistics are not kept). per_class: whether the sum over
    classes is divided by their number, as where authors average over all elements. variant: `exact`, or for `js`
    `swapped_clamped`, what public code computes under that name. ceiling: the most the mean counts, beyond which it
    gives no gradient, > 0; None for no bound.
    """

    divergence: Divergence = "kl"
    temperature: float = 1.0
    student_mode: BatchNormMode = "eval"
    per_class: bool = False
    variant: Variant = "exact"
    ceiling: float | None = None
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.divergence not in get_args(Divergence):
            known = ", ".join(get_args(Divergence))
            raise ValueError(f"divergence: expected one of {known}, found {self.divergence!r}")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature: expected a number > 0, found {self.temperature!r}")
        if self.student_mode not in BATCHNORM_MODES:
            raise ValueError(f"student_mode: expected one of {', '.join(BATCHNORM_MODES)}, found {self.student_mode!r}")
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant: expected one of {', '.join(get_args(Variant))}, found {self.variant!r}")
        if self.variant != "exact" and self.divergence != "js":
            raise ValueError(f"variant: expected exact with divergence {self.divergence}, found {self.variant!r}")
        if self.ceiling is not None and not self.ceiling > 0.0:
            raise ValueError(f"ceiling: expected a number > 0 or None, found {self.ceiling!r}")

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        answers = views.student if self.student_mode == "eval" else views.student_as(self.student_mode)
        student, teacher = answers.logits, views.teacher.logits
        if self.variant == "swapped_clamped":
            rows = swapped_clamped_js(student, teacher, self.temperature)
        else:
            rows = disagreement(student, teacher, self.divergence, self.temperature)
        mean = rows.mean() / (teacher.shape[1] if self.per_class else 1)
        return -(mean if self.ceiling is None else mean.clamp(max=self.ceiling))
