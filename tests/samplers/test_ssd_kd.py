"""SSD-KD: rounds against a loop written by hand, when the reward joins, the small bank, and that losses reach it."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import InputSpec
from samplers import SSDKD, Augmented, Prioritised
from samplers.ingredients import Rounds
from samplers.state import State

from .by_hand import Watched, detached, mirrored, mixed, moved_alike, near, same_rounds, window

MakeProblem = Callable[..., Problem]

SMALL: dict[str, Any] = {"latent": 6, "batch": 8, "steps": 2, "capacity": 20, "warmup": 2, "every": 3}
PLAIN: dict[str, Any] = {**SMALL, "crop": 0, "flip": False}
RATES: dict[str, Any] = {"generator_rate": 1e-3, "latent_rate": 0.1, "meta_rate": 2e-3}


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


# -- a round -----------------------------------------------------------------------------------------------------


def slow_terms(t: Tensor, s: Tensor | None, y: list[int], classes: list[int]) -> Tensor:
    """METHODS 3.12: half of the modulated cross-entropy, minus the reward, row by row; classes: of rows kept so far."""
    most = max(classes.count(c) + 1 for c in range(10))
    rows = []
    for i, c in enumerate(y):
        p = t[i].softmax(0)[c]
        rare = 1.0 + math.log(most / (classes.count(c) + 1))
        row = -0.5 * rare * (1.0 - p.item()) ** 2 * p.log()
        rows.append(row if s is None else row - p * (1.0 - s[i].softmax(0)[c]))
    return torch.stack(rows).mean()


def by_hand(problem: Problem, network: nn.Module, rngs: list[torch.Generator]) -> tuple[list[Any], list[int]]:
    """Rounds as FastDFKD's, and what the teacher took the last 20 images for; the first round is one of warm-up."""
    teacher, student = Watched(problem.teacher.module), problem.student.module.eval()
    start = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.999))
    past: Any = None
    classes, kept = list[int](), []
    for index, rng in enumerate(rngs):
        clone = copy.deepcopy(network).train()
        z = torch.randn(8, 6, generator=rng).requires_grad_()
        y = torch.randint(10, (8,), generator=rng)
        groups: list[dict[str, Any]] = [{"params": clone.parameters()}, {"params": [z], "lr": 0.1}]
        inner = torch.optim.Adam(groups, 1e-3, (0.5, 0.999))
        sums = [torch.zeros_like(p) for p in clone.parameters()]
        best = (float("inf"), torch.empty(0))
        for _ in range(3):
            x = clone(z)
            seen = mirrored(window(x, rng, 2), rng)
            t, moments = teacher(seen)
            loss = 10.0 * teacher.distance(mixed(moments, past))
            loss = loss + slow_terms(t, student(seen) if index else None, y.tolist(), classes)
            if loss.item() < best[0]:
                best = (loss.item(), x.detach().clone())
            inner.zero_grad()
            loss.backward()
            for total, p in zip(sums, clone.parameters(), strict=True):
                assert p.grad is not None
                total += p.grad
            inner.step()
        past = mixed(detached(moments), past)
        with torch.no_grad():
            classes += teacher(mirrored(window(best[1], rng, 2), rng))[0].argmax(dim=1).tolist()
        classes = classes[-20:]
        for p, total in zip(network.parameters(), sums, strict=True):
            p.grad = total
        start.step()
        kept.append((best[1], y, best[0]))
    return kept, classes


@pytest.mark.usefixtures("doubles")
def test_rounds_are_those_of_a_loop_by_hand(make_problem: MakeProblem) -> None:
    problem, other = near(make_problem), near(make_problem)
    sampler = SSDKD(**SMALL | {"steps": 3, "warmup": 1, "crop": 2, "flip": True}, **RATES)
    state, own, origin = (sampler.begin(problem, 4) for _ in range(3))
    found = [sampler.round(state, problem, torch.Generator().manual_seed(12 + turn)) for turn in range(4)]
    rngs = [torch.Generator().manual_seed(12 + turn) for turn in range(4)]
    expected, classes = by_hand(other, own.start.network, rngs)
    same_rounds(found, expected)
    assert state.terms[1].classes.tolist() == classes
    moved_alike(*(part.start.network.parameters() for part in (state, own, origin)))


def test_draws_are_crops_of_the_bank(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SSDKD(**SMALL | {"crop": 2, "flip": True})
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 4)
    views = copy.deepcopy(state.stream).advance()
    x = sampler.draw(state, problem, 7).x
    rows = state.base.pool.images[state.base.places].float() / 255.0
    torch.testing.assert_close(x, mirrored(window(rows, views, 2), views))
    bank = Prioritised(Rounds(SSDKD()), round=256, every=400, warmup=21, capacity=5000)
    assert SSDKD().bank == Augmented(bank, flip=True)


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
