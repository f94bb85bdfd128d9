"""Deep to shallow: exits at the features they name, taught by the deepest, and gone at the end."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd import models
from dfkd.losses import KL, attention_distance, combine
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


def test_features_of_exits_are_drawn_to_the_deepest_ones_which_are_fixed() -> None:
    """weight x mean over elements of (linear(mean over positions) - penultimate)^2, summed over exits."""
    scheme = DeepToShallow(("bn1", "conv3"), share=0.0, features=0.7)
    module = make_trained(Together(student, scheme), SPEC, 1).train()
    assert isinstance(module, Exits)
    assert [tuple(fit.get_parameter("weight").shape) for fit in module.fits] == [(4, 2), (4, 4)]
    given: dict[str, Tensor] = {}
    for path in ("bn1", "conv3"):
        module.net.get_submodule(path).register_forward_hook(lambda *a, path=path: given.update({path: a[2].clone()}))
    module.net.get_submodule("linear").register_forward_pre_hook(lambda _, a: given.update(deepest=a[0]))
    kl = combine({"kl": (1.0, KL())})
    totals = []
    for each in (scheme, DeepToShallow(("bn1", "conv3"), share=0.0)):
        objective, probe = each.objective(kl), Probe(module, SPEC, name="student")
        with probe.taps(*objective.needs["student"]):
            totals.append(objective(probe.learn(X), Outputs(TEACHER), Batch(X)).total)
    expected = torch.zeros(())
    for fit, path in zip(module.fits, ("bn1", "conv3"), strict=True):
        expected = expected + 0.7 * (fit(given[path].mean(dim=(2, 3))) - given["deepest"].detach()).square().mean()
    torch.testing.assert_close(totals[0] - totals[1], expected)
    parameters = [module.net.get_parameter("conv1.weight"), module.fits[1].get_parameter("weight")]
    slopes = torch.autograd.grad(totals[0] - totals[1], parameters, retain_graph=True)
    for found, wanted in zip(slopes, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(found, wanted)
        assert wanted.abs().max() > 1e-5


def test_attention_of_an_exit_is_drawn_to_that_of_the_next() -> None:
    scheme = DeepToShallow(("bn1", "bn2", "bn3"), share=0.0, attention=50.0)
    module = make_trained(Together(student, scheme), SPEC, 1).train()
    objective, probe = scheme.objective(combine({"kl": (1.0, KL())})), Probe(module, SPEC, name="student")
    with probe.taps(*objective.needs["student"]):
        answers = probe.learn(X)
    found = objective(answers, Outputs(TEACHER), Batch(X))
    maps = [answers.features[f"net.bn{layer}"] for layer in (1, 2, 3)]
    expected = attention_distance(maps[0], maps[1].detach()) + attention_distance(maps[1], maps[2].detach())
    torch.testing.assert_close(found.terms["attention of exits"], expected.mean().detach())
    assert expected.mean() > 1e-4
    deepest = module.get_parameter("net.conv3.weight")
    term = dict(objective.terms)["attention of exits"][1]
    slope = torch.autograd.grad(term(answers, Outputs(TEACHER), Batch(X)).sum(), deepest, materialize_grads=True)[0]
    assert slope.abs().max() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": -1.0}, "features: expected a finite number >= 0, found -1.0"),
        ({"attention": float("nan")}, "attention: expected a finite number >= 0, found nan"),
        ({"exits": ("bn1",), "attention": 1.0}, "attention: expected two exits or more"),
        ({"exits": ("bn1", "linear"), "attention": 1.0}, "attention: cannot fit the map .* 'bn1' to the vector"),
        ({"exits": ("bn1", "bm2"), "attention": 1.0}, "exits: module path of the student: unknown 'bm2'; the nearest"),
    ],
)
def test_weights_of_features_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trained(Together(student, DeepToShallow(**{"exits": ("bn1", "bn2"), **options})), SPEC, 1)
    headless = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    with pytest.raises(ValueError, match="features: tap 'penultimate': needs a student with penultimate"):
        make_trained(Together(headless, DeepToShallow(("0",), features=1.0)), SPEC, 1)


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
