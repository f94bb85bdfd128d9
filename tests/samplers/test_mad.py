"""MAD: half of every draw from a copy that follows the generator slowly. Its objective is tested beside DFQ's."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dfkd.problem import Problem, UnsupportedProblem
from samplers import MAD

MakeProblem = Callable[..., Problem]

SMALL = MAD(batch=8, latent=6, width="small", learning_rate=0.02)


def test_one_step_of_the_generator_and_one_of_the_copy_for_ten_draws(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state, moved = SMALL.init(problem, 0), []
    expected = {name: p.detach().clone() for name, p in state.average.named_parameters()}
    for _ in range(21):
        before = state.generator.stem.weight.detach().clone()
        SMALL.draw(state, problem, 4)
        moved.append(not torch.equal(before, state.generator.stem.weight))
        if moved[-1]:
            for name, p in state.generator.named_parameters():
                expected[name] = 0.95 * expected[name] + 0.05 * p.detach()
        for name, p in state.average.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])
    assert moved == ([True] + [False] * 9) * 2 + [True]
    assert SMALL.decay == 0.95


def test_half_of_every_draw_is_the_copys(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = SMALL.init(problem, 0)
    SMALL.draw(state, problem, 4)
    with torch.no_grad():
        for parameter in state.average.head.parameters():
            parameter.zero_()  # its images are grey now
    for n, own in ((8, 4), (7, 4), (1, 1)):
        x = SMALL.draw(state, problem, n).x
        grey = (x - 0.5).abs().flatten(1).max(dim=1).values < 1e-6
        assert grey.tolist() == [False] * own + [True] * (n - own)


def test_the_copy_is_saved(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = SMALL.init(problem, 0)
    for _ in range(3):
        SMALL.draw(state, problem, 4)
    saved = copy.deepcopy(state.state_dict())
    expected = [SMALL.draw(state, problem, 4).x for _ in range(12)]
    other = SMALL.init(problem, 1)
    other.load_state_dict(saved)
    assert all(torch.equal(SMALL.draw(other, problem, 4).x, x) for x in expected)


def test_needs_batchnorm(make_problem: MakeProblem, brightness: Any) -> None:
    with pytest.raises(UnsupportedProblem, match="mad: needs a teacher with batchnorm"):
        SMALL.init(make_problem(teacher=brightness), 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"decay": 1.0}, r"decay: expected a number in \[0, 1\), found 1.0"),
        ({"decay": -0.1}, "decay: expected a number >= 0"),
        ({"one_hot": -1.0}, "one_hot: expected a number >= 0"),
        ({"batchnorm": "aut"}, "batchnorm: expected .*'auto'.*, found 'aut'"),
        ({"adversarial": 0, "batchnorm": 0, "one_hot": 0}, "one_hot: expected at least one weight"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **given)
