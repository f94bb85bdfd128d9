"""Whether a distillation worked, where there is no data to say so: agreement on inputs anyone can make.

No paper: the student and the teacher are asked about fresh draws of the training sampler and of samplers that were not
trained on. High on its own draws and low elsewhere means that the sampler does not pin the teacher down; none of it is
a test score.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dfkd.fidelity import columns, metrics
from dfkd.interfaces import Sampler, parts, walk
from dfkd.problem import Problem
from dfkd.rng import derive

__all__ = ["Signal", "selfcheck"]


def selfcheck(
    problem: Problem, sampler: Sampler, state: Any, unseen: Mapping[str, Sampler], rows: int = 1000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Agreement and KL (nats; None where it is undefined): its own fresh draws first, then samplers not trained on."""
    drawn = [columns.draws_column(sampler.name, sampler, state, problem, rows)]
    for name, other in unseen.items():
        fresh = other.init(problem, derive(seed, "selfcheck", name))
        drawn.append(columns.draws_column(f"{name}, not trained on", other, fresh, problem, rows))
    found = {}
    for column in drawn:
        # the teacher as it labelled during training, the student as it will be used
        teacher = columns.logits(problem.teacher, column.x, problem.spec, column.labelling)
        student = columns.logits(problem.student, column.x, problem.spec)
        scores = metrics.score(student, teacher)
        found[column.name] = {name: _finite(scores[name]) for name in ("agreement", "kl")}
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class Signal:
    """The same along a run: what it says of the student at every log point, as `agreement_NAME` and `signal_NAME`.

    The banks are fixed: `own`, rows of the sampler (not those that it trains on, but of a finite set they are rows of
    it), and rows of others. Where it searches against the student, its base stands for it, as searched rows are
    different ones at every point. Where even that follows the student (a generator), rows are drawn anew at each point
    from the state as it is, which is put back afterwards; then `own` is a moving target, and where images take many
    steps each point takes them again. Nothing is saved: a continued run makes the same banks again.

    signal_NAME is the bank's KL in nats. Where all of them are flat, more training at this rate changes the student for
    the better nowhere that can be looked at without data. None of it estimates a test score.
    """

    def __init__(self, sampler: Sampler, unseen: Mapping[str, Sampler], rows: int, seed: int) -> None:
        if rows < 1:
            raise ValueError(f"rows: expected an integer >= 1, found {rows!r}")
        self._sampler, self._unseen, self._rows, self._seed = sampler, unseen, rows, seed
        self._still = unsearched(sampler)
        self._banks: dict[str, tuple[columns.Column, Tensor]] = {}

    def __call__(self, problem: Problem, state: Any) -> dict[str, float]:
        if not self._banks:
            others = {"own": self._still} if self._still is not None else {}
            for name, sampler in {**others, **self._unseen}.items():
                with columns.as_evaluation(problem):
                    fresh = sampler.init(problem, derive(self._seed, "signal", name))
                self._banks[name] = self._bank(problem, sampler, fresh)
        banks = dict(self._banks)
        if self._still is None:
            before = state.state_dict()
            banks = {"own": self._bank(problem, self._sampler, state), **banks}
            state.load_state_dict(before)
        found: dict[str, float] = {}
        for name, (column, teacher) in banks.items():
            scores = metrics.score(columns.logits(problem.student, column.x, problem.spec), teacher)
            found[f"agreement_{name}"], found[f"signal_{name}"] = (scores[key] or 0.0 for key in ("agreement", "kl"))
        return found

    def _bank(self, problem: Problem, sampler: Sampler, state: Any) -> tuple[columns.Column, Tensor]:
        """Rows, and what the teacher says of them, labelled as in training."""
        column = columns.draws_column(sampler.name, sampler, state, problem, self._rows)
        return column, columns.logits(problem.teacher, column.x, problem.spec, column.labelling)


def unsearched(sampler: Sampler) -> Sampler | None:
    """The sampler, or the base under its searches, where that does not depend on the student; else None."""
    if not any(part.uses_student for part in walk(sampler)):
        return sampler
    inner = [part for _, part in parts(sampler)]
    return unsearched(inner[0]) if len(inner) == 1 and sampler.uses_student else None
