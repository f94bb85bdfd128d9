"""The generator learns when it is due, against the student that is there, and is put back exactly."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.types import InputSpec
from samplers.generative import Generative
from samplers.ingredients import Objective
from samplers.state import State

MakeProblem = Callable[..., Problem]

SMALL: dict[str, Any] = {"latent": 8, "width": "small", "batch": 16}


def weights(state: State) -> list[Tensor]:
    return [value.clone() for value in state.generator.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def loss_of(sampler: Generative, objective: Objective, problem: Problem, state: State) -> float:
    """The objective on fixed latents, the generator as it is sampled."""
    z = torch.randn(128, sampler.latent, generator=torch.Generator().manual_seed(9))
    with torch.no_grad(), objective.watching(problem) as look:
        return objective(state.terms, look(state.generator(z), None)).item()


def test_learns_on_every_tenth_draw_and_on_no_other(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Generative(**SMALL, student_steps=3)
    state, learned = sampler.init(problem, 0), []
    for _ in range(8):
        before = weights(state)
        batch = sampler.draw(state, problem, 2)
        learned.append(not same(before, weights(state)))
        assert ("generator_loss" in batch.info) == learned[-1]
    assert learned == [True, False, False, True, False, False, True, False]


def test_a_draw_that_does_not_learn_moves_only_the_stream(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Generative(**SMALL, student_steps=1)
    state = sampler.init(problem, 0)
    sampler.draw(state, problem, 2)
    before, optimiser = weights(state), copy.deepcopy(state.optimiser.state_dict())
    asked = copy.deepcopy(problem.teacher.counts)
    first, second = (sampler.draw(state, problem, 5, learn=False) for _ in range(2))
    assert same(before, weights(state))
    assert str(optimiser) == str(state.optimiser.state_dict())
    assert problem.teacher.counts == asked
    assert (state.draws, state.stream.step) == (1, 3)
    assert not torch.equal(first.x, second.x)


def test_steps_lower_the_objective(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Generative(**SMALL, generator_steps=20, student_steps=1)
    state = sampler.init(problem, 0)
    sampler.draw(state, problem, 2)
    before = loss_of(sampler, sampler.objective, problem, state)
    for _ in range(2):
        sampler.draw(state, problem, 2)
    assert loss_of(sampler, sampler.objective, problem, state) < before - 0.5


def adversarial_gradient(problem: Problem) -> Tensor:
    sampler = Generative(**SMALL, batchnorm=0.0, one_hot=0.0, balance=0.0)
    state = sampler.init(problem, 0)
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(9))
    with sampler.objective.watching(problem) as look:
        loss = sampler.objective(state.terms, look(state.generator(z), None))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(state.generator.parameters()))])


def test_the_adversary_depends_on_the_student(make_problem: MakeProblem) -> None:
    """Were the teacher handed in as the student, the term would be 0 and would not know one student from another."""
    first, second = (adversarial_gradient(make_problem(student_seed=seed)) for seed in (2, 3))
    assert first.norm() > 1e-4
    assert (first - second).norm() > 0.1 * first.norm()
    problem = make_problem()
    problem.student = Probe(problem.teacher.module, problem.spec, name="student")
    assert adversarial_gradient(problem).norm() < 1e-5


def test_raises_the_disagreement_with_its_student(make_problem: MakeProblem) -> None:
    problem = make_problem()
    sampler = Generative(**SMALL, batchnorm=0.0, one_hot=0.0, balance=0.0, generator_steps=30, student_steps=1)
    state = sampler.init(problem, 0)
    before = loss_of(sampler, sampler.objective, problem, state)
    sampler.draw(state, problem, 2)
    sampler.draw(state, problem, 2)
    assert loss_of(sampler, sampler.objective, problem, state) < 1.2 * before  # minus the disagreement: before < 0


def test_saved_and_put_back_it_goes_on_bit_for_bit(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Generative(**SMALL, student_steps=2)
    state = sampler.init(problem, 0)
    for _ in range(3):
        sampler.draw(state, problem, 3)
    saved = copy.deepcopy(state.state_dict())
    expected = [sampler.draw(state, problem, 3).x for _ in range(4)]
    other = sampler.init(problem, 1)
    other.load_state_dict(saved)
    assert all(torch.equal(sampler.draw(other, problem, 3).x, x) for x in expected)


def test_leaves_both_models_and_its_mode_as_they_were(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Generative(**SMALL)
    state = sampler.init(problem, 0)
    probes = (problem.teacher, problem.student)
    before = [{k: v.clone() for k, v in probe.module.state_dict().items()} for probe in probes]
    batch = sampler.draw(state, problem, 7)
    assert not batch.x.requires_grad
    assert not any(part.training for part in state.generator.modules())
    for probe, kept in zip(probes, before, strict=True):
        assert all(torch.equal(kept[key], value) for key, value in probe.module.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in probe.module.parameters())
        assert not any(part._forward_pre_hooks or part._forward_hooks for part in probe.module.modules())


def test_counts_what_it_asks(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Generative(**SMALL, generator_steps=3, batchnorm=1.0)
    state = sampler.init(problem, 0)
    sampler.draw(state, problem, 5)
    for probe in (problem.teacher, problem.student):
        assert probe.counts["synthesise"] == {"forward": 3 * 16, "backward": 3 * 16}


def test_makes_pictures_of_any_box(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(3, 12, 8), low=-1.0, high=3.0)
    sampler = Generative(**SMALL)
    x = sampler.draw(sampler.init(problem, 0), problem, 1).x
    assert x.shape == (1, 3, 12, 8)
    assert -1.0 <= x.min() < x.max() <= 3.0


def test_a_teacher_without_batchnorm(make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="generative: needs a teacher with batchnorm"):
        Generative(**SMALL).init(problem, 0)
    sampler = Generative(**SMALL, batchnorm=0.0)
    assert len(sampler.draw(sampler.init(problem, 0), problem, 3)) == 3


def test_a_size_the_trunk_cannot_make(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match=r"shape: expected .*, found \(1, 10, 10\)"):
        Generative(**SMALL).init(make_problem(shape=(1, 10, 10)), 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latent": 0}, "latent: expected an integer >= 1, found 0"),
        ({"width": "medium"}, "width: expected one of small, large, found 'medium'"),
        ({"student_steps": 0}, "student_steps: expected an integer >= 1"),
        ({"batch": 1}, "batch: expected an integer >= 2"),
        ({"divergence": "k1"}, "divergence: expected one of kl, l1, js, masked_kl, found 'k1'"),
        ({"batchnorm": "aut"}, "batchnorm: expected .*'auto'.*, found 'aut'"),
        ({"adversarial": -1.0}, "adversarial: expected a number >= 0"),
        ({"adversarial": 0, "batchnorm": 0, "one_hot": 0, "balance": 0}, "one_hot: expected at least one weight"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Generative(**given)


def test_a_batch_too_small_for_the_classes(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match="generative: batch: expected at least 10 rows to balance 10 classes, found 9"):
        Generative(**SMALL | {"batch": 9}).init(make_problem(), 0)
    Generative(**SMALL | {"batch": 9}, balance=0.0).init(make_problem(), 0)
