"""Rows are drawn as often as their losses say, are corrected for it, and losses find the rows they belong to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dfkd.problem import Problem
from dfkd.types import Batch
from samplers import Augmented, Mixture, Pooled, Prioritised, Uniform
from samplers.prioritised import stratified
from samplers.state import State

MakeProblem = Callable[..., Problem]

BASE = Uniform(labelling="eval")


def slow_chances(losses: list[float], exponent: float, offset: float) -> list[float]:
    weights = [(loss + offset) ** exponent for loss in losses]
    return [weight / sum(weights) for weight in weights]


def images(batch: Batch) -> list[bytes]:
    """What tells rows of a bank from one another."""
    return [row.numpy().tobytes() for row in batch.x]


def filled(problem: Problem, sampler: Prioritised) -> tuple[State, dict[bytes, int]]:
    """A state with its bank, and the place of every image in it."""
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 1)
    bank = sampler.pool.take(state.pool, problem, torch.arange(len(state.pool.images)))
    return state, {image: place for place, image in enumerate(images(bank))}


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_draws_each_row_as_often_as_its_loss_says(make_problem: MakeProblem, exponent: float) -> None:
    problem, sampler = make_problem(), Prioritised(BASE, round=8, every=None, exponent=exponent)
    state, place = filled(problem, sampler)
    losses = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 0.05]
    state.losses = torch.tensor(losses)
    counts, n = [0] * 8, 1000
    for image in images(sampler.draw(state, problem, n)):
        counts[place[image]] += 1
    for count, chance in zip(counts, slow_chances(losses, exponent, 0.01), strict=True):
        assert abs(count - n * chance) < 2.0  # each row's share of the n strata, and two broken ones


def test_weights_are_the_correction_over_the_largest(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Prioritised(BASE, round=4, every=None)
    state, place = filled(problem, sampler)
    losses = [0.0, 0.3, 1.0, 5.0]
    state.losses = torch.tensor(losses)
    chances = slow_chances(losses, 0.6, 0.01)
    corrections = [(4 * chance) ** -0.4 for chance in chances]
    batch = sampler.draw(state, problem, 64)
    assert batch.weight is not None
    expected = [corrections[place[image]] / max(corrections) for image in images(batch)]
    torch.testing.assert_close(batch.weight, torch.tensor(expected))


def test_a_row_weighs_the_same_in_whatever_company(make_problem: MakeProblem) -> None:
    """Alone in its draw, a row that comes too often is still corrected for it."""
    problem, sampler = make_problem(), Prioritised(BASE, round=3, every=None)
    state, _ = filled(problem, sampler)
    state.losses = torch.tensor([0.0, 1e6, 0.0])
    batch = sampler.draw(state, problem, 1)
    assert state.places.tolist() == [1]
    assert batch.weight is not None
    assert batch.weight.item() == pytest.approx((1e6 / 0.01) ** (-0.6 * 0.4), rel=1e-3)


def test_fully_corrected_the_weighted_mean_is_that_of_even_draws(make_problem: MakeProblem) -> None:
    """sum w f / sum w tends to the mean of f over the bank, whatever the priorities."""
    problem, sampler = make_problem(), Prioritised(BASE, round=6, every=None, correction=1.0)
    state, place = filled(problem, sampler)
    state.losses = torch.tensor([0.0, 0.1, 1.0, 9.0, 0.5, 3.0])
    batch = sampler.draw(state, problem, 20_000)
    assert batch.weight is not None
    f = torch.tensor([float(place[image]) for image in images(batch)])
    # a row's count is off by at most 2 of 20 000 times its chance, 0.019 at least: 1 % a row, so 0.01 * 5 in all
    assert ((batch.weight * f).sum() / batch.weight.sum()).item() == pytest.approx(2.5, abs=0.05)
    assert f.mean().item() > 3.0  # without the weights it is not


def test_losses_go_to_the_rows_they_belong_to(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Prioritised(BASE, round=16, every=None)
    state, place = filled(problem, sampler)
    for turn in range(3):
        batch = sampler.draw(state, problem, 5)
        before, loss = state.losses.clone(), torch.rand(5, generator=torch.Generator().manual_seed(turn))
        sampler.observe(state, batch, loss)
        slow: dict[int, float] = {}
        for image, value in zip(images(batch), loss.tolist(), strict=True):
            slow[place[image]] = max(value, slow.get(place[image], 0.0))
        for row in range(16):
            assert state.losses[row].item() == (slow[row] if row in slow else before[row].item())


def test_a_row_drawn_again_forgets_its_old_loss(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Prioritised(BASE, round=1, every=None)
    state = sampler.init(problem, 1)
    for loss, kept in (([3.0, 1.0], 3.0), ([0.5, 0.25], 0.5)):
        sampler.observe(state, sampler.draw(state, problem, 2), torch.tensor(loss))
        assert state.losses.tolist() == [kept]


def test_new_rows_are_as_hard_as_the_hardest_and_the_oldest_leave(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Prioritised(BASE, round=4, every=1, capacity=8)
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 1)
    torch.testing.assert_close(sampler.chances(state), torch.full((4,), 0.25, dtype=torch.float64))
    state.losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    sampler.draw(state, problem, 1)
    torch.testing.assert_close(
        sampler.chances(state).float(), torch.tensor(slow_chances([1, 2, 3, 4, 4, 4, 4, 4], 0.6, 0.01))
    )
    state.losses = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    newer = state.pool.images[4:].clone()
    sampler.draw(state, problem, 1)
    assert torch.equal(state.pool.images[:4], newer)
    torch.testing.assert_close(
        sampler.chances(state).float(), torch.tensor(slow_chances([5, 6, 7, 8, 8, 8, 8, 8], 0.6, 0.01))
    )


def test_hears_its_rows_losses_through_composites(make_problem: MakeProblem) -> None:
    """A mixture tells it its own rows; an augmentation changes pixels, not places."""
    problem, inner = make_problem(), Prioritised(BASE, round=8, every=None)
    mixture = Mixture((Uniform(), Augmented(inner, crop=1)))
    state = mixture.init(problem, 1)
    batch = mixture.draw(state, problem, 6)
    own = state.states[1].base
    loss = torch.tensor([9.0, 9.0, 9.0, 0.1, 0.2, 0.3])
    mixture.observe(state, batch, loss)
    slow: dict[int, float] = {}
    for place, value in zip(own.places.tolist(), loss[3:].tolist(), strict=True):
        slow[place] = max(value, slow.get(place, 0.0))
    expected = [slow.get(row, torch.inf) for row in range(8)]
    torch.testing.assert_close(own.losses, torch.tensor(expected))


def test_refuses_losses_of_other_rows(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Prioritised(BASE, round=4)
    state = sampler.init(problem, 1)
    batch = sampler.draw(state, problem, 3)
    with pytest.raises(ValueError, match="batch: expected the 3 rows of the last draw, found 2"):
        sampler.observe(state, batch, torch.ones(2))


def test_rows_and_carried_answers_are_the_pools(make_problem: MakeProblem) -> None:
    """The bank itself is that of a pool of the same settings."""
    problem, sampler = make_problem(), Prioritised(BASE, round=6, every=2, capacity=12)
    pool = Pooled(BASE, round=6, every=2, capacity=12)
    state, other = sampler.init(problem, 1), pool.init(problem, 1)
    for _ in range(6):
        batch = sampler.draw(state, problem, 4)
        pool.draw(other, problem, 4)
        assert torch.equal(state.pool.images, other.images)
        assert len(state.losses) == len(other.images)
        assert batch.teacher is not None
        with torch.no_grad():
            torch.testing.assert_close(batch.teacher.logits, problem.teacher(batch.x).logits)


def test_strata_have_no_gap_and_no_overlap() -> None:
    chances = torch.tensor([0.25, 0.0, 0.5, 0.25], dtype=torch.float64)
    places = stratified(chances, 4, torch.Generator().manual_seed(1))
    assert places.tolist() == [0, 2, 2, 3]


def test_diverged_losses_draw_rows_still(make_problem: MakeProblem) -> None:
    """The engine stops a diverged run at its next log point; until then there is nothing to crash on."""
    problem, sampler = make_problem(), Prioritised(BASE, round=4, every=None)
    state = sampler.init(problem, 1)
    for value in (float("nan"), float("inf")):
        sampler.observe(state, sampler.draw(state, problem, 4), torch.full((4,), value))
        assert len(sampler.draw(state, problem, 3)) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"exponent": -0.1}, "exponent: expected a number >= 0, found -0.1"),
        ({"offset": 0.0}, "offset: expected a number > 0, found 0.0"),
        ({"correction": 1.5}, r"correction: expected a number in \[0, 1\], found 1.5"),
        ({"capacity": 100}, "capacity: expected an integer >= 256, found 100"),
        ({"warmup": 0}, "warmup: expected an integer >= 1, found 0"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Prioritised(BASE, **given)
