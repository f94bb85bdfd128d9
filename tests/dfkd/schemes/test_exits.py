"""Deep to shallow: exits at the features they name, taught by the deepest, and gone at the end."""

import pytest
import torch
from torch import Tensor, nn

from dfkd import models
from dfkd.losses import KL, combine
from dfkd.losses.response import kl_nats
from dfkd.problem import Probe
from dfkd.schemes.exits import DeepToShallow, Exits
from dfkd.schemes.offline import make_trained
from dfkd.schemes.together import Together
from dfkd.types import Batch, InputSpec, Outputs

SPEC = InputSpec((1, 8, 8), 4)
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TEACHER = 2.0 * torch.randn(12, 4, generator=torch.Generator().manual_seed(2))


def student() -> nn.Module:
    return models.build("digits_cnn", SPEC, width=2)


def exits(*paths: str) -> Exits:
    module = make_trained(Together(student, DeepToShallow(paths)), SPEC, 1)
    assert isinstance(module, Exits)
    return module


def test_exits_classify_the_mean_of_what_their_part_gave() -> None:
    """Before the activation that follows in place, of the shape that was found."""
    module = exits("bn1", "conv3", "linear").train()
    assert [tuple(head.get_parameter("weight").shape) for head in module.heads] == [(4, 2), (4, 4), (4, 4)]
    given: dict[str, Tensor] = {}
    for path in ("bn1", "conv3", "linear"):
        module.net.get_submodule(path).register_forward_hook(lambda *a, path=path: given.update({path: a[2].clone()}))
    probe = Probe(module, SPEC, name="student")
    with probe.taps("heads.0", "heads.1", "heads.2", "net"):
        answers = probe.learn(X)
    for place, path in enumerate(("bn1", "conv3", "linear")):
        features = given[path] if given[path].ndim == 2 else given[path].mean(dim=(2, 3))
        torch.testing.assert_close(answers.features[f"heads.{place}"], module.heads[place](features))
    assert torch.equal(answers.logits, answers.features["net"])
    assert given["bn1"].min() < 0.0


def test_the_objective_is_its_definition_and_the_deepest_is_fixed_for_its_exits() -> None:
    module = exits("bn1", "bn2").train()
    objective = DeepToShallow(("bn1", "bn2"), share=0.4, temperature=3.0).objective(combine({"kl": (1.5, KL(2.0))}))
    probe = Probe(module, SPEC, name="student")
    with probe.taps(*objective.needs["student"]):
        answers = probe.learn(X)
    deep, heads = answers.logits, [answers.features["heads.0"], answers.features["heads.1"]]
    expected = 1.5 * 4.0 * kl_nats(deep, TEACHER, 2.0)
    for head in heads:
        expected = expected + 0.6 * 1.5 * 4.0 * kl_nats(head, TEACHER, 2.0)
        expected = expected + 0.4 * 9.0 * kl_nats(head, deep.detach(), 3.0)
    total = objective(answers, Outputs(TEACHER), Batch(X)).total
    torch.testing.assert_close(total, expected.mean())
    slopes = [
        torch.autograd.grad(v.mean(), module.net.get_parameter("linear.weight"), retain_graph=True)[0]
        for v in (total, expected)
    ]
    torch.testing.assert_close(*slopes)


def test_an_exit_teaches_the_layers_before_it_and_no_other() -> None:
    module = exits("bn2").train()
    given: list[Tensor] = []
    module.heads[0].register_forward_hook(lambda *args: given.append(args[2]))
    module(X)
    given[0].square().sum().backward()
    slopes = {name: parameter.grad for name, parameter in module.net.named_parameters()}
    assert {name for name, slope in slopes.items() if slope is not None and slope.abs().max() > 1e-6} == {
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "conv2.weight",
        "bn2.weight",
        "bn2.bias",
    }
    assert slopes["conv3.weight"] is None


def test_as_it_is_used_it_is_the_student_alone() -> None:
    module = exits("bn1").eval()
    asked: list[int] = []
    module.heads[0].register_forward_hook(lambda *_: asked.append(1))
    assert torch.equal(module(X), module.net(X))
    assert asked == []


def test_exits_start_from_their_seed() -> None:
    first, second = exits("bn1", "bn2"), exits("bn1", "bn2")
    assert torch.equal(first.heads[1].get_parameter("weight"), second.heads[1].get_parameter("weight"))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("bn1", "bm2"), "exits: module path of the student: unknown 'bm2'; the nearest is 'bn2'"),
        (("bn1", "bn1"), "exits: expected different module paths of the student, found"),
        ("bn1", "exits: expected different module paths of the student, found 'bn1'"),
    ],
)
def test_an_exit_that_is_none(paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trained(Together(student, DeepToShallow(paths)), SPEC, 1)
