"""The divergence of the class probabilities in two parts: how sure of one class, and how the others compare.

Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation. CVPR 2022. arXiv:2203.08679. Changed: the other classes
are renormalised without the class itself, where the authors' code subtracts 1000 from its logit; without a label the
class is the teacher's first; the warm-up is a share of the run (theirs: 20 of 240 epochs).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dfkd.losses.response import OfLogits, comparable, log_probabilities, require_temperature
from dfkd.problem import Problem
from dfkd.types import Batch, Outputs

__all__ = ["DKD", "Label", "decoupled_nats"]

Label = Literal["teacher", "target", "true"]


def decoupled_nats(
    student_logits: Tensor, teacher_logits: Tensor, label: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) of (the class, all others), and among the others: (n, k) twice, (n,) -> (n,) twice.

    The first and 1 - p_label times the second are KL(teacher || student).
    """
    log_q, log_p = log_probabilities(student_logits, teacher_logits, temperature)
    k = log_q.shape[1]
    place = torch.arange(k - 1, device=log_q.device)
    rest = place + (place >= label[:, None])  # (n, k - 1): all classes but the label
    one_q, one_p = (log.gather(1, label[:, None]).squeeze(1) for log in (log_q, log_p))
    rest_q, rest_p = log_q.gather(1, rest), log_p.gather(1, rest)
    not_q, not_p = rest_q.logsumexp(dim=1), rest_p.logsumexp(dim=1)  # ln(1 - p), without its cancellation
    binary = one_p.exp() * (one_p - one_q) + not_p.exp() * (not_p - not_q)
    among_q, among_p = rest_q.log_softmax(dim=1), rest_p.log_softmax(dim=1)
    return binary, (among_p.exp() * (among_p - among_q)).sum(dim=1)


@dataclass(frozen=True)
class DKD(OfLogits):
    """How sure of one class, and how the others compare, weighed apart, in nats.

    alpha: >= 0, weight of the first part. beta: >= 0, of the second. temperature: > 0. label: the class; `teacher` (its
    first), `target` (the one a sampler aimed at, where it aimed at none the teacher's first) or `true` (the batch's y).
    warmup: in [0, 1], the share of a run over which the loss grows to its full weight; nothing outside a run.
    standardise: as for KL.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    label: Label = "teacher"
    warmup: float = 20 / 240
    standardise: bool = False
    name: ClassVar[str] = "dkd"

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, found {value!r}")
        require_temperature(self.temperature)
        if self.label not in get_args(Label):
            raise ValueError(f"label: expected one of {', '.join(get_args(Label))}, found {self.label!r}")
        if not 0.0 <= self.warmup <= 1.0:
            raise ValueError(f"warmup: expected a number in [0, 1], found {self.warmup!r}")

    @property
    def scale(self) -> float:
        return self.temperature**2

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del seed  # nothing to train beside the student
        return _Warming(self, problem) if self.warmup > 0.0 else None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        logits = comparable(student, teacher, self.standardise)
        binary, others = decoupled_nats(*logits, self._labels(teacher, batch), self.temperature)
        return self.alpha * binary + self.beta * others

    def _labels(self, teacher: Outputs, batch: Batch) -> Tensor:
        """(n,) int64."""
        first = teacher.logits.argmax(dim=1)
        if self.label == "true":
            y = batch.require_y(self.name)
            if y.ndim != 1:
                raise ValueError(
                    f"y: expected one class for each row, found {tuple(y.shape)}; label=teacher needs none"
                )
            return y
        if self.label == "target" and batch.target is not None:
            return torch.where(batch.target >= 0, batch.target, first)  # -1: rows of a part that aims at none
        return first


class _Warming(nn.Module):
    """The loss in a run: less at its beginning. Nothing in it is trained."""

    def __init__(self, loss: DKD, problem: Problem) -> None:
        super().__init__()
        self._loss, self._problem = loss, problem

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        done = self._problem.progress + 1.0 / max(self._problem.horizon, 1)  # with this step
        return min(done / self._loss.warmup, 1.0) * self._loss(student, teacher, batch)
