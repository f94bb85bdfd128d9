"""ZSKT: its divergence by hand, ten draws of the same images labelled once, its clip, its cosine, its network."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Problem
from samplers import ZSKT

MakeProblem = Callable[..., Problem]

SMALL = ZSKT(batch=8, latent=6)


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(z) for z in row]
    return [w / sum(weights) for w in weights]


def slow_loss(problem: Problem, x: Tensor) -> float:
    """Minus the divergence averaged over all n k elements; the student's BatchNorm as in training, dropout off."""
    student = copy.deepcopy(problem.student.module).eval()
    for part in student.modules():
        part.train(isinstance(part, nn.BatchNorm2d))
    with torch.no_grad():
        rows = zip(student(x).tolist(), copy.deepcopy(problem.teacher.module).eval()(x).tolist(), strict=True)
    total = 0.0
    for s, t in rows:
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(softmax(t), softmax(s), strict=True))
    return -total / (len(x) * 10)


def found(problem: Problem, x: Tensor) -> Tensor:
    objective = SMALL.objective
    with objective.watching(problem) as look:
        return objective(objective.init(problem, 0, "test"), look(x, None))


def test_objective_is_the_published_one(make_problem: MakeProblem) -> None:
    problem = make_problem()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert found(problem, x).item() == pytest.approx(slow_loss(problem, x), rel=1e-4)


def test_the_gradient_is_the_students_too(make_problem: MakeProblem) -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    slopes = [torch.autograd.grad(found(make_problem(student_seed=seed), x), x)[0] for seed in (2, 3)]
    assert slopes[0].norm() > 1e-5
    assert (slopes[0] - slopes[1]).norm() > 0.1 * slopes[0].norm()


def test_ten_draws_show_what_one_step_has_left_and_are_labelled_once(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state, moved, seen = SMALL.init(problem, 0), [], []
    for draw in range(21):
        before = state.generator.stem.weight.detach().clone()
        batch = SMALL.draw(state, problem, 8)
        moved.append(not torch.equal(before, state.generator.stem.weight))
        assert problem.label(batch) is batch.teacher
        assert problem.teacher.counts["label"]["forward"] == 8 * (1 + draw // 10)
        seen.append(batch.x)
    assert moved == ([True] + [False] * 9) * 2 + [True]
    for draw in range(20):
        assert torch.equal(seen[draw], seen[draw + 1]) == (draw % 10 != 9)
    assert problem.teacher.counts["synthesise"] == {"forward": 3 * 8, "backward": 3 * 8}
    assert problem.student.counts["synthesise"] == {"forward": 3 * 8, "backward": 3 * 8}


def test_network_optimiser_rate_and_clip_are_the_published_ones(make_problem: MakeProblem) -> None:
    state = ZSKT().init(make_problem(shape=(3, 32, 32)), 0)
    # the small trunk with biases, and a BatchNorm of three channels with affine parameters for a head
    expected = 101 * 8192 + 2 * (128 + 128 + 64 + 3) + (128 * 9 + 1) * (128 + 64) + (64 * 9 + 1) * 3
    assert sum(p.numel() for p in state.generator.parameters()) == expected
    assert isinstance(state.generator.norm, nn.BatchNorm2d)
    group = state.optimiser.param_groups[0]
    assert (type(state.optimiser), group["lr"], group["betas"]) == (torch.optim.Adam, 1e-3, (0.9, 0.999))
    online = ZSKT()._online
    assert [online.factor(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert (ZSKT().batch, ZSKT().student_steps, online.clip) == (128, 10, 5.0)


def test_the_clip_is_on_its_gradient(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), replace(SMALL, clip=1e-3)
    state = sampler.init(problem, 0)
    sampler.draw(state, problem, 8)
    stored = torch.cat([entry["exp_avg"].flatten() for entry in state.optimiser.state.values()])
    assert 10.0 * stored.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_raises_the_divergence(make_problem: MakeProblem) -> None:
    sampler, problem = replace(SMALL, student_steps=1, batch=24), make_problem()
    state = sampler.init(problem, 0)
    losses = [sampler.draw(state, problem, 4).info["generator_loss"].item() for _ in range(30)]
    assert sum(losses[-5:]) < 1.2 * sum(losses[:5]) < 0.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip": 0.0}, "clip: expected a number > 0, found 0.0"),
        ({"latent": 0}, "latent: expected an integer >= 1"),
        ({"batch": 1}, "batch: expected an integer >= 2"),
        ({"student_steps": 0}, "student_steps: expected an integer >= 1"),
        ({"labelling": "fixed"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **given)


def test_images_have_the_mean_and_the_deviation_named(make_problem: MakeProblem) -> None:
    """In the box, far enough from its ends, nothing is clipped: the last layer's own moments are found."""
    problem, sampler = make_problem(low=-1.0, high=3.0), replace(SMALL, mean=0.4, std=0.02, learning_rate=1e-6)
    x = sampler.draw(sampler.init(problem, 0), problem, 8).x
    assert x.mean().item() == pytest.approx(-1.0 + 4.0 * 0.4, abs=1e-3)
    assert x.std().item() == pytest.approx(4.0 * 0.02, rel=0.03)
