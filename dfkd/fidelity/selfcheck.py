"""Whether a distillation worked, where there is no data to say so: agreement on inputs anyone can make.

No paper: the student and the teacher are asked about fresh draws of the training sampler and of samplers that were not
trained on. High on its own draws and low elsewhere means that the sampler does not pin the teacher down; none of it is
a test score.
"""

import math
from collections.abc import Mapping
from typing import Any

from dfkd.fidelity import columns, metrics
from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive

__all__ = ["selfcheck"]


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
