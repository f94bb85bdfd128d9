"""Branches on one stem: computed once, mixed by a gate, each taught by the whole, which is fixed for it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dfkd import models
from dfkd.losses import KL, combine
from dfkd.losses.peers import Peers
from dfkd.losses.response import kl_nats
from dfkd.problem import Probe
from dfkd.schemes.offline import make_trained
from dfkd.schemes.one import ONE, Branches
from dfkd.schemes.together import Together
from dfkd.types import Batch, InputSpec, Outputs

SPEC = InputSpec((1, 8, 8), 4)
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TEACHER = 2.0 * torch.randn(12, 4, generator=torch.Generator().manual_seed(2))


def student() -> nn.Module:
    return models.build("digits_cnn", SPEC, width=2)


def branches(stem: str = "bn2", number: int = 3, of: str | None = None) -> Branches:
    module = make_trained(Together(student if of is None else of, ONE(stem, number)), SPEC, 1)
    assert isinstance(module, Branches)
    with torch.no_grad():  # so that weights differ from row to row
        module.gate.weight += 3.0 * torch.randn(module.gate.weight.shape, generator=torch.Generator().manual_seed(5))
    return module


def apart(module: Branches) -> list[nn.Module]:
    """Each branch as a whole network of its own, with a copy of the stem."""
    whole = []
    for branch in module.branches:
        net = copy.deepcopy(module.branches[0])
        for name, part in branch.named_children():
            if list(part.parameters()):
                setattr(net, name, copy.deepcopy(part))
        whole.append(net)
    return whole


def test_the_gate_is_positive_and_sums_to_one() -> None:
    weights = branches().weights(40.0 * torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(4)))
    assert weights.shape == (9, 3)
    assert weights.min() >= 0.0
    assert weights.std(dim=0).min() > 1e-2
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(9))


def test_the_gate_begins_with_equal_weights() -> None:
    fresh = make_trained(Together(student, ONE("bn2", 4)), SPEC, 1)
    assert isinstance(fresh, Branches)
    assert torch.equal(fresh.weights(torch.rand(5, 4, 2, 2)), torch.full((5, 4), 0.25))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("stem", ["conv1", "bn2", "conv3"])
def test_answers_and_slopes_equal_those_of_networks_with_a_stem_each(stem: str, mode: bool) -> None:
    """z = sum of g_i z_i, row by row; the stem's slope is the sum of what its copies would get."""
    module = branches(stem).train(mode)
    nets = [net.train(mode) for net in apart(module)]
    given: list[Tensor] = []
    handle = nets[0].get_submodule(stem).register_forward_hook(lambda *args: given.append(args[2].clone()))
    answers = [net(X) for net in nets]
    handle.remove()
    weights = torch.softmax(module.gate(given[0].mean(dim=(2, 3))), dim=1)
    expected = torch.stack([sum(weights[n, i] * answers[i][n] for i in range(3)) for n in range(len(X))])
    found = module(X)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    stem_slope = module.branches[0].get_parameter("conv1.weight").grad
    module.zero_grad()
    expected.square().sum().backward()
    copies = [net.get_parameter("conv1.weight").grad for net in nets]
    torch.testing.assert_close(stem_slope, torch.stack([slope for slope in copies if slope is not None]).sum(dim=0))


def test_the_stem_is_computed_once_and_its_statistics_move_once() -> None:
    module = branches()
    calls: list[int] = []
    module.branches[0].get_submodule("conv1").register_forward_hook(lambda *_: calls.append(1))
    module.train()(X)
    assert len(calls) == 1
    assert int(module.branches[0].get_buffer("bn1.num_batches_tracked")) == 1
    assert next(name for name, _ in module.branches[1].named_parameters()) == "conv3.weight"


def test_nothing_of_a_step_is_held_after_it() -> None:
    """A graph could be neither copied nor sent to another process."""
    module = branches().train()
    module(X)
    assert copy.deepcopy(module)(X).shape == (12, 4)
    with pytest.raises(RuntimeError):
        module(torch.rand(12, 2, 8, 8))
    assert module._outputs == {}


def test_the_objective_is_its_definition_and_the_ensemble_is_fixed_for_its_branches() -> None:
    module = branches().train()
    scheme = ONE("bn2", 3, weight=0.5, temperature=3.0)
    objective = scheme.objective(combine({"kl": (1.5, KL(2.0))}))
    probe = Probe(module, SPEC, name="student")
    with probe.taps(*objective.needs["student"]):
        answers = probe.learn(X)
    logits = [answers.features[node] for node in scheme.nodes]
    expected = 1.5 * 4.0 * sum(kl_nats(z, TEACHER, 2.0) for z in (answers.logits, *logits))
    taught = sum((kl_nats(z, answers.logits.detach(), 3.0) for z in logits), torch.zeros(12))
    total = objective(answers, Outputs(TEACHER), Batch(X)).total
    torch.testing.assert_close(total, (expected + 0.5 * 9.0 * taught).mean())
    alone = Peers(tuple(("student", node) for node in scheme.nodes), 3.0)(answers, Outputs(TEACHER), Batch(X))
    torch.testing.assert_close(alone, taught)
    (slope,) = torch.autograd.grad(alone.sum(), module.gate.weight, allow_unused=True)
    assert slope is None  # the gate learns from the objective, not by pleasing its branches


def test_a_stem_inside_a_stage_takes_what_is_before_it() -> None:
    module = branches("layer2.0", 2, of="resnet20")
    names = {name.rpartition(".")[0] for name, _ in module.branches[1].named_parameters()}
    assert not any(name.startswith(("conv1", "bn1", "layer1", "layer2.0")) for name in names)
    assert {"layer2.1.conv1", "layer3.0.conv1", "linear"} <= names
    assert module(X).shape == (12, 4)


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("bn4", "stem: module path of the student: unknown 'bn4'; the nearest is 'bn"),
        ("linear", "stem: expected something left for branches, found nothing to train after 'linear'"),
        ("", "stem: module path of the student: unknown ''"),
    ],
)
def test_a_stem_that_is_none(stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        branches(stem)


class Twice(nn.Module):
    """Uses one activation twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second, self.last = nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.last(self.act(self.second(self.act(self.first(x.flatten(1))))))
        return answers


def test_a_part_of_the_stem_that_is_used_again_is_named() -> None:
    module = make_trained(Together(Twice, ONE("second", 2)), SPEC, 1)
    with pytest.raises(
        ValueError, match="module path 'act' of the student: expected it to give one tensor, found another"
    ):
        module(X)
