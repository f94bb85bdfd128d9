"""CMI: its objective on tiny images, what a round begins anew and what it carries on, and the published numbers."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dfkd.interfaces import preset_of
from dfkd.losses import KL
from dfkd.problem import Probe, Problem, UnsupportedProblem
from samplers import CMI
from samplers.ingredients import resized

MakeProblem = Callable[..., Problem]

TINY = CMI(steps=3, latent=6, batch=8, every=2, features=20, negatives=5, projection=4)


def test_defaults_are_the_published_numbers() -> None:
    sampler = CMI()
    assert (sampler.batchnorm, sampler.one_hot, sampler.adversarial, sampler.contrast) == (1.0, 1.0, 0.5, 0.8)
    assert (sampler.temperature, sampler.features, sampler.negatives, sampler.projection) == (0.1, 40960, 4096, 256)
    assert (sampler.steps, sampler.batch, sampler.latent, sampler.width, sampler.every) == (200, 256, 256, "small", 400)
    assert (sampler.learning_rate, sampler.capacity, sampler.crop, sampler.flip) == (1e-3, None, None, True)
    preset = preset_of(sampler)
    assert preset is not None
    assert preset.objective == {"kl": (1.0, KL(temperature=20.0))}
    assert (preset.batch, preset.optimiser["learning_rate"], preset.steps) == (128, 0.1, 80_000)


def test_the_loss_of_a_round_equals_its_definition(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), replace(TINY, steps=1, crop=0, flip=False)
    teacher = problem.teacher.module
    student = copy.deepcopy(teacher)  # much like it, so that both often give the same class
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    problem.student = Probe(student, problem.spec, name="student")
    state = sampler.begin(problem, 1)
    contrast = state.terms[3]
    head, stream = copy.deepcopy(contrast.head), copy.deepcopy(contrast.stream)
    batch = sampler.round(state, problem, torch.Generator().manual_seed(2))
    assert batch.target is not None

    given: list[torch.Tensor] = []
    norms = [part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        t, s = teacher.eval()(batch.x), student.eval()(batch.x)
        layers, expected = list(given), cross_entropy(t, batch.target)
        for g, norm in zip(layers, norms, strict=True):
            flat = g.transpose(0, 1).flatten(1)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            expected = expected + (flat.mean(1) - norm.running_mean).norm()
            expected = expected + (flat.var(1, correction=0) - norm.running_var).norm()
        p, same = t.softmax(1), t.argmax(1) == s.argmax(1)
        assert same.any()
        expected = expected - 0.5 * ((p * (t.log_softmax(1) - s.log_softmax(1))).sum(1) * same).mean()
        given.clear()
        teacher(resized(stream.advance(), 0.25, False)(batch.x))
        local, shown = (torch.cat([g.mean((2, 3)) for g in both], 1) for both in (given, layers))
        expected = expected + 0.8 * cross_entropy(head(local) @ head(shown).T / 0.1, torch.arange(8))
    assert batch.info["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_round_begins_anew_but_for_the_head_and_the_features(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), replace(TINY, learning_rate=1e-12)  # nothing moves but what is drawn anew
    state = sampler.begin(problem, 1)
    head = [p.detach().clone() for p in state.terms[3].head.parameters()]
    rng, generators, kept = torch.Generator().manual_seed(2), [], []
    for index in range(3):
        sampler.round(state, problem, rng)
        generators.append({name: p.detach().clone() for name, p in state.generator.named_parameters()})
        kept.append(state.terms[3].bank)
        assert len(kept[-1]) == min(8 * (index + 1), 20)
    for one, two in pairwise(generators):
        for name, p in one.items():
            if name.endswith("bias"):
                assert p.abs().max() < 1e-9
            else:
                assert (p - two[name]).abs().max() > 0.01, name
                assert p.std().item() == pytest.approx(0.02, rel=0.3), name
    torch.testing.assert_close(head, [p.detach() for p in state.terms[3].head.parameters()])
    assert torch.equal(kept[1][:8], kept[0])  # what is remembered stays, until it is the oldest
    assert torch.equal(kept[2][:12], kept[1][4:])
    assert state.terms[3].optimiser.state_dict()["state"][0]["step"] == 9  # the head's Adam is the same all along


def test_rounds_and_draws_keep_the_published_ratio(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = TINY.init(problem, 1)
    before = problem.teacher.counts["synthesise"]["forward"]
    assert before == 1  # how long the features are
    for draw in range(5):
        TINY.draw(state, problem, 4)
        rounds, teacher = 1 + draw // 2, problem.teacher.counts["synthesise"]
        # two views at each of three steps, and of the images kept
        assert (teacher["forward"], teacher["backward"]) == (1 + rounds * (3 * 2 + 2) * 8, rounds * 3 * 2 * 8)
        assert problem.student.counts["synthesise"]["forward"] == rounds * 3 * 8
        assert len(state.base.images) == rounds * 8


def test_what_it_refuses(make_problem: MakeProblem) -> None:
    for settings, message in (
        ({"steps": 0}, "steps: expected an integer >= 1, found 0"),
        ({"contrast": -1.0}, "contrast: expected a number >= 0, found -1.0"),
        ({"temperature": 0.0}, "temperature: expected a number > 0, found 0.0"),
        ({"capacity": 7}, "capacity: expected an integer >= 256, found 7"),
    ):
        with pytest.raises(ValueError, match=message):
            CMI(**settings)
    with pytest.raises(ValueError, match="one_hot: expected at least one weight above 0, found none"):
        CMI(batchnorm=0.0, one_hot=0.0, adversarial=0.0, contrast=0.0)
    flat = make_problem(teacher=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, spec.num_classes)))
    with pytest.raises(UnsupportedProblem, match="cmi: needs a teacher with batchnorm; this teacher has logits"):
        TINY.init(flat, 1)
