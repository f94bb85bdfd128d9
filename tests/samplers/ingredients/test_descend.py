"""The loop, the best images, the objective and the views that all recipes share."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from samplers.ingredients import (
    Balance,
    BatchNormNorm,
    Best,
    Disagreement,
    Objective,
    OneHot,
    PixelNorm,
    Views,
    descend,
    jitter,
)

MakeProblem = Callable[..., Problem]


def hooks(problem: Problem) -> int:
    return sum(len(part._forward_pre_hooks) for part in problem.teacher.module.modules())


def forwards(problem: Problem) -> tuple[int, int]:
    return tuple(probe.counts["synthesise"]["forward"] for probe in (problem.teacher, problem.student))  # type: ignore[return-value]


@dataclass(frozen=True)
class Spy:
    """A term that keeps what it was called with."""

    calls: list[Any] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)
    rounds: list[Any] = field(default_factory=list)
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> Tensor:
        del problem
        return torch.tensor(seed)

    def __call__(self, state: Any, views: Views) -> Tensor:
        self.calls.append(views)
        assert state.ndim == 0
        return (views.x**2).sum()

    def after_step(self, state: Any) -> None:
        self.steps.append((state, len(self.calls)))

    def end_round(self, state: Any, views: Views) -> None:
        self.rounds.append((state, views))


# -- best --------------------------------------------------------------------------------------------------------


def test_best_is_a_copy_of_the_least_loss_after_the_loss_has_risen() -> None:
    x = torch.zeros(2, 1, 2, 2)
    best = Best(x)
    for value, loss in ((1.0, 5.0), (2.0, 3.0), (3.0, 4.0)):
        with torch.no_grad():
            x.fill_(value)  # in place, as an optimiser does
        best.offer(x, torch.tensor(loss))
    x.fill_(9.0)
    assert torch.equal(best.x, torch.full_like(x, 2.0))
    assert best.loss == 3.0


@pytest.mark.parametrize("wild", [float("nan"), float("inf"), -float("inf")])
def test_best_of_a_search_that_diverged_is_none(wild: float) -> None:
    """Wherever it did, and whatever comes after: its start is no result."""
    for losses in ((wild, 2.0), (2.0, wild, 1.0), (3.0, 2.0, wild)):
        best = Best(torch.zeros(2, 1, 2, 2))
        assert torch.isnan(best.x).all()
        for loss in losses:
            best.offer(torch.ones(2, 1, 2, 2), torch.tensor(loss))
        assert torch.isnan(best.x).all()
        assert torch.isnan(best.loss)


def test_best_carries_no_graph() -> None:
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    best = Best(x)
    best.offer(x, (x**2).sum())
    assert not best.x.requires_grad
    assert not best.loss.requires_grad


# -- objective ---------------------------------------------------------------------------------------------------


def test_objective_is_the_weighted_sum_and_asks_each_model_once(make_problem: MakeProblem) -> None:
    problem = make_problem()
    x, target = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    parts = ((2.0, OneHot("target")), (3.0, Balance()), (0.5, BatchNormNorm()), (0.25, Disagreement("kl")))
    singles = []
    for weight, term in parts:
        one = Objective(((1.0, term),))
        with one.watching(problem) as look:
            singles.append(weight * one(one.init(problem, 0, "test"), look(x, target)))
    before = forwards(problem)
    whole = Objective(parts)
    states = whole.init(problem, 0, "test")
    with whole.watching(problem) as look:
        total = whole(states, look(x, target))
    torch.testing.assert_close(total, torch.stack(singles).sum())
    assert forwards(problem) == (before[0] + 4, before[1] + 4)


def test_a_term_of_weight_0_is_not_evaluated_and_its_hooks_are_off(make_problem: MakeProblem) -> None:
    problem, spy = make_problem(), Spy()
    x = torch.full((2, 1, 8, 8), 0.5)
    objective = Objective(((0.0, spy), (0.0, BatchNormNorm()), (0.0, Disagreement()), (1.0, OneHot())))
    assert objective.needs == ("input_grad",)
    assert not objective.uses_student
    with objective.watching(problem) as look:
        assert hooks(problem) == 0
        objective(objective.init(problem, 0, "test"), look(x, None))
    assert spy.calls == []
    assert forwards(problem)[1] == 0


def test_hooks_live_no_longer_than_the_watching(make_problem: MakeProblem) -> None:
    problem, objective = make_problem(), Objective(((1.0, BatchNormNorm()),))
    for _ in range(3):
        with objective.watching(problem):
            assert hooks(problem) == 3  # two layers, and the one that empties the list
        assert hooks(problem) == 0
    with pytest.raises(RuntimeError, match="planted"), objective.watching(problem):
        raise RuntimeError("planted")
    assert hooks(problem) == 0


def test_the_layers_seen_are_those_of_the_images_judged(make_problem: MakeProblem) -> None:
    problem, objective = make_problem(), Objective(((1.0, BatchNormNorm()),))
    dark, bright = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    with objective.watching(problem) as look:
        first, second = look(dark, None), look(bright, None)
        assert len(first.batchnorms) == len(second.batchnorms) == 2
        assert not torch.equal(first.batchnorms[0].mean, second.batchnorms[0].mean)
        assert torch.equal(first.batchnorms[0].mean, look(dark, None).batchnorms[0].mean)


# -- the loop ----------------------------------------------------------------------------------------------------


def test_descend_is_gradient_descent_by_hand(make_problem: MakeProblem) -> None:
    problem, spy = make_problem(), Spy()
    x = torch.full((1, 1, 8, 8), 0.8, requires_grad=True)
    objective = Objective(((0.5, spy),))
    states = objective.init(problem, 7, "test")
    optimiser = torch.optim.SGD([x], lr=0.1)
    factors = [1.0, 0.5, 0.0]
    best = Best(x)
    loss = descend(problem, objective, states, lambda: x, optimiser, 3, rate=lambda step: factors[step], best=best)
    # x <- x - rate * x: 0.8, then times 0.9, then times 0.95, then as it is
    torch.testing.assert_close(x.detach(), torch.full_like(x, 0.8 * 0.9 * 0.95))
    assert loss.item() == pytest.approx(32 * (0.8 * 0.9 * 0.95) ** 2, rel=1e-5)
    torch.testing.assert_close(best.x, x.detach())
    assert optimiser.param_groups[0]["lr"] == 0.1  # as it was: a kept optimiser starts its next round from here
    assert len(spy.calls) == 3
    assert spy.steps == [(states[0], 1), (states[0], 2), (states[0], 3)]
    ((state, views),) = spy.rounds
    assert state is states[0]
    assert torch.equal(views.images, best.x)  # the images that are kept, not the last ones


def test_after_is_called_once_per_step_and_the_view_is_shown(make_problem: MakeProblem) -> None:
    problem, spy, clips = make_problem(), Spy(), []
    x = torch.arange(64.0).reshape(1, 1, 8, 8).requires_grad_(True)
    descend(
        problem,
        Objective(((1.0, spy),)),
        [torch.tensor(0)],
        lambda: x,
        torch.optim.SGD([x], lr=0.0),
        2,
        view=lambda image: image.flip(3),
        after=lambda: clips.append(1),
    )
    assert len(clips) == 2
    assert all(torch.equal(views.x, x.flip(3)) for views in spy.calls)


# -- views -------------------------------------------------------------------------------------------------------


def test_jitter_moves_no_further_than_asked_and_everywhere_within() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 4, 4] = 1.0
    view, places = jitter(random.Random(1), roll=0.25, flip=0.0), set()
    for _ in range(400):
        row, column = divmod(int(view(x).argmax()), 8)
        places.add((row - 4, column - 4))
    # a place of 25 is missed in 400 draws with probability (24/25)^400 = 8e-8
    assert places == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_jitter_mirrors_as_often_as_asked() -> None:
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    for flip, expected in ((0.0, {0.0}), (1.0, {1.0}), (0.5, {0.0, 1.0})):
        view = jitter(random.Random(1), roll=0.0, flip=flip)
        assert {view(x)[0, 0, 0, 0].item() for _ in range(40)} == expected  # both sides but with probability 2^-39


def test_a_roll_is_undone_on_the_way_back() -> None:
    """What is pixel-wise is the same for the images whether they were shown rolled or not."""
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    weights = torch.rand(8, 8, generator=torch.Generator().manual_seed(2))
    (slope,) = torch.autograd.grad((jitter(random.Random(3), 0.5, 0.5)(x) ** 2).sum(), x)
    torch.testing.assert_close(slope, 2 * x.detach())
    coins = random.Random(3), random.Random(3)
    (slope,) = torch.autograd.grad((jitter(coins[0], 0.5, 0.5)(x) * weights).sum(), x)
    assert not torch.equal(slope[0, 0], weights)  # the view was not the identity
    torch.testing.assert_close(jitter(coins[1], 0.5, 0.5)(slope)[0, 0], weights)


def test_pixel_norm_sees_the_view(make_problem: MakeProblem) -> None:
    objective = Objective(((1.0, PixelNorm()),))
    problem = make_problem(low=-1.0, high=1.0)
    with objective.watching(problem) as look:
        far = objective([None], look(torch.ones(3, 1, 8, 8), None))
    assert far.item() == pytest.approx(4.0)  # 64 pixels, half a span from the middle each
    assert forwards(problem) == (0, 0)
