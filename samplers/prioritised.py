"""A bank from which rows that the student still gets wrong are drawn more often, and count less for it.

Schaul, Quan, Antonoglou, Silver: Prioritized Experience Replay. 2015. arXiv:1511.05952. Changed: the priority is the
student's loss in matching the teacher, the correction is over its largest value in the whole bank, and rows that are
new are taken for as hard as the hardest one known.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch

from .checks import at_least, between, positive, some_rows
from .pooled import Pooled
from .state import State, Stream


@dataclass(frozen=True)
class Prioritised:
    """Rows of a bank, each draw of a row with probability P proportional to (its loss + offset) ** exponent; `weight`
    is (N P) ** -correction for N rows, over the largest of the bank, so it is at most 1.

    base: what fills the bank; labelled in one BatchNorm mode. round: rows asked of it at a time. every: draws after
    which another round is added, None adds none. warmup: rounds before the first draw, >= 1. capacity: most rows that
    are kept, the newest; None keeps all. exponent: 0 draws evenly, 1 in proportion, >= 0. offset: added to each
    loss, so that rows without any are still drawn, > 0, in the unit of the objective. correction: 0 leaves rows their
    over-representation, 1 takes it away altogether, 0 to 1.

    A row's loss is the one it last had, as the objective gave it; where a composite around this one tells no losses,
    all rows stay equal. Where a row is drawn twice at once the larger loss is kept. Draws that nothing is learnt from
    are fresh rows of the base, without weights.
    """

    base: Sampler
    round: int = 256
    every: int | None = 400
    warmup: int = 1
    capacity: int | None = 5000
    exponent: float = 0.6
    offset: float = 0.01
    correction: float = 0.4
    name: ClassVar[str] = "prioritised"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True  # never asked, but what is drawn follows its losses

    def __post_init__(self) -> None:
        assert self.pool.evict == "oldest"  # priorities follow the rows by place; the pool checks the settings above
        at_least(self, 0.0, "exponent")
        positive(self, "offset")
        between(self, 0.0, 1.0, "correction")

    @property
    def pool(self) -> Pooled:
        """The bank."""
        return Pooled(self.base, self.round, self.every, self.warmup, self.capacity)

    def init(self, problem: Problem, seed: int) -> State:
        """losses (N,): of the bank's rows, infinite where none is known. places: of the last draw's rows in it."""
        device = problem.device
        return State(
            stream=Stream(derive(seed, self.name), device),
            pool=self.pool.init(problem, seed),
            losses=torch.empty(0, device=device),
            places=torch.empty(0, dtype=torch.int64, device=device),
        )

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        rng = state.stream.advance()
        if not learn:
            return self.pool.fresh(state.pool, problem, n)
        before = state.pool.rounds
        self.pool.grow(state.pool, problem)
        size = len(state.pool.images)
        added = min(size, self.round * (state.pool.rounds - before))
        if added:
            kept = state.losses[len(state.losses) - (size - added) :]
            state.losses = torch.cat([kept, torch.full((added,), torch.inf, device=problem.device)])
        chances = self.chances(state)
        state.places = stratified(chances, n, rng)
        batch = self.pool.take(state.pool, problem, state.places)
        # over the bank's largest correction rather than the draw's: a row counts the same in whatever company
        weight = (chances[state.places] / chances.min()).pow(-self.correction).float()
        return replace(batch, weight=weight if batch.weight is None else weight * batch.weight)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        """Remembers the losses of the last draw's rows; their places are in the state, whatever became of the batch."""
        del batch
        if len(loss) != len(state.places):
            raise ValueError(f"batch: expected the {len(state.places)} rows of the last draw, found {len(loss)}")
        known = loss.detach().float().clamp_min(0.0)
        state.losses = state.losses.scatter_reduce(0, state.places, known, "amax", include_self=False)

    def chances(self, state: State) -> Tensor:
        """(N,) float64, of 1 in all: how likely each row of the bank is to be drawn now."""
        losses = state.losses.double()
        known = torch.where(losses.isinf(), 0.0, losses)
        hardest = torch.where(losses.isinf().all(), 1.0, known.max())
        priority = (torch.where(losses.isinf(), hardest, losses) + self.offset) ** self.exponent
        return priority / priority.sum()


def stratified(chances: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """n places, each drawn from its own n-th of the cumulated chances: a row comes n times its chance, give or take 2.

    Without `multinomial`, which waits for the device to check its probabilities.
    """
    offsets = torch.rand(n, generator=rng, device=chances.device, dtype=torch.float64)
    marks = (torch.arange(n, device=chances.device) + offsets) / n
    ends = chances.cumsum(dim=0)
    return torch.searchsorted(ends, marks * ends[-1], right=True).clamp_max(len(chances) - 1)
