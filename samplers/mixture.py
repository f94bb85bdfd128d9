"""Rows of several samplers in fixed proportions, in one batch.

no paper. A part's share of n rows is a whole number: n times its weight, rounded down or up so that the shares add up
to n. Where the products are whole, the shares never change; where not, one random offset per draw decides which parts
are rounded up (systematic sampling), so that every part has its weight in expectation even when n is below the number
of parts. The teacher labels rows of different BatchNorm modes, and `batch` rows of different parts, apart.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch, Labelling, Outputs

from .checks import a_sampler, some_rows
from .state import State


@dataclass(frozen=True)
class Mixture:
    """The parts' rows one part after the other; `source` is the part's place, the outermost where mixtures nest.

    samplers: two or more parts. weights: one number > 0 per part, scaled to sum to 1; None weighs them equally.
    """

    samplers: tuple[Sampler, ...]
    weights: tuple[float, ...] | None = None
    name: ClassVar[str] = "mixture"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.samplers, (tuple, list)) or len(self.samplers) < 2:
            raise ValueError(f"samplers: expected two or more samplers, found {self.samplers!r}")
        object.__setattr__(self, "samplers", tuple(self.samplers))
        for place, part in enumerate(self.samplers):
            a_sampler(f"samplers.{place}", part)
        if self.weights is None:
            return
        object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.weights) != len(self.samplers):
            raise ValueError(f"weights: expected {len(self.samplers)} numbers, found {len(self.weights)}")
        if not all(0.0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights: expected numbers > 0, found {self.weights!r}")

    def init(self, problem: Problem, seed: int) -> State:
        """step counts draws; rows are the parts' shares of the last draw that was learnt from."""
        states = [part.init(problem, derive(seed, "part", place)) for place, part in enumerate(self.samplers)]
        return State(seed=seed, step=0, states=states, rows=[0] * len(states))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        state.step += 1
        shares = self.shares(n, derive(state.seed, "shares", state.step) / 2**63)
        if learn:
            state.rows = shares
        drawn = {
            place: part.draw(state.states[place], problem, shares[place], learn)
            for place, part in enumerate(self.samplers)
            if shares[place]
        }
        absent = tuple(place for place, rows in enumerate(shares) if not rows)
        return _joined(drawn, absent, problem.spec.num_classes)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        """Each part is told of its own rows: batch is what the last draw gave, in its order."""
        if len(batch) != sum(state.rows):
            raise ValueError(f"batch: expected the {sum(state.rows)} rows of the last draw, found {len(batch)}")
        first = 0
        for part, inner, rows in zip(self.samplers, state.states, state.rows, strict=True):
            if rows:
                here = slice(first, first + rows)
                part.observe(inner, _cut(batch, here), loss[here])
            first += rows

    def shares(self, n: int, offset: float) -> list[int]:
        """How many of n rows each part draws; offset in [0, 1) decides what is rounded up."""
        weights = self.weights or (1.0,) * len(self.samplers)
        total, reached, ends = math.fsum(weights), 0.0, [0]
        for weight in weights[:-1]:
            reached += weight / total
            # products that are whole but for rounding errors count as whole
            ends.append(math.floor(round(n * reached, 9) + offset))
        return [after - before for before, after in zip(ends, [*ends[1:], n], strict=True)]


def _joined(drawn: dict[int, Batch], absent: tuple[int, ...], num_classes: int) -> Batch:
    """One batch of the parts' batches, by the part's place; absent: parts that have no rows in it."""
    batches = list(drawn.values())
    first = batches[0]
    device, n = first.x.device, [len(batch) for batch in batches]
    source = [torch.full((rows,), place, device=device) for rows, place in zip(n, drawn, strict=True)]
    targets = [b.target if b.target is not None else torch.full((len(b),), -1, device=device) for b in batches]
    weights = [b.weight if b.weight is not None else torch.ones(len(b), device=device) for b in batches]
    labelling = _runs(batches)
    return Batch(
        x=torch.cat([batch.x for batch in batches]),
        **_truths(drawn, absent, num_classes),
        target=torch.cat(targets) if any(b.target is not None for b in batches) else None,
        weight=torch.cat(weights) if any(b.weight is not None for b in batches) else None,
        source=torch.cat(source),
        info={f"{place}.{key}": value for place, batch in drawn.items() for key, value in batch.info.items()},
        labelling=labelling,
        teacher=_answers(batches, labelling),
    )


def _truths(drawn: dict[int, Batch], absent: tuple[int, ...], num_classes: int) -> dict[str, Any]:
    """`y` where all parts know classes; where some do, what they know as `known`, and which they are.

    Parts without rows are among them: a loss on such a part is 0 for this batch, not in want of labels.
    """
    labelled = (*(place for place, batch in drawn.items() if batch.y is not None), *absent)
    soft = any(batch.y is not None and batch.y.ndim == 2 for batch in drawn.values())
    truths = torch.cat([_classes(batch, num_classes if soft else None) for batch in drawn.values()])
    if all(batch.y is not None for batch in drawn.values()):
        return {"y": truths}
    return {"known": truths, "labelled": labelled} if labelled else {}


def _classes(batch: Batch, num_classes: int | None) -> Tensor:
    """(n,) classes, -1 where they are not known; with num_classes as shares of them, (n, k), 0 where not known."""
    y, n, device = batch.y, len(batch), batch.x.device
    if num_classes is None:
        return torch.full((n,), -1, device=device) if y is None else y
    if y is None or y.ndim == 2:
        return torch.zeros(n, num_classes, device=device) if y is None else y
    return torch.zeros(n, num_classes, device=device).scatter_(1, y[:, None], 1.0)


def _runs(batches: list[Batch]) -> Labelling:
    """The parts' runs in order. Neighbours in `eval` are one run, as rows do not depend on their company there."""
    runs: list[tuple[int, str]] = []
    for rows, mode in (run for batch in batches for run in batch.labelling):
        if runs and mode == "eval" == runs[-1][1]:
            runs[-1] = (runs[-1][0] + rows, mode)
        else:
            runs.append((rows, mode))
    return tuple(runs)  # type: ignore[arg-type]  # the modes are those of the parts


def _answers(batches: list[Batch], labelling: Labelling) -> Outputs | None:
    """What the teacher said, where it is known of all rows, under the same conditions and of the same layers."""
    known = [b.teacher for b in batches if b.teacher is not None and b.teacher.labelling == b.labelling]
    if len(known) < len(batches):
        return None
    first = known[0]
    if any(o.precision != first.precision or o.features.keys() != first.features.keys() for o in known):
        return None
    features = {path: torch.cat([outputs.features[path] for outputs in known]) for path in first.features}
    return Outputs(torch.cat([outputs.logits for outputs in known]), features, labelling, first.precision)


def _cut(batch: Batch, here: slice) -> Batch:
    """Consecutive rows of a batch, without what the teacher said, with their own runs of labelling."""
    runs, first = [], 0
    for rows, mode in batch.labelling:
        inside = min(first + rows, here.stop) - max(first, here.start)
        if inside > 0:
            runs.append((inside, mode))
        first += rows
    columns = {
        key: None if value is None else value[here]
        for key, value in ((key, getattr(batch, key)) for key in ("y", "target", "weight", "source"))
    }
    return replace(
        batch, x=batch.x[here], labelling=tuple(runs), teacher=None, info={}, known=None, labelled=(), **columns
    )
