"""Rounds as a sampler: how many are made, what a draw that teaches nothing leaves behind, what a bank makes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch
from samplers import Augmented, Pooled
from samplers.ingredients import Rounds, banked, unfound
from samplers.state import State, Stream

MakeProblem = Callable[..., Problem]


@dataclass(frozen=True)
class Numbered:
    """Round r is of pixels near r / 10; row i of it has the target i."""

    batch: int = 4
    uses_student: bool = True
    spoil: int = 0
    name: ClassVar[str] = "numbered"

    def begin(self, problem: Problem, seed: int) -> State:
        return State(rounds=0, weight=torch.zeros(3), stream=Stream(seed, problem.device))

    def round(self, state: State, problem: Problem, rng: torch.Generator) -> Batch:
        state.stream.advance()
        state.weight += 1.0  # in place, as an optimiser does
        state.rounds += 1
        if state.rounds == self.spoil:
            return Batch(unfound(problem, self.batch))
        shade = state.rounds / 10 + 0.01 * torch.rand(self.batch, generator=rng)
        x = shade.reshape(-1, 1, 1, 1).expand(self.batch, *problem.spec.shape).contiguous()
        return Batch(x, target=torch.arange(self.batch), info={"loss": torch.tensor(float(state.rounds))})


def shades(x: Tensor) -> list[int]:
    return sorted((10 * x[:, 0, 0, 0]).int().tolist())


def test_makes_the_rounds_that_a_draw_needs(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Rounds(Numbered())
    state = sampler.init(problem, 1)
    batch = sampler.draw(state, problem, 4)
    assert shades(batch.x) == [1, 1, 1, 1]
    assert batch.target is not None
    assert batch.target.tolist() == [0, 1, 2, 3]
    assert shades(sampler.draw(state, problem, 8).x) == [2, 2, 2, 2, 3, 3, 3, 3]
    batch = sampler.draw(state, problem, 5)
    assert state.recipe.rounds == 5
    assert set(shades(batch.x)) <= {4, 5}
    assert batch.info["loss"].item() == 4.5
    assert batch.target is not None
    # rows keep their targets, and are taken at random
    taken = [sampler.draw(state, problem, 2).target for _ in range(20)]
    assert len({tuple(t.tolist()) for t in taken if t is not None}) > 5


def test_learns_nothing_where_nothing_is_to_be_learnt(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Rounds(Numbered())
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 4)
    one, two = (sampler.draw(state, problem, 8, learn=False) for _ in range(2))
    assert shades(one.x) == [2, 2, 2, 2, 3, 3, 3, 3]  # from where the next round begins
    assert not torch.equal(one.x, two.x)
    assert (state.recipe.rounds, state.recipe.stream.step) == (1, 1)
    assert state.recipe.weight.tolist() == [1.0, 1.0, 1.0]
    kept = sampler.draw(state, problem, 8)
    assert shades(kept.x) == shades(one.x)
    assert not torch.isin(kept.x[:, 0, 0, 0], torch.cat([one.x, two.x])[:, 0, 0, 0]).any()


@pytest.mark.parametrize("student", [True, False])
def test_fresh_images_of_a_bank_are_of_what_has_been_learnt(student: bool, make_problem: MakeProblem) -> None:
    problem, bank = make_problem(), Pooled(Rounds(Numbered(uses_student=student)), round=4, every=1, warmup=2)
    state = bank.init(problem, 1)
    for _ in range(3):
        bank.draw(state, problem, 4)
    before = state.base.stream.step
    fresh = bank.draw(state, problem, 4, learn=False)
    assert shades(fresh.x) == [5, 5, 5, 5]  # round 5 is the next; one from the beginning would be of shade 1
    assert state.base.recipe.rounds == state.rounds == 4
    assert student or state.base.stream.step == before  # a shared bank must not even have its stream moved


def test_a_bank_shows_its_images_cropped_and_mirrored_unless_told_otherwise(make_problem: MakeProblem) -> None:
    recipe = Numbered()
    whole = banked(recipe, rows=8, every=3, warmup=2, capacity=16, crop=1, flip=True, evict="random")
    pool = Pooled(Rounds(recipe), round=8, every=3, warmup=2, capacity=16, evict="random")
    assert whole == Augmented(pool, crop=1, flip=True)
    plain = banked(recipe, rows=8, every=None, warmup=1, crop=0, flip=False)
    assert plain == Pooled(Rounds(recipe), round=8, every=None, warmup=1)
    problem = make_problem()
    state = plain.init(problem, 1)
    assert len(plain.draw(state, problem, 5)) == 5
    assert state.base.recipe.rounds == 2  # rounds of 8 rows are two rounds of this recipe


def test_a_search_that_found_nothing_finite_ends_the_run(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Pooled(Rounds(Numbered(spoil=2)), round=4, every=1)
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 4)
    assert bool(sampler.draw(state, problem, 4).x.isnan().all())
