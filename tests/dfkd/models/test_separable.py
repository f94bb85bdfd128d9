"""Depthwise-separable networks: sizes by formula, the same maps as before, for every network of the table."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.models import MODELS, build, load, save
from dfkd.models.separable import separable
from dfkd.rng import initialised
from dfkd.types import InputSpec

DIGITS, CIFAR = InputSpec((1, 8, 8), 10), InputSpec((3, 32, 32), 10)


def spec_of(name: str) -> InputSpec:
    return DIGITS if name.startswith("digits") else CIFAR


def fresh(name: str, spec: InputSpec, **options: object) -> nn.Module:
    with initialised(0):
        return build(name, spec, **options)  # type: ignore[arg-type]  # options of any kind


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_the_size_of_the_formula(name: str) -> None:
    with torch.device("meta"):
        plain, thin = build(name, spec_of(name)), build(name, spec_of(name), separable=True)
    expected = size(plain)
    for part in plain.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size[0] > 1:
            a, c, k = part.in_channels, part.out_channels, part.kernel_size[0]
            weights = a * k * k + a * c
            assert weights / (a * c * k * k) == pytest.approx(1 / c + 1 / k**2)  # the share that is left
            bias = 0 if part.bias is None else c
            expected += weights - (a * c * k * k + bias) + 2 * (a + c)
    assert size(thin) == expected


@pytest.mark.parametrize("name", ["digits_cnn", "lenet5", "resnet20", "resnet18", "wrn-16-2"])
def test_every_module_gives_maps_of_the_same_shape(name: str) -> None:
    spec = spec_of(name)
    shapes: list[dict[str, tuple[int, ...]]] = []
    for thin in (False, True):
        module = fresh(name, spec, separable=thin).eval()
        found: dict[str, tuple[int, ...]] = {}
        paths = [path for path, _ in fresh(name, spec).named_modules()]
        for path in paths:
            module.get_submodule(path).register_forward_hook(
                lambda part, given, out, path=path, found=found: found.update({path: tuple(out.shape)})
            )
        module(torch.rand(2, *spec.shape))
        shapes.append(found)
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > 5


def slow(x: Tensor, layers: nn.Module, stride: int) -> Tensor:
    """Each map by itself, standardised and cut at zero; then each new map as a weighted sum of all, standardised."""
    part = dict(layers.named_children())
    depthwise, pointwise = part["depthwise"].get_parameter("weight"), part["pointwise"].get_parameter("weight")
    single = [functional.conv2d(x[:, i : i + 1], depthwise[i : i + 1], padding=1, stride=stride) for i in range(3)]
    maps = torch.cat([_standard(one) for one in single], dim=1).clamp_min(0)
    mixed = [sum(pointwise[j, i, 0, 0] * maps[:, i] for i in range(3)) for j in range(5)]
    return torch.stack([_standard(one[:, None])[:, 0] for one in map(torch.as_tensor, mixed)], dim=1)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_its_definition(stride: int) -> None:
    with initialised(1):
        module = separable(nn.Sequential(nn.Conv2d(3, 5, 3, stride=stride, padding=1)))
        x = torch.randn(4, 3, 7, 7)
    torch.testing.assert_close(module(x), slow(x, module.get_submodule("0"), stride), atol=1e-5, rtol=1e-4)


def test_leaves_the_rest_as_it_is() -> None:
    mixed = nn.Conv2d(4, 6, 1)
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    module = separable(nn.Sequential(nn.Conv2d(1, 4, 3, dilation=2, padding="same"), mixed, nn.Sequential(grouped)))
    assert module.get_submodule("1") is mixed
    assert module.get_submodule("2.0") is grouped
    depthwise = module.get_submodule("0.depthwise")
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.dilation, depthwise.padding, depthwise.groups) == ((2, 2), "same", 1)


def test_is_saved_with_how_it_is_built(tmp_path: Path) -> None:
    module = fresh("digits_cnn", DIGITS, width=4, separable=True).eval()
    options = {"width": 4, "separable": True}
    save(tmp_path / "thin.safetensors", module, reference="digits_cnn", spec=DIGITS, options=options)
    x = torch.rand(3, *DIGITS.shape)
    assert torch.equal(load(tmp_path / "thin.safetensors")(x), module(x))


def test_says_what_it_cannot_change() -> None:
    with pytest.raises(ValueError, match="separable: expected a network with convolutions wider than 1x1, found none"):
        separable(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="separable: expected true or false, found 'yes'"):
        fresh("digits_cnn", DIGITS, separable="yes")
