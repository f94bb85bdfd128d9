"""How far the student's class probabilities, logits or top class are from the teacher's.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531.
Probabilities softened as in eq. 1; their factor temperature squared is `scale`, applied by `combine` alone. Reverse KL,
Jensen-Shannon and the plain logit distances are standard divergences beside it: no paper of their own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.problem import Problem
from dfkd.types import Batch, Outputs

NO_TAPS: Mapping[str, tuple[str, ...]] = {"student": (), "teacher": ()}


def same_shape(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        expected, found = tuple(student_logits.shape), tuple(teacher_logits.shape)
        raise ValueError(f"teacher_logits: expected shape {expected}, found {found}")


def widened(logits: Tensor) -> Tensor:
    """float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def standardised(logits: Tensor) -> Tensor:
    """(n, k) logits, each row at mean 0 and standard deviation 1 (over k - 1, as published); an equal row is 0.

    Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation. CVPR 2024. arXiv:2403.01427.
    """
    logits = widened(logits)
    centred = logits - logits.mean(dim=1, keepdim=True)
    square = centred.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    varies = square > 1e-12  # else the published 1e-7 in the divisor would be a slope of 1e7
    return centred / torch.where(varies, torch.where(varies, square, 1.0).sqrt() + 1e-7, 1.0)


def log_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(student's, teacher's) log-probabilities, each (n, k) float32."""
    same_shape(student_logits, teacher_logits)
    log_q = (widened(student_logits) / temperature).log_softmax(dim=1)
    log_p = (widened(teacher_logits) / temperature).log_softmax(dim=1)
    return log_q, log_p


def kl_nats(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student): two (n, k) -> (n,) nats, zero where the models agree."""
    log_q, log_p = log_probabilities(student_logits, teacher_logits, temperature)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def reverse_kl_nats(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher): two (n, k) -> (n,) nats, zero where the models agree."""
    log_q, log_p = log_probabilities(student_logits, teacher_logits, temperature)
    return (log_q.exp() * (log_q - log_p)).sum(dim=1)


def js_nats(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Half of KL(p || m) + KL(q || m), m = (p + q) / 2: two (n, k) -> (n,) nats in [0, ln 2], symmetric."""
    log_q, log_p = log_probabilities(student_logits, teacher_logits, temperature)
    log_m = torch.logaddexp(log_q, log_p) - math.log(2.0)
    halves = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * halves.sum(dim=1)


def comparable(student: Outputs, teacher: Outputs, standardise: bool) -> tuple[Tensor, Tensor]:
    """Both models' logits as they are compared."""
    if not standardise:
        return student.logits, teacher.logits
    return standardised(student.logits), standardised(teacher.logits)


def require_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number > 0, found {temperature!r}")


class OfLogits:
    """What a loss of both models' logits is unless it says otherwise: row by row, nothing to tap, nothing to train."""

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = NO_TAPS
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True

    @property
    def scale(self) -> float:
        return 1.0

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del problem, seed  # nothing to train beside the student
        return None


@dataclass(frozen=True)
class Softened(OfLogits):
    """The options of losses between softened probabilities."""

    temperature: float = 1.0
    standardise: bool = False

    def __post_init__(self) -> None:
        require_temperature(self.temperature)

    @property
    def scale(self) -> float:
        return self.temperature**2


@dataclass(frozen=True)
class KL(Softened):
    """KL(teacher || student) in nats.

    temperature: > 0, no unit; the higher, the more the unlikely classes count. standardise: whether the logits of each
    row are first brought to mean 0 and standard deviation 1.
    """

    name: ClassVar[str] = "kl"

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        return kl_nats(*comparable(student, teacher, self.standardise), self.temperature)


@dataclass(frozen=True)
class ReverseKL(Softened):
    """KL(student || teacher) in nats.

    temperature: > 0, no unit; the higher, the more the unlikely classes count. standardise: whether the logits of each
    row are first brought to mean 0 and standard deviation 1.
    """

    name: ClassVar[str] = "reverse_kl"

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        return reverse_kl_nats(*comparable(student, teacher, self.standardise), self.temperature)


@dataclass(frozen=True)
class JensenShannon(Softened):
    """Jensen-Shannon in nats.

    temperature: > 0, no unit; the higher, the more the unlikely classes count. standardise: whether the logits of each
    row are first brought to mean 0 and standard deviation 1.
    """

    name: ClassVar[str] = "js"

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        return js_nats(*comparable(student, teacher, self.standardise), self.temperature)


@dataclass(frozen=True)
class LogitMSE(OfLogits):
    """Sum over classes of squared logit differences, in squared logits. No options."""

    name: ClassVar[str] = "logit_mse"

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        same_shape(student.logits, teacher.logits)
        return (widened(student.logits) - widened(teacher.logits)).square().sum(dim=1)


@dataclass(frozen=True)
class LogitL1(OfLogits):
    """Sum over classes of absolute logit differences, in logits. No options."""

    name: ClassVar[str] = "logit_l1"

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        same_shape(student.logits, teacher.logits)
        return (widened(student.logits) - widened(teacher.logits)).abs().sum(dim=1)


@dataclass(frozen=True)
class LogitHuber(OfLogits):
    """Sum over classes of Huber's function of logit differences d, in squared logits: d^2 / 2, beyond delta a line.

    delta: in logits, > 0; where the slope stops growing.
    """

    delta: float = 1.0
    name: ClassVar[str] = "logit_huber"

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < math.inf:
            raise ValueError(f"delta: expected a number > 0, found {self.delta!r}")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        same_shape(student.logits, teacher.logits)
        answers = widened(student.logits), widened(teacher.logits)
        return functional.huber_loss(*answers, reduction="none", delta=self.delta).sum(dim=1)


@dataclass(frozen=True)
class HardLabel(OfLogits):
    """Cross-entropy of the student with the teacher's top class, in nats. No options."""

    name: ClassVar[str] = "hard_label"

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        same_shape(student.logits, teacher.logits)
        return functional.cross_entropy(widened(student.logits), teacher.logits.argmax(dim=1), reduction="none")


@dataclass(frozen=True)
class LabelCrossEntropy(OfLogits):
    """Cross-entropy of the student with the batch's true labels, (n,) or mixed (n, k), in nats. No options."""

    name: ClassVar[str] = "label_ce"
    uses_teacher: ClassVar[bool] = False

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del teacher
        y = batch.require_y(self.name)
        logits = widened(student.logits)
        if y.ndim == 2:
            if y.shape != logits.shape:
                raise ValueError(f"y: expected shape {tuple(logits.shape)}, found {tuple(y.shape)}")
            return -(y.to(logits) * logits.log_softmax(dim=1)).sum(dim=1)
        return functional.cross_entropy(logits, y, reduction="none")
