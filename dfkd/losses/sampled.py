"""A label drawn from the teacher's class probabilities: what an oracle that answers with one class would say.

no paper: the one-sample form of the cross-entropy with soft labels, whose expectation it is.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.losses.response import OfLogits, require_temperature, same_shape, widened
from dfkd.problem import Problem
from dfkd.rng import Stream
from dfkd.types import Batch, Outputs

__all__ = ["SampledLabel", "drawn_labels"]


def drawn_labels(teacher_logits: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """(n, k) -> (n,) int64: one class a row, drawn from the softened probabilities."""
    log_p = (widened(teacher_logits) / temperature).log_softmax(dim=1)
    # the first of k clocks that ring at rates p is clock c with probability p_c
    clocks = torch.empty_like(log_p).exponential_(generator=generator)
    return (log_p - clocks.log()).argmax(dim=1)


@dataclass(frozen=True)
class SampledLabel(OfLogits):
    """Cross-entropy of the student with a class drawn from the teacher's softened probabilities, in nats.

    temperature: > 0, of the teacher's probabilities; the student's are not softened. In a run every step draws anew,
    from the run's seed; called by itself the loss draws the same numbers every time.
    """

    temperature: float = 1.0
    name: ClassVar[str] = "sampled_label"

    def __post_init__(self) -> None:
        require_temperature(self.temperature)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        return _Drawing(self, Stream(seed, problem.device))

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        return self.given(student, teacher, Stream(0, teacher.logits.device).advance())

    def given(self, student: Outputs, teacher: Outputs, generator: torch.Generator) -> Tensor:
        """(n,) with labels from this generator."""
        same_shape(student.logits, teacher.logits)
        labels = drawn_labels(teacher.logits.detach(), generator, self.temperature)
        return functional.cross_entropy(widened(student.logits), labels, reduction="none")


class _Drawing(nn.Module):
    """The loss in a run: its place in the stream is saved with the run. Nothing in it is trained."""

    def __init__(self, loss: SampledLabel, stream: Stream) -> None:
        super().__init__()
        self._loss, self._stream = loss, stream

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        del batch
        return self._loss.given(student, teacher, self._stream.advance())

    def get_extra_state(self) -> Any:
        return self._stream.state_dict()

    def set_extra_state(self, state: Any) -> None:
        self._stream.load_state_dict(state)
