"""The weighted sum of losses that the student minimises: the only place where weights and scales are applied.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531. Their factor temperature
squared is applied here and nowhere else, with or without a label term.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.interfaces import Loss
from dfkd.losses.response import NO_TAPS, OfLogits
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import derive
from dfkd.types import Batch, Outputs

__all__ = ["Evaluated", "Objective", "combine"]


@dataclass(frozen=True)
class Evaluated:
    """total: 0-d, to be differentiated. rows (n,): weights and scales applied, row weights not. terms: 0-d, bare.

    rows and terms are detached. A term is its loss's mean over rows (by row weights), without weight and scale.
    """

    total: Tensor
    rows: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """terms: weight > 0 and loss by label. Build it with `combine`, which checks them."""

    terms: Mapping[str, tuple[float, Loss]]

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The module paths that any loss taps, of the student and of the teacher."""
        return {
            who: tuple(dict.fromkeys(path for _, loss in self.terms.values() for path in loss.needs.get(who, ())))
            for who in NO_TAPS
        }

    @property
    def input_grad(self) -> bool:
        return any(loss.input_grad for _, loss in self.terms.values())

    @property
    def uses_teacher(self) -> bool:
        """Whether any loss reads the teacher's answers; a loss that does not say so is taken to."""
        return any(getattr(loss, "uses_teacher", True) for _, loss in self.terms.values())

    @property
    def by_row(self) -> bool:
        """Whether each row's value is one of its own logits and labels, as far as the losses are known."""
        return all(isinstance(loss, OfLogits) and not loss.coupled for _, loss in self.terms.values())

    def init(self, problem: Problem, seed: int) -> nn.ModuleDict:
        """What is trained with the student, by label. Such a module is called in its loss's place.

        ValueError, UnsupportedProblem too, for a loss that does not fit the models or the batch: it is named.
        """
        adapters = nn.ModuleDict()
        for label, (_, loss) in self.terms.items():
            try:
                module = loss.init(problem, derive(seed, label))
            except ValueError as error:
                kind = UnsupportedProblem if isinstance(error, UnsupportedProblem) else ValueError
                raise kind(f"objective.{label}: {str(error).removeprefix(f'{label}: ')}") from error
            if module is not None:
                adapters[label] = module
        return adapters.to(problem.device)

    def __call__(
        self,
        student: Outputs,
        teacher: Outputs,
        batch: Batch,
        adapters: Mapping[str, Any] | nn.ModuleDict | None = None,
    ) -> Evaluated:
        n, weight = len(batch), batch.weight
        total: Tensor | None = None
        rows: Tensor | None = None
        terms: dict[str, Tensor] = {}
        for label, (factor, loss) in self.terms.items():
            if weight is not None and loss.coupled:
                _require_equal(label, weight)
            call = adapters[label] if adapters and label in adapters else loss
            values: Tensor = call(student, teacher, batch)
            if values.shape != (n,):
                raise ValueError(f"{label}: expected one value for each of {n} rows, found {tuple(values.shape)}")
            factor *= loss.scale
            mean = values.mean() if weight is None else (weight * values).sum() / n
            terms[label] = mean.detach()
            values = values.detach()
            if factor != 1.0:
                mean, values = factor * mean, factor * values
            total = mean if total is None else total + mean
            rows = values if rows is None else rows + values
        assert total is not None
        assert rows is not None  # `combine` refuses an empty objective
        return Evaluated(total, rows, terms)


def combine(terms: Mapping[str, tuple[float, Loss]]) -> Objective:
    """`{"kl": (1.0, KL(temperature=4)), ...}` -> the objective. A term of weight 0 is not evaluated at all."""
    checked: dict[str, tuple[float, Loss]] = {}
    for label, term in terms.items():
        if not isinstance(term, (tuple, list)) or len(term) != 2:
            raise ValueError(f"objective.{label}: expected (weight, loss), found {term!r}")
        weight, loss = term
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0.0 <= weight < math.inf:
            raise ValueError(f"objective.{label}: expected a finite weight >= 0, found {weight!r}")
        if isinstance(loss, type) or not callable(loss) or not callable(getattr(loss, "init", None)):
            raise ValueError(f"objective.{label}: expected a loss such as KL(temperature=4), found {loss!r}")
        if "." in label or not label:
            raise ValueError(f"objective: expected a label without a dot, found {label!r}")
        if weight > 0.0:
            checked[label] = (float(weight), loss)
    if not checked:
        raise ValueError(f"objective: expected at least one loss with a weight > 0, found {dict(terms)!r}")
    return Objective(checked)


def _require_equal(label: str, weight: Tensor) -> None:
    """A coupled loss has no value per row, so rows cannot count differently. One wait for the device, only here."""
    if not torch.equal(weight, weight[:1].expand_as(weight)):  # sync
        raise ValueError(f"{label}: needs equal row weights, since its value belongs to the whole batch")
