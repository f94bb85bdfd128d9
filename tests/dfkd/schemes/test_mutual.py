"""Mutual learning: members that differ, the loss of each against its definition, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from dfkd import models
from dfkd.losses import KL, combine
from dfkd.losses.response import kl_nats
from dfkd.problem import Probe
from dfkd.rng import initialised
from dfkd.schemes.mutual import Cohort, Mutual
from dfkd.schemes.offline import make_trained
from dfkd.schemes.together import Together
from dfkd.types import Batch, InputSpec, Outputs

SPEC = InputSpec((1, 8, 8), 4)
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TEACHER = 2.0 * torch.randn(12, 4, generator=torch.Generator().manual_seed(2))


def student() -> nn.Module:
    return models.build("digits_cnn", SPEC, width=2)


def cohort(members: int) -> Cohort:
    module = make_trained(Together(student, Mutual(members)), SPEC, 1)
    assert isinstance(module, Cohort)
    return module


def test_members_start_from_different_weights() -> None:
    weights = [member.get_parameter("conv2.weight") for member in cohort(3).members]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(3) for j in range(i))


@pytest.mark.parametrize("members", [2, 3])
def test_the_objective_is_its_definition(members: int) -> None:
    """Sum over i of KL(teacher || i) tau^2 and 1 / (M - 1) times the sum over j of KL(j || i)."""
    module = cohort(members).train()
    objective = Mutual(members, weight=0.7, temperature=2.0).objective(combine({"kl": (1.5, KL(3.0))}))
    probe = Probe(module, SPEC, name="student")
    with probe.taps(*objective.needs["student"]):
        answers = probe.learn(X)
    total = objective(answers, Outputs(TEACHER), Batch(X)).total
    logits = [member(X) for member in module.members]
    expected = torch.zeros(())
    for i, ours in enumerate(logits):
        expected = expected + 1.5 * 9.0 * kl_nats(ours, TEACHER, 3.0).mean()
        for j, theirs in enumerate(logits):
            if i != j:
                expected = expected + 0.7 * 4.0 * kl_nats(ours, theirs.detach(), 2.0).mean() / (members - 1)
    torch.testing.assert_close(total, expected)
    slopes: list[list[Tensor | None]] = []
    for value in (total, expected):
        module.zero_grad()
        value.backward()
        slopes.append([None if p.grad is None else p.grad.clone() for p in module.parameters()])
    for mine, other in zip(*slopes, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, other)


def test_it_answers_with_the_first_and_asks_only_that_one_as_it_is_used() -> None:
    module = cohort(2).eval()
    asked: list[int] = []
    for place, member in enumerate(module.members):
        member.register_forward_hook(lambda *_, place=place: asked.append(place))
    assert torch.equal(module(X), module.members[0](X))
    assert asked == [0, 0]
    module.train()(X)
    assert asked == [0, 0, 0, 1]


def test_what_is_kept_is_a_copy() -> None:
    module = cohort(2)
    kept = Mutual().keep(module)
    assert kept is not module.members[0]
    assert torch.equal(kept.get_parameter("conv1.weight"), module.members[0].get_parameter("conv1.weight"))


def test_a_warm_start_would_make_members_that_stay_the_same() -> None:
    with initialised(4):
        warm = student()
    with pytest.raises(ValueError, match="mutual: members that start from the same weights stay the same"):
        make_trained(Together(warm, Mutual()), SPEC, 1)
