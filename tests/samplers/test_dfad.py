"""DFAD: the difference of logits by hand with the student in training mode, its loop, its networks, its settings."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Probe, Problem
from samplers import DFAD

MakeProblem = Callable[..., Problem]

SMALL = DFAD(batch=8, latent=6)


def in_training(net: nn.Module) -> nn.Module:
    """A copy whose BatchNorm layers use the batch's statistics; dropout stays off."""
    net = copy.deepcopy(net).eval()
    for part in net.modules():
        part.train(isinstance(part, nn.BatchNorm2d))
    return net


def found(problem: Problem, x: Tensor) -> Tensor:
    objective = SMALL.objective
    with objective.watching(problem) as look:
        return objective(objective.init(problem, 0, "test"), look(x, None))


def test_objective_is_the_published_one(make_problem: MakeProblem) -> None:
    problem = make_problem()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        teacher = copy.deepcopy(problem.teacher.module).eval()(x).tolist()
        student, settled = (net(x).tolist() for net in (in_training(problem.student.module), problem.student.module))
    gaps = [abs(a - b) for s, t in zip(student, teacher, strict=True) for a, b in zip(s, t, strict=True)]
    assert found(problem, x).item() == pytest.approx(-sum(gaps) / (5 * 10), rel=1e-4)
    gaps = [abs(a - b) for s, t in zip(settled, teacher, strict=True) for a, b in zip(s, t, strict=True)]
    assert found(problem, x).item() != pytest.approx(-sum(gaps) / (5 * 10), rel=0.01)


def test_the_gradient_is_the_students_too(make_problem: MakeProblem) -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    slopes = [torch.autograd.grad(found(make_problem(student_seed=seed), x), x)[0] for seed in (2, 3)]
    assert slopes[0].norm() > 1e-4
    assert (slopes[0] - slopes[1]).norm() > 0.1 * slopes[0].norm()
    problem = make_problem()
    problem.teacher = Probe(in_training(problem.teacher.module), problem.spec)
    problem.student = Probe(copy.deepcopy(problem.teacher.module), problem.spec, name="student")
    assert found(problem, x).abs() > 1e-3  # the same net, but each in the mode it is asked in


def test_one_step_of_the_generator_and_five_fresh_draws(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state, moved, seen = SMALL.init(problem, 0), [], []
    buffers = copy.deepcopy(dict(problem.student.module.named_buffers()))
    for _ in range(11):
        before = state.generator.stem.weight.detach().clone()
        seen.append(SMALL.draw(state, problem, 8).x)
        moved.append(not torch.equal(before, state.generator.stem.weight))
    assert moved == [True, False, False, False, False] * 2 + [True]
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    for probe in (problem.teacher, problem.student):
        assert probe.counts["synthesise"] == {"forward": 3 * 8, "backward": 3 * 8}
    assert all(torch.equal(buffers[name], value) for name, value in problem.student.module.named_buffers())


def test_network_and_optimiser_are_the_published_ones(make_problem: MakeProblem) -> None:
    state = DFAD().init(make_problem(shape=(1, 32, 32)), 0)
    expected = 101 * 8192 + 2 * (128 + 128 + 64) + (128 * 9 + 1) * 128 + (128 * 9 + 1) * 64 + 64 * 9 + 1
    assert sum(p.numel() for p in state.generator.parameters()) == expected
    assert {part.eps for part in state.generator.modules() if isinstance(part, nn.BatchNorm2d)} == {1e-5}
    group = state.optimiser.param_groups[0]
    assert (type(state.optimiser), group["lr"], group["betas"]) == (torch.optim.Adam, 1e-3, (0.9, 0.999))
    assert (DFAD().batch, DFAD().latent, DFAD.cifar().batch, DFAD.cifar().latent) == (512, 100, 256, 256)


def test_the_rate_falls_as_published_for_cifar() -> None:
    """Times 0.1 at epochs 100 and 200 of 500."""
    factors = [DFAD.cifar()._online.factor(epoch / 500) for epoch in (0, 99, 100, 199, 200, 499)]
    assert factors == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    assert DFAD()._online.factor(0.99) == 1.0


def test_raises_the_difference(make_problem: MakeProblem) -> None:
    sampler, problem = replace(SMALL, student_steps=1, batch=24), make_problem()
    state = sampler.init(problem, 0)
    losses = [sampler.draw(state, problem, 4).info["generator_loss"].item() for _ in range(30)]
    assert sum(losses[-5:]) < 1.2 * sum(losses[:5]) < 0.0


def test_a_larger_network_for_larger_images(make_problem: MakeProblem) -> None:
    sampler, problem = replace(SMALL, network="dcgan", batch=2), make_problem(shape=(1, 32, 32))
    state = sampler.init(problem, 0)
    assert sampler.draw(state, problem, 2).x.shape == (2, 1, 32, 32)
    assert isinstance(state.generator.body[1], nn.ConvTranspose2d)
    with pytest.raises(ValueError, match=r"shape: expected .*32, 48, 64.*, found \(1, 8, 8\)"):
        sampler.init(make_problem(), 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"network": "unet"}, "network: expected one of trunk, dcgan, found 'unet'"),
        ({"rate": "step"}, "rate: expected one of constant, cosine, steps, found 'step'"),
        ({"rate": "steps"}, "milestones: expected rising fractions of the run"),
        ({"milestones": (0.2,)}, "milestones: expected none with rate constant"),
        ({"student_steps": 0}, "student_steps: expected an integer >= 1"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number > 0"),
        ({"std": 0.0}, "std: expected a number > 0, found 0.0"),
        ({"mean": 1.5}, r"mean: expected a number in \[0, 1\], found 1.5"),
        ({"network": "dcgan", "mean": 0.13}, "mean: expected 0.5 and std 0.25 with network dcgan.*found 0.13"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **given)


def test_images_have_the_mean_and_the_deviation_named(make_problem: MakeProblem) -> None:
    """In the box, far enough from its ends, nothing is clipped: the last layer's own moments are found."""
    problem, sampler = make_problem(low=-1.0, high=3.0), replace(SMALL, mean=0.4, std=0.02)
    x = sampler.draw(sampler.init(problem, 0), problem, 8).x
    assert x.mean().item() == pytest.approx(-1.0 + 4.0 * 0.4, abs=1e-3)
    assert x.std().item() == pytest.approx(4.0 * 0.02, rel=0.02)
