"""Rounds into a bank: of a recipe that makes images a batch at a time, a sampler that draws from all it has made."""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch

from ..augmented import Augmented
from ..checks import some_rows
from ..pooled import Pooled
from ..state import State, Stream

__all__ = ["Recipe", "Rounds", "banked", "unfound"]


class Recipe(Protocol):
    """A frozen dataclass of settings that makes `batch` images a round; what it carries on is in the state of `begin`.

    name: as the sampler's. uses_student: whether a round asks the student or reads the clock; how many rounds there
    were is no clock.
    """

    name: ClassVar[str]

    @property
    def batch(self) -> int: ...

    @property
    def uses_student(self) -> bool: ...

    def begin(self, problem: Problem, seed: int) -> State:
        """The state before the first round. UnsupportedProblem where the teacher lacks what a term needs."""

    def round(self, state: State, problem: Problem, rng: torch.Generator) -> Batch:
        """The next `batch` images, detached, with the classes aimed at as `target`."""


@dataclass(frozen=True)
class Rounds:
    """recipe: whose rounds these are. A draw makes as many as it needs; where it needs less than they give, it takes
    some at random. learn=False: the rounds are made by a copy of the state, of which nothing is kept, so that they
    begin where the next round would and hold other images.
    """

    recipe: Recipe
    name: ClassVar[str] = "rounds"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def uses_student(self) -> bool:
        return self.recipe.uses_student

    def init(self, problem: Problem, seed: int) -> State:
        return State(
            stream=Stream(derive(seed, self.name), problem.device),
            recipe=self.recipe.begin(problem, derive(seed, "recipe")),
        )

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        rng = state.stream.advance()
        carried = state.recipe if learn else copy.deepcopy(state.recipe)
        made = [self.recipe.round(carried, problem, rng) for _ in range(math.ceil(n / self.recipe.batch))]
        x = torch.cat([batch.x for batch in made])
        known = [batch.target for batch in made if batch.target is not None]
        info = {key: torch.stack([batch.info[key] for batch in made]).mean() for key in made[0].info}
        batch = Batch(x, target=torch.cat(known) if len(known) == len(made) else None, info=info)
        return batch if len(x) == n else batch.rows(torch.randperm(len(x), generator=rng, device=x.device)[:n])

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def banked(
    recipe: Recipe,
    *,
    rows: int,
    every: int | None,
    warmup: int,
    capacity: int | None = None,
    crop: int | None = None,
    flip: bool = False,
    area: float = 1.0,
    **pool: Any,
) -> Sampler:
    """What a banked recipe draws from: its rounds, kept, and shown to the student cropped and mirrored at random.

    rows: images added at a time. every, warmup, capacity, pool: as for Pooled; crop, flip, area: as for
    Augmented.
    """
    bank = Pooled(Rounds(recipe), round=rows, every=every, warmup=warmup, capacity=capacity, **pool)
    if crop == 0 and not flip and area == 1.0:
        return bank
    return Augmented(bank, crop=crop, flip=flip, area=area)


def unfound(problem: Problem, n: int) -> Tensor:
    """(n, c, h, w) of NaN, for Best to begin with: what a search has found that never had a finite loss.

    A bank refuses them: its run ends as `diverged`.
    """
    return torch.full((n, *problem.spec.shape), torch.nan, device=problem.device)
