"""The networks: sizes as published, names as in published weights, blocks against their definition."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.models import MODELS, build
from dfkd.rng import initialised
from dfkd.types import InputSpec

DIGITS = InputSpec((1, 8, 8), 10)
GREY32 = InputSpec((1, 32, 32), 10)
CIFAR = InputSpec((3, 32, 32), 10)


def spec_of(name: str) -> InputSpec:
    return DIGITS if name.startswith("digits") else CIFAR


def network(name: str, spec: InputSpec, **options: Any) -> nn.Module:
    with initialised(0):
        return build(name, spec, **options)


def pixels(spec: InputSpec, n: int = 2) -> Tensor:
    return torch.rand(n, *spec.shape, generator=torch.Generator().manual_seed(0))


# weights and biases; running statistics are buffers
@pytest.mark.parametrize(
    ("name", "spec", "parameters"),
    [
        ("digits_cnn", DIGITS, 14_458),
        ("lenet5", GREY32, 61_706),  # LeCun et al. 1998 with every map of C3 connected to every map of S2
        ("lenet5_half", GREY32, 15_738),
        ("resnet8", CIFAR, 75_290),
        ("resnet20", CIFAR, 269_722),  # published as 0.27 M
        ("resnet32", CIFAR, 464_154),  # 0.46 M
        ("resnet44", CIFAR, 658_586),  # 0.66 M
        ("resnet56", CIFAR, 853_018),  # 0.85 M
        ("resnet110", CIFAR, 1_727_962),  # 1.7 M
        ("resnet18", CIFAR, 11_173_962),
        ("resnet34", CIFAR, 21_282_122),
        ("wrn-16-1", CIFAR, 175_066),
        ("wrn-16-2", CIFAR, 691_674),
        ("wrn-40-1", CIFAR, 563_930),  # 0.6 M
        ("wrn-40-2", CIFAR, 2_243_546),  # 2.2 M
        ("wrn-28-10", CIFAR, 36_479_194),  # 36.5 M
    ],
)
def test_has_the_published_size(name: str, spec: InputSpec, parameters: int) -> None:
    with torch.device("meta"):
        module = build(name, spec)
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("name", MODELS)
def test_takes_pixels_and_gives_logits_with_gradients(name: str) -> None:
    spec = InputSpec(spec_of(name).shape, 7)
    module = network(name, spec)
    x = pixels(spec).requires_grad_(True)
    logits = module(x)
    assert (logits.shape, logits.dtype) == ((2, 7), torch.float32)
    logits[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0.0
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("lenet5", "lenet5_half")])
def test_has_batchnorm_over_images(name: str) -> None:
    spec = spec_of(name)
    module, shapes = network(name, spec).eval(), []
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(lambda _, args: shapes.append(args[0].ndim))
    module(pixels(spec))
    assert len(shapes) >= 3
    assert set(shapes) == {4}


@pytest.mark.parametrize("name", ["lenet5", "lenet5_half"])
def test_plain_lenet_has_no_batchnorm(name: str) -> None:
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network(name, GREY32).modules())


@pytest.mark.parametrize("name", ["digits_cnn", "digits_cnn_half", "resnet8", "resnet20"])
def test_group_norm_knows_no_other_rows_and_stores_nothing(name: str) -> None:
    """The same weights by the same names, and in training a row alone is as it is in a batch."""
    spec = spec_of(name)
    module, batch = network(name, spec, norm="group").train(), network(name, spec)
    assert dict(module.named_parameters()).keys() == dict(batch.named_parameters()).keys()
    assert not list(module.buffers())
    groups = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    assert len(groups) == sum(isinstance(part, nn.BatchNorm2d) for part in batch.modules())
    assert {part.num_groups for part in groups} == {1}
    x = pixels(spec, 3)
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), atol=1e-4, rtol=1e-4)
    maps = torch.randn(2, groups[0].num_channels, 3, 3, generator=torch.Generator().manual_seed(1))
    flat = maps.flatten(1)
    slow = (flat - flat.mean(dim=1, keepdim=True)) / (flat.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(groups[0](maps).flatten(1), slow)
    with pytest.raises(ValueError, match="norm: unknown 'goup'; the nearest is 'group'"):
        network(name, spec, norm="goup")


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "wrn-16-1", "resnet18"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 28, 28), (3, 20, 36)])
def test_takes_other_sizes(name: str, shape: tuple[int, int, int]) -> None:
    spec = InputSpec(shape, 3)
    assert network(name, spec).eval()(pixels(spec)).shape == (2, 3)


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_mix_in_evaluation(name: str) -> None:
    spec = spec_of(name)
    module, x = network(name, spec).eval(), pixels(spec, 3)
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), atol=1e-4, rtol=1e-4)


def test_resnet_has_the_names_of_public_weights() -> None:
    keys = set(network("resnet20", CIFAR).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.2.bn2.bias", "linear.bias"} <= keys
    assert not any("shortcut" in key or "downsample" in key for key in keys)  # option A has nothing to learn


def test_option_a_shortcut_is_every_second_pixel_between_maps_of_zeros() -> None:
    block = network("resnet20", CIFAR).eval().get_submodule("layer2.0")
    branch = block.get_submodule("bn2")
    assert isinstance(branch, nn.BatchNorm2d)
    nn.init.zeros_(branch.weight)  # what is left is the shortcut
    x = torch.rand(2, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    slow = torch.zeros(2, 32, 3, 3)
    for row in range(3):
        for column in range(3):
            slow[:, 8:24, row, column] = x[:, :, 2 * row, 2 * column]
    assert torch.equal(block(x), slow)


def test_wide_block_normalises_before_each_convolution() -> None:
    module = network("wrn-16-2", CIFAR).eval()
    for path, x in (("layer1.0", torch.randn(2, 16, 6, 6)), ("layer1.1", torch.randn(2, 32, 6, 6))):
        part = dict(module.get_submodule(path).named_children())
        first = part["bn1"](x).relu()
        branch = part["conv2"](part["bn2"](part["conv1"](first)).relu())
        kept = part["shortcut"](first) if "shortcut" in part else x
        torch.testing.assert_close(module.get_submodule(path)(x), branch + kept)


def test_wide_dropout_is_off_in_evaluation() -> None:
    module = network("wrn-16-1", CIFAR, dropout=0.5)
    x = pixels(CIFAR)
    assert torch.equal(module.eval()(x), module(x))
    assert torch.equal(module(x), network("wrn-16-1", CIFAR).eval()(x))
    with initialised(1):
        assert not torch.equal(module.train()(x), module(x))


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        (
            "lenet5_bn",
            DIGITS,
            "lenet5: expected 32x32 images, found 8x8; load the data with size 32, or take digits_cnn",
        ),
        ("digits_cnn", InputSpec((1, 2, 8), 10), "digits_cnn: expected images of at least 4x4, found 2x8"),
        ("wrn-17-2", CIFAR, r"wrn-17-2: expected depth 6n \+ 4"),
        ("wrn-4-2", CIFAR, r"wrn-4-2: expected depth 6n \+ 4"),
        ("wrn-16-0", CIFAR, "wrn-16-0: expected a widening factor >= 1, found 0"),
    ],
)
def test_says_what_does_not_fit(name: str, spec: InputSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, spec)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits_cnn", {"width": 0}, "width: expected an integer >= 1, found 0"),
        ("digits_cnn", {"width": "wide"}, "width: expected an integer >= 1, found 'wide'"),
        ("resnet18", {"width": 0}, "width: expected an integer >= 1, found 0"),
        ("wrn-16-1", {"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), found 1.0"),
    ],
)
def test_says_which_option_is_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, CIFAR, **options)
