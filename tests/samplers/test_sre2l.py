"""SRe2L: a round against a loop written by hand, its classes, and that the set is made once."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dfkd.interfaces import preset_of
from dfkd.losses import KL
from dfkd.problem import Problem, UnsupportedProblem
from samplers import Augmented, CutMix, Pooled, SRe2L
from samplers.ingredients import Rounds, noise_start

from .by_hand import CLOSE, Watched, enlarged, mirrored, shifted

MakeProblem = Callable[..., Problem]

PLAIN = SRe2L(rounds=2, batch=6, steps=4, area=1.0, roll=0.0, flip=False)


def test_defaults_are_the_published_numbers() -> None:
    sampler = SRe2L()
    assert (sampler.batch, sampler.steps, sampler.batchnorm, sampler.first_layer) == (100, 1000, 0.01, 10.0)
    assert sampler.learning_rate == 0.25 / 4  # a standard deviation is a quarter of the box
    assert (sampler.rounds, sampler.area, sampler.cutmix, sampler.flip) == (50, 0.08, 1.0, True)
    assert 2 * int(sampler.roll * 32) + 1 == 5  # for CIFAR as many places as their roll by 0 to 4 has
    preset = preset_of(sampler)
    assert preset is not None
    assert (preset.batch, preset.objective, preset.optimiser["name"]) == (
        1024,
        {"kl": (1.0, KL(temperature=20.0))},
        "adamw",
    )


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("viewed", [False, True])
def test_a_round_is_that_of_a_loop_by_hand(viewed: bool, make_problem: MakeProblem) -> None:
    """METHODS 3.6, with and without what the teacher is shown: enlarged, mirrored, then rolled."""
    problem, other = make_problem(shape=(1, 16, 16)), make_problem(shape=(1, 16, 16))
    sampler = replace(PLAIN, area=0.3, roll=0.2, flip=True) if viewed else PLAIN
    found = sampler.round(sampler.begin(problem, 1), problem, torch.Generator().manual_seed(2))

    teacher, rng, y = Watched(other.teacher.module), torch.Generator().manual_seed(2), torch.arange(6)
    x = (0.5 + 0.25 * torch.randn(6, 1, 16, 16, generator=rng)).clamp(0.0, 1.0).requires_grad_(True)
    adam, losses = torch.optim.Adam([x], lr=0.0625, betas=(0.5, 0.9)), []
    for step in range(4):
        adam.param_groups[0]["lr"] = 0.0625 * 0.5 * (1 + math.cos(math.pi * step / 4))
        # a fifth of 16 pixels is 3 whole ones
        logits, moments = teacher(shifted(mirrored(enlarged(x, rng, 0.3), rng), rng, 3) if viewed else x)
        loss = cross_entropy(logits, y) + 0.01 * teacher.distance(moments, first=10.0)
        (x.grad,) = torch.autograd.grad(loss, x)
        adam.step()
        with torch.no_grad():
            x.clamp_(0.0, 1.0)
        losses.append(loss.item())
    assert found.target is not None
    assert torch.equal(found.target, y)
    assert found.info["loss"].item() == pytest.approx(losses[-1], rel=CLOSE)
    torch.testing.assert_close(found.x, x.detach(), rtol=0.0, atol=CLOSE)  # the last images
    assert not found.x.requires_grad


def test_keeps_the_last_images_even_where_earlier_ones_were_better(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), replace(PLAIN, learning_rate=10.0, steps=2)  # from one corner to another
    batch = sampler.round(sampler.begin(problem, 1), problem, torch.Generator().manual_seed(2))
    start = noise_start(problem, 6, torch.Generator().manual_seed(2))
    assert ((batch.x == 0.0) | (batch.x == 1.0)).float().mean() > 0.9
    assert not torch.equal(batch.x, start)


def test_classes_follow_one_another_through_the_rounds(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = PLAIN.begin(problem, 1)
    rng = torch.Generator().manual_seed(2)
    targets = [PLAIN.round(state, problem, rng).target for _ in range(3)]
    assert torch.cat([t for t in targets if t is not None]).tolist() == [i % 10 for i in range(18)]


def test_what_the_teacher_is_shown_is_cropped_rolled_and_mirrored(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 16, 16))
    shown: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("area", {"area": 0.08}),
        ("roll", {"roll": 0.2}),
        ("flip", {"flip": True}),
    ]
    rounds = {}
    for name, settings in shown:
        sampler, rng = replace(PLAIN, **settings), torch.Generator().manual_seed(2)
        rounds[name] = sampler.round(sampler.begin(problem, 1), problem, rng).x
    for name in ("area", "roll", "flip"):
        assert not torch.equal(rounds[name], rounds["plain"]), name


def test_the_set_is_made_before_the_first_draw_and_taught_from_as_mixed_crops(make_problem: MakeProblem) -> None:
    sampler, problem = SRe2L(rounds=3, batch=6, steps=2), make_problem()
    pool = Pooled(Rounds(sampler), round=6, every=None, warmup=3)
    assert sampler.bank == CutMix(Augmented(pool, crop=0, flip=True, area=0.08), alpha=1.0)
    state = sampler.init(problem, 1)
    for _ in range(5):
        sampler.draw(state, problem, 4)
        assert problem.teacher.counts["synthesise"]["forward"] == 3 * 2 * 6
    assert len(state.base.base.images) == 18
    assert replace(PLAIN, cutmix=None).bank == Pooled(
        Rounds(replace(PLAIN, cutmix=None)), round=6, every=None, warmup=2
    )


def test_what_it_refuses(make_problem: MakeProblem) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rounds": 0}, "rounds: expected an integer >= 1, found 0"),
        ({"area": 0.0}, r"area: expected a number in \[0.001, 1\], found 0.0"),
        ({"cutmix": 0.0}, "cutmix: expected a number > 0, found 0.0"),
        ({"one_hot": 0.0, "batchnorm": 0.0}, "one_hot: expected at least one weight above 0, found none"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            SRe2L(**settings)
    flat = make_problem(teacher=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, spec.num_classes)))
    with pytest.raises(UnsupportedProblem, match="sre2l: needs a teacher with batchnorm; this teacher has logits"):
        PLAIN.init(flat, 1)
