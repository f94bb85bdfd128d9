"""SSD-KD: what a round descends, when the reward joins, the small bank, and that losses reach it."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import InputSpec
from samplers import SSDKD
from samplers.state import State

MakeProblem = Callable[..., Problem]

SMALL: dict[str, Any] = {"latent": 6, "batch": 8, "steps": 2, "capacity": 20, "warmup": 2, "every": 3}
PLAIN: dict[str, Any] = {**SMALL, "crop": 0, "flip": False}


def test_its_numbers_are_as_we_read_them() -> None:
    ours = SSDKD()
    assert (ours.capacity, ours.focus, ours.exponent, ours.offset, ours.correction) == (5000, 2.0, 0.6, 0.01, 0.4)
    assert (ours.steps, ours.generator_rate, ours.latent_rate, ours.meta_rate) == (5, 3e-3, 0.01, 5 * 3e-3)
    assert (ours.warmup, ours.every, ours.batchnorm, ours.momentum) == (20, 400, 10.0, 0.9)


def test_rounds_and_draws(make_problem: MakeProblem) -> None:
    """The warm-up and one more before the first draw, then one for so many draws; the newest rows stay."""
    problem, sampler = make_problem(), SSDKD(**PLAIN)
    state = sampler.init(problem, 1)
    recipe = state.pool.base.recipe
    for draw in range(8):
        before = state.pool.images.clone()
        batch = sampler.draw(state, problem, 5)
        rounds = 3 + draw // 3
        assert (state.pool.rounds, recipe.rounds) == (rounds, rounds)
        assert {int(entry["step"]) for entry in recipe.start.optimiser.state.values()} == {rounds}
        assert len(state.pool.images) == len(state.losses) == min(20, 8 * rounds)
        if draw % 3 == 0 and draw:
            assert torch.equal(state.pool.images[:-8], before[8:])
        assert len(recipe.terms[1].classes) == min(20, 8 * rounds)
        assert batch.weight is not None
        assert 0.0 < batch.weight.min() <= batch.weight.max() <= 1.0


def test_the_student_is_asked_after_the_warm_up(make_problem: MakeProblem) -> None:
    """The reward needs it; so does it for a round of two steps, but not before."""
    problem, sampler = make_problem(), SSDKD(**PLAIN)
    state = sampler.begin(problem, 1)
    asked = []
    for turn in range(4):
        sampler.round(state, problem, torch.Generator().manual_seed(turn))
        asked.append(problem.student.counts["synthesise"]["backward"])
    assert asked == [0, 0, 16, 32]


def slow_first_loss(problem: Problem, sampler: SSDKD, x: Tensor, target: list[int], classes: list[int]) -> float:
    """10 BN + 0.5 modulated CE - reward, from both nets' answers and what the layers are given. No average yet."""
    teacher, student, given = problem.teacher.module.eval(), problem.student.module.eval(), []
    norms = [part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d)]
    hooks = [part.register_forward_pre_hook(lambda _, args: given.append(args[0])) for part in norms]
    with torch.no_grad():
        p, q = (net(x).softmax(dim=1).tolist() for net in (teacher, student))
    for hook in hooks:
        hook.remove()
    loss, n = 0.0, len(x)
    most = max(classes.count(c) + 1 for c in range(10))
    for row, y in enumerate(target):
        rare = 1.0 + math.log(most / (classes.count(y) + 1))
        loss += 0.5 * rare * (1.0 - p[row][y]) ** 2 * -math.log(p[row][y]) / n
        loss -= sampler.reward * p[row][y] * (1.0 - q[row][y]) / n
    for part, layer in zip(norms, given, strict=True):
        assert part.running_mean is not None
        assert part.running_var is not None
        mean = layer.mean(dim=(0, 2, 3))
        var = ((layer - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
        loss += 10.0 * math.sqrt(((mean - part.running_mean) ** 2).sum().item())
        loss += 10.0 * math.sqrt(((var - part.running_var) ** 2).sum().item())
    return loss


def test_a_round_descends_our_sum(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SSDKD(**PLAIN | {"steps": 1, "warmup": 0})
    state = sampler.begin(problem, 1)
    state.terms[1].classes = torch.tensor([1, 1, 1, 4, 4, 0])
    start = copy.deepcopy(state.start.network).train()
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        x = start(torch.randn(8, 6, generator=rng))
    batch = sampler.round(state, problem, torch.Generator().manual_seed(7))
    assert batch.target is not None
    slow = slow_first_loss(problem, sampler, x, batch.target.tolist(), [1, 1, 1, 4, 4, 0])
    assert batch.info["loss"].item() == pytest.approx(slow, rel=1e-4)
    torch.testing.assert_close(batch.x, x)


def test_losses_reach_the_bank_and_change_what_is_drawn(make_problem: MakeProblem) -> None:
    """Through the crop: one row's loss is large, and it comes far more often."""
    problem, sampler = make_problem(), SSDKD(**SMALL)
    state = sampler.init(problem, 1)
    bank: State = state.base
    sampler.observe(state, sampler.draw(state, problem, 200), torch.zeros(200))
    assert not bank.losses.isinf().any()
    bank.losses[3] = 50.0
    batch = sampler.draw(state, problem, 200)
    chance = 50.01**0.6 / (50.01**0.6 + 19 * 0.01**0.6)
    assert abs(int((bank.places == 3).sum()) - 200 * chance) < 2.0
    assert batch.weight is not None
    expected = ((20 * chance) ** -0.4) / ((20 * (1 - chance) / 19) ** -0.4)
    assert batch.weight[bank.places == 3].unique().item() == pytest.approx(expected, rel=1e-4)
    assert (batch.weight[bank.places != 3] == 1.0).all()


def test_a_teacher_without_batchnorm(make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="ssd_kd: needs a teacher with batchnorm"):
        SSDKD(**SMALL).init(problem, 1)
    sampler = SSDKD(**SMALL, batchnorm=0.0)
    assert len(sampler.draw(sampler.init(problem, 1), problem, 3)) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"capacity": 100}, "capacity: expected an integer >= 256, found 100"),
        ({"focus": -1.0}, "focus: expected a number >= 0, found -1.0"),
        ({"correction": 2.0}, r"correction: expected a number in \[0, 1\], found 2.0"),
        ({"meta_rate": 0.0}, "meta_rate: expected a number > 0, found 0.0"),
        ({"one_hot": 0, "batchnorm": 0}, "one_hot: expected it or batchnorm above 0"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SSDKD(**given)
