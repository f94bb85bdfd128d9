"""The moving average against its closed form, when it moves, and what it teaches."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import dfkd
from dfkd import models
from dfkd.losses import KL, combine
from dfkd.losses.response import kl_nats
from dfkd.problem import Probe
from dfkd.registry import SAMPLERS, find
from dfkd.rng import initialised
from dfkd.schemes.mean_teacher import Averaged, MeanTeacher
from dfkd.schemes.together import Together
from dfkd.types import Batch, InputSpec, Outputs

SPEC = InputSpec((1, 8, 8), 4)
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TEACHER = 2.0 * torch.randn(12, 4, generator=torch.Generator().manual_seed(2))


def student() -> nn.Module:
    return models.build("digits_cnn", SPEC, width=2)


def averaged(**options: Any) -> Averaged:
    with initialised(3):
        return Averaged(student(), options.pop("momentum", 0.8), **options)


def test_the_average_equals_its_closed_form() -> None:
    """After steps 1..t: m^t theta_0 + (1 - m) sum of m^(t - s) theta_s; buffers are those of the last step."""
    m, module = 0.8, averaged(momentum=0.8).train()
    generator = torch.Generator().manual_seed(7)
    trail = [{key: value.clone() for key, value in module.online.state_dict().items()}]
    for _ in range(5):
        module(X)  # moves the buffers of `online`
        with torch.no_grad():
            for parameter in module.online.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        trail.append({key: value.clone() for key, value in module.online.state_dict().items()})
    found = MeanTeacher(m).keep(module).state_dict()
    parameters = {key for key, _ in module.online.named_parameters()}
    for key, value in found.items():
        expected = trail[-1][key]
        if key in parameters:
            expected = m**5 * trail[0][key] + sum(
                ((1 - m) * m ** (5 - s) * trail[s][key] for s in range(1, 6)), torch.zeros(())
            )
        torch.testing.assert_close(value, expected)


def test_a_run_keeps_the_average_of_all_its_steps() -> None:
    """One step: half of where it began and half of where the step led, the last step's part included."""
    seen: list[nn.Module] = []

    def look(problem: dfkd.Problem) -> dict[str, float]:
        seen.append(problem.student.module)
        return {}

    start = dict(averaged().online.named_parameters())
    with initialised(3):
        fresh = student()
    done = dfkd.distill(
        student(),
        Together(fresh, MeanTeacher(momentum=0.5)),
        find("sampler", "uniform", SAMPLERS)(),
        spec=SPEC,
        budget=dfkd.Budget(batch=8, steps=1),
        device="cpu",
        monitor=look,
    )
    module = seen[-1]
    assert isinstance(module, Averaged)
    online = dict(module.online.named_parameters())
    for key, value in done.student.named_parameters():
        torch.testing.assert_close(value, 0.5 * start[key] + 0.5 * online[key])
    assert not torch.equal(start["linear.weight"], online["linear.weight"])
    stored = dict(module.online.named_buffers())
    assert all(torch.equal(value, stored[key]) for key, value in done.student.named_buffers())


def test_before_any_step_the_average_is_the_student_to_the_bit() -> None:
    module = averaged(momentum=0.999)
    module.follow()
    for ours, theirs in zip(module.average.parameters(), module.online.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_student_is_trained() -> None:
    """KL(average || student), the average fixed: no gradient reaches it, nor does it ask for one."""
    module = averaged().train()
    with torch.no_grad():
        for parameter in module.average.parameters():
            parameter.add_(0.3)
    objective = MeanTeacher(0.8, weight=2.0, temperature=3.0).objective(combine({"kl": (1.0, KL())}))
    probe = Probe(module, SPEC, name="student")
    with probe.taps(*objective.needs["student"]):
        answers = probe.learn(X)
    total = objective(answers, Outputs(TEACHER), Batch(X)).total
    ours, theirs = module.online(X), module.average(X)
    torch.testing.assert_close(
        total, (kl_nats(ours, TEACHER) + 2.0 * 9.0 * kl_nats(ours, theirs, 3.0)).mean(), rtol=1e-4, atol=1e-5
    )
    assert kl_nats(ours, theirs, 3.0).mean() > 1e-3
    total.backward()
    assert not any(parameter.requires_grad for parameter in module.average.parameters())
    assert all(parameter.grad is None for parameter in module.average.parameters())
    assert all(parameter.grad is not None for parameter in module.online.parameters())


@pytest.mark.parametrize("keep", ["average", "online"])
def test_as_it_is_used_the_one_that_is_kept_answers_and_nothing_moves(keep: Any) -> None:
    module = averaged(keep=keep).eval()
    with torch.no_grad():
        for parameter in module.online.parameters():
            parameter.add_(0.3)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert torch.equal(module(X), (module.average if keep == "average" else module.online)(X))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_an_average_that_teaches_nothing_is_not_asked() -> None:
    module = averaged(teaches=False).train()
    asked: list[int] = []
    module.average.register_forward_hook(lambda *_: asked.append(1))
    module(X)
    assert asked == []
    objective = MeanTeacher(weight=0.0).objective(combine({"kl": (1.0, KL())}))
    assert objective.needs == {"student": ("online",), "teacher": ()}


def test_the_average_is_asked_without_a_graph() -> None:
    """Not even towards the images, where a loss differentiates in them."""
    module, given = averaged().train(), []
    module.average.register_forward_hook(lambda *args: given.append(args[2]))
    assert module(X.clone().requires_grad_(True)).requires_grad
    assert [answers.requires_grad for answers in given] == [False]


def test_what_is_kept_can_be_trained_on() -> None:
    for keeps in ("average", "online"):
        kept = MeanTeacher(keeps=keeps).keep(averaged())
        assert all(parameter.requires_grad for parameter in kept.parameters())


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_a_momentum_that_is_none(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum: expected a number >= 0 and < 1"):
        MeanTeacher(momentum=momentum)
