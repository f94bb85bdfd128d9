"""The patch critic as a term: its two losses by hand, one step of it per judgement, and nothing leaks either way."""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from samplers.ingredients import Views
from samplers.ingredients.critic import Patches
from samplers.state import State

MakeProblem = Callable[..., Problem]

REAL, FAKE = torch.rand(2, 6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def seen(images: Tensor) -> Views:
    return cast(Views, SimpleNamespace(images=images, x=images.flip(3)))  # a view of them must not matter


def bce(logit: float, real: bool) -> float:
    """-ln of the probability that the critic gives to the truth."""
    p = 1.0 / (1.0 + math.exp(-logit))
    return -math.log(p if real else 1.0 - p)


def weights(state: State) -> list[Tensor]:
    return [p.detach().clone() for p in state.critic.parameters()]


def begun(make_problem: MakeProblem, term: Patches) -> State:
    state: State = term.init(make_problem(), 1)
    return state


def test_equals_its_definition(make_problem: MakeProblem) -> None:
    """Without real images the critic stands still: -ln D summed over patches, over the rows."""
    term = Patches(width=4)
    state = begun(make_problem, term)
    before = weights(state)
    value = term(state, seen(FAKE))
    logits = state.critic(FAKE).tolist()
    slow = sum(bce(cell, real=True) for image in logits for row in image for cell in row) / 6
    assert value.item() == pytest.approx(slow, rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state), strict=True))


def test_the_critic_steps_first_and_down_its_own_loss(make_problem: MakeProblem) -> None:
    term = Patches(width=4, learning_rate=0.01)
    state = begun(make_problem, term)
    slow = copy.deepcopy(state.critic).requires_grad_(True)
    optimiser = torch.optim.Adam(slow.parameters(), lr=0.01, betas=(0.5, 0.999))
    fake = torch.nn.functional.binary_cross_entropy_with_logits(slow(FAKE), torch.zeros(6, 2, 2), reduction="sum")
    real = torch.nn.functional.binary_cross_entropy_with_logits(slow(REAL), torch.ones(6, 2, 2), reduction="sum")
    ((fake + real) / 12).backward()
    optimiser.step()
    term.show(state, REAL)
    value = term(state, seen(FAKE))
    for a, b in zip(state.critic.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-6)
    cells = slow(FAKE).flatten().tolist()
    assert value.item() == pytest.approx(sum(bce(cell, real=True) for cell in cells) / 6, rel=1e-4)


def test_one_step_for_each_showing(make_problem: MakeProblem) -> None:
    term = Patches(width=4)
    state = begun(make_problem, term)
    for steps in (1, 2):
        term.show(state, REAL)
        assert state.real is not None
        term(state, seen(FAKE))
        assert state.real is None  # so a saved state holds no data
        before = weights(state)
        term(state, seen(FAKE))
        assert all(torch.equal(a, b) for a, b in zip(before, weights(state), strict=True))
        assert {int(entry["step"]) for entry in state.optimiser.state.values()} == {steps}


def test_gradients_reach_the_candidates_and_stop_at_the_critic(make_problem: MakeProblem) -> None:
    term = Patches(width=4)
    state = begun(make_problem, term)
    term.show(state, REAL)
    x = FAKE.clone().requires_grad_(True)
    term(state, seen(x)).backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(dim=(1, 2, 3)) > 0.0).all()
    assert all(p.grad is None and not p.requires_grad for p in state.critic.parameters())


def test_learns_to_tell_the_two_apart(make_problem: MakeProblem) -> None:
    term = Patches(width=8, learning_rate=0.01)
    state = begun(make_problem, term)
    said = []
    for _ in range(40):
        term.show(state, REAL)
        said.append(term(state, seen(FAKE)).item())
    assert said[0] == pytest.approx(4 * math.log(2.0), rel=0.5)  # four patches that could be either
    assert said[-1] > 2.0 * said[0]


def test_looking_without_gradients_changes_nothing(make_problem: MakeProblem) -> None:
    term = Patches(width=4)
    state = begun(make_problem, term)
    before = {key: value.clone() for key, value in state.critic.state_dict().items()}
    with torch.no_grad():
        term(state, seen(FAKE))
    assert all(torch.equal(before[key], value) for key, value in state.critic.state_dict().items())


def test_the_rate_has_a_factor(make_problem: MakeProblem) -> None:
    term = Patches(width=4)
    state = begun(make_problem, term)
    before = weights(state)
    term.show(state, REAL, rate=0.0)
    term(state, seen(FAKE))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state), strict=True))


def test_names_what_is_wrong(make_problem: MakeProblem) -> None:
    state = begun(make_problem, Patches(width=4))
    Patches(width=4).show(state, REAL[:2])
    with pytest.raises(ValueError, match="real: expected 6 images, as many as candidates, found 2"):
        Patches(width=4)(state, seen(FAKE))
    with pytest.raises(ValueError, match="width: expected an integer >= 1, found 0"):
        Patches(width=0)
    with pytest.raises(ValueError, match=r"learning_rate: expected a number > 0, found 0\.0"):
        Patches(learning_rate=0.0)
