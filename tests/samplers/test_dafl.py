"""DAFL: its objective by hand in the published logarithm, its loop, its network, its settings."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import InputSpec
from samplers import DAFL

MakeProblem = Callable[..., Problem]

SMALL = DAFL(batch=12, latent=8, learning_rate=1e-2)


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(z) for z in row]
    return [w / sum(weights) for w in weights]


def slow_loss(net: Any, x: Tensor, one_hot: float, decimal_entropy: float, activation: float) -> float:
    """As the authors write it, in Python floats: entropies of the argmax class, decimal ones of the mean, features."""
    with torch.no_grad():
        features = net.eval().body(x)
        p = [softmax(row) for row in net.head(features).tolist()]
    certain: float = -sum(math.log(max(row)) for row in p) / len(p)
    mean = [sum(column) / len(p) for column in zip(*p, strict=True)]
    entropy: float = sum(m * math.log10(m) for m in mean)
    values: list[float] = [abs(v) for row in features.tolist() for v in row]
    return one_hot * certain + decimal_entropy * entropy - activation * sum(values) / len(values)


@pytest.mark.parametrize(
    ("sampler", "weights"),
    [(DAFL(), (1.0, 5.0, 0.1)), (DAFL.cifar10(), (0.05, 5.0, 0.01)), (DAFL.cifar100(), (0.5, 20.0, 0.1))],
)
def test_objective_is_the_published_one(
    make_problem: MakeProblem, sampler: DAFL, weights: tuple[float, float, float]
) -> None:
    problem, objective = make_problem(), sampler.objective
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    states = objective.init(problem, 0, "test")
    with objective.watching(problem) as look:
        found = objective(states, look(x, None)).item()
    assert found == pytest.approx(slow_loss(problem.teacher.module, x, *weights), rel=1e-4)


def test_one_step_of_the_generator_for_each_of_the_students_on_the_same_images(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state, seen = SMALL.init(problem, 0), []
    for draw in range(1, 4):
        before = state.generator.stem.weight.detach().clone()
        batch = SMALL.draw(state, problem, 12)
        assert not torch.equal(before, state.generator.stem.weight)
        assert problem.teacher.counts["synthesise"] == {"forward": 12 * draw, "backward": 12 * draw}
        assert problem.student.images == 0  # it has no part in this objective
        assert torch.equal(batch.x, state.images)
        seen.append(batch.x)
    assert not torch.equal(seen[0], seen[1])
    held = replace(SMALL, student_steps=3)
    state = held.init(problem, 0)
    x = [held.draw(state, problem, 12).x for _ in range(4)]
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
    assert not torch.equal(x[0], x[3])


def test_its_generator_stands_in_training_mode_when_its_images_are_made(make_problem: MakeProblem) -> None:
    """Each channel of a draw has the head's mean and deviation: those of the batch, not stored ones."""
    problem = make_problem(shape=(3, 8, 8))
    state = SMALL.init(problem, 0)
    for _ in range(3):
        raw = SMALL._online.images(state, torch.randn(64, 8, generator=torch.Generator().manual_seed(2)))
        torch.testing.assert_close(raw.mean(dim=(0, 2, 3)), torch.full((3,), 0.5), atol=0.02, rtol=0.0)
        torch.testing.assert_close(raw.std(dim=(0, 2, 3)), torch.full((3,), 0.25), atol=0.03, rtol=0.0)
        SMALL.draw(state, problem, 12)


def test_network_and_optimiser_are_the_published_ones(make_problem: MakeProblem) -> None:
    state = DAFL().init(make_problem(shape=(1, 32, 32)), 0)
    # Linear to 128 x 8 x 8, BatchNorm 128, 128, 64, convolutions with biases, a head of BatchNorm without parameters
    expected = 101 * 8192 + 2 * (128 + 128 + 64) + (128 * 9 + 1) * 128 + (128 * 9 + 1) * 64 + 64 * 9 + 1
    assert sum(p.numel() for p in state.generator.parameters()) == expected
    norms = [part for part in state.generator.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [norm.eps for norm in norms] == [1e-5, 0.8, 0.8, 1e-5]
    group = state.optimiser.param_groups[0]
    assert (type(state.optimiser), group["lr"], group["betas"]) == (torch.optim.Adam, 0.2, (0.9, 0.999))
    assert (DAFL().batch, DAFL().latent, DAFL.cifar10().batch, DAFL.cifar10().latent) == (512, 100, 1024, 1000)
    assert DAFL.cifar100().learning_rate == 0.02


def test_learns_to_use_the_classes_and_to_be_sure_of_them(make_problem: MakeProblem) -> None:
    sampler, problem = replace(SMALL, batch=48), make_problem()
    state = sampler.init(problem, 0)
    losses = [sampler.draw(state, problem, 48).info["generator_loss"].item() for _ in range(40)]
    assert max(losses[-5:]) < losses[0] - 0.2


def test_needs_a_last_linear_layer(make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="dafl: needs a teacher with penultimate"):
        SMALL.init(problem, 0)
    without = replace(SMALL, activation=0.0)
    assert len(without.draw(without.init(problem, 0), problem, 3)) == 3


def test_a_batch_must_hold_all_classes(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match="dafl: batch: expected at least 10 rows to balance 10 classes, found 9"):
        replace(SMALL, batch=9).init(make_problem(), 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latent": 0}, "latent: expected an integer >= 1"),
        ({"batch": 1}, "batch: expected an integer >= 2"),
        ({"batchnorm_eps": 0.0}, "batchnorm_eps: expected a number > 0"),
        ({"balance": -1.0}, "balance: expected a number >= 0"),
        ({"one_hot": 0.0, "balance": 0.0, "activation": 0.0}, "one_hot: expected at least one weight"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **given)


def test_images_have_the_mean_and_the_deviation_named(make_problem: MakeProblem) -> None:
    """In the box, far enough from its ends, nothing is clipped: the last layer's own moments are found."""
    problem, sampler = make_problem(low=-1.0, high=3.0), replace(SMALL, mean=0.4, std=0.02)
    x = sampler.draw(sampler.init(problem, 0), problem, 12).x
    assert x.mean().item() == pytest.approx(-1.0 + 4.0 * 0.4, abs=1e-3)
    assert x.std().item() == pytest.approx(4.0 * 0.02, rel=0.03)
