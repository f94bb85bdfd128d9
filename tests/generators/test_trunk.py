"""The trunk: its sizes, its parameter counts as published, its box, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from generators import Dcgan, Trunk
from generators.trunk import Head


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_has_the_published_number_of_parameters() -> None:
    # Linear to C0 x 8 x 8, three BatchNorms, two inner convolutions without bias, one output convolution with
    assert count(Trunk((3, 32, 32), 256, "small")) == 2_328_899
    assert count(Trunk((3, 32, 32), 256, "large")) == 4_581_955
    assert round(count(Trunk((3, 32, 32), 512, "large")) / 1e6, 2) == 8.78


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("width", ["small", "large"])
def test_makes_images_of_any_size_that_is_a_multiple_of_four(shape: tuple[int, int, int], width: Any) -> None:
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    assert Trunk(shape, 5, width)(z).shape == (3, *shape)


@pytest.mark.parametrize("network", [Trunk((3, 32, 32), 5, "small"), Dcgan((3, 32, 32), 5)])
def test_works_channels_last_and_gives_images_channels_first(network: nn.Module) -> None:
    laid: list[bool] = []
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.register_forward_hook(
                lambda _, __, out: laid.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    x = network(torch.randn(4, 5))
    assert laid
    assert all(laid)
    assert x.is_contiguous()


def test_every_latent_entry_reaches_every_pixel_row_in_the_middle() -> None:
    trunk = Trunk((1, 8, 8), 4, "small").eval()
    z = torch.zeros(1, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(trunk(z)[0, 0, 4, 4], z)
    assert slope.abs().min() > 0.0


def test_stays_in_its_box_and_reaches_both_ends() -> None:
    trunk = Trunk((1, 8, 8), 4, "small", low=-0.3, high=0.7)
    with torch.no_grad():
        trunk.head.weight *= 1e4
        x = trunk(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
    assert x.min() == torch.tensor(-0.3)
    assert x.max() == torch.tensor(0.7)


HEADS: tuple[Head, ...] = ("sigmoid", "tanh", "tanh_batchnorm", "batchnorm")


def slow_pixels(out: torch.Tensor, head: str, low: float, high: float, scale: tuple[float, float]) -> torch.Tensor:
    """(n, c, h, w) of the last convolution as pixels, value by value; batch statistics, 1e-5 under the root.

    scale: what a mean of 0 and a deviation of 1 are in fractions of the box.
    """
    found = torch.empty_like(out)
    n, c, h, w = out.shape
    for j in range(c):
        values = [v for i in range(n) for row in out[i, j].tolist() for v in row]
        if head != "batchnorm":
            values = [1 / (1 + math.exp(-v)) if head == "sigmoid" else math.tanh(v) for v in values]
        if head in ("tanh_batchnorm", "batchnorm"):
            mean = sum(values) / len(values)
            var = sum((v - mean) ** 2 for v in values) / len(values)
            normal = [(v - mean) / math.sqrt(var + 1e-5) for v in values]
            values = [min(max(low + (high - low) * (scale[0] + scale[1] * v), low), high) for v in normal]
        else:
            values = [low + (high - low) * (v if head == "sigmoid" else (1 + v) / 2) for v in values]
        found[:, j] = torch.tensor(values).reshape(n, h, w)
    return found


@pytest.mark.parametrize(("given", "scale"), [({}, (0.5, 0.25)), ({"mean": 0.13, "std": 0.31}, (0.13, 0.31))])
@pytest.mark.parametrize("head", HEADS)
def test_reads_its_head_as_pixels(head: Head, given: dict[str, Any], scale: tuple[float, float]) -> None:
    trunk = Trunk((2, 8, 8), 4, "small", head=head, low=-1.0, high=2.0, **given)
    out = 2.0 * torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(3)) + 0.5
    torch.testing.assert_close(trunk.pixels(out).detach(), slow_pixels(out, head, -1.0, 2.0, scale))
    affine = [name for name, _ in trunk.named_parameters() if name.startswith("norm")]
    assert affine == (["norm.weight", "norm.bias"] if head == "batchnorm" else [])


@pytest.mark.parametrize("head", HEADS)
def test_nothing_leaves_the_box(head: Head) -> None:
    """Neither when images are made nor for the generator's step: it finds nothing where the student is not shown."""
    trunk = Trunk((1, 8, 8), 4, "small", head=head)
    out = 0.2 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    out[0] = 10.0  # far from most, after tanh too
    out.requires_grad_(True)
    x = trunk.pixels(out)
    assert x.min() >= 0.0
    assert x.max() <= 1.0
    if head.endswith("batchnorm"):
        assert bool((x[0] == 1.0).all())
        (slope,) = torch.autograd.grad(x[0].sum(), out)
        assert not slope.any()  # what is clipped asks for nothing


@pytest.mark.parametrize("head", ["tanh_batchnorm", "batchnorm"])
def test_a_normalised_head_has_its_mean_and_deviation(head: Head) -> None:
    trunk = Trunk((1, 8, 8), 4, "small", head=head, mean=0.4, std=0.02)
    x = trunk.pixels(0.2 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(3)))
    assert x.mean().item() == pytest.approx(0.4, abs=1e-4)
    assert x.std().item() == pytest.approx(0.02, abs=1e-4)


def test_biases_are_of_the_two_inner_convolutions() -> None:
    plain, biased = (Trunk((3, 32, 32), 256, "small", biases=biases) for biases in (False, True))
    assert count(biased) - count(plain) == 128 + 64


def test_spectral_norm_is_of_the_three_convolutions() -> None:
    torch.manual_seed(0)
    trunk = Trunk((1, 8, 8), 4, "small", spectral_norm=True)
    for _ in range(200):
        trunk(torch.randn(4, 4))  # in training each pass refines the largest singular value by one power iteration
    kernels = [part.weight for part in trunk.modules() if isinstance(part, nn.Conv2d)]
    largest = [torch.linalg.matrix_norm(kernel.flatten(1), ord=2).item() for kernel in kernels]
    assert largest == pytest.approx([1.0] * 3, rel=0.02)
    plain = Trunk((1, 8, 8), 4, "small")
    assert torch.linalg.matrix_norm(plain.head.weight.flatten(1), ord=2).item() < 0.9  # not 1 anyway


def test_is_grey_where_the_head_says_nothing() -> None:
    trunk = Trunk((1, 8, 8), 4, "small", low=-1.0, high=3.0)
    with torch.no_grad():
        for parameter in trunk.head.parameters():
            parameter.zero_()
    torch.testing.assert_close(trunk(torch.randn(2, 4)), torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize(("wanted", "given"), [(1e-5, {}), (0.8, {"batchnorm_eps": 0.8})])
def test_names_the_eps_of_its_batchnorms(wanted: float, given: Any) -> None:
    norms = [part for part in Trunk((1, 8, 8), 4, "small", **given).modules() if isinstance(part, nn.BatchNorm2d)]
    assert [part.eps for part in norms] == [1e-5, wanted, wanted]  # the inner blocks', not the stem's


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": (1, 30, 32)}, r"shape: .*\(1, 30, 32\)"),
        ({"shape": (1, 32, 30)}, "shape"),
        ({"shape": (1, 4, 4)}, "shape"),
        ({"shape": (0, 8, 8)}, "shape"),
        ({"latent": 0}, "latent: .* >= 1, found 0"),
        ({"std": 0.0}, "std: expected a number > 0, found 0.0"),
        ({"head": "sigmod"}, "head: expected one of sigmoid, tanh, tanh_batchnorm, batchnorm, found 'sigmod'"),
        ({"width": "huge"}, "width: expected one of small, large, found 'huge'"),
        ({"low": 1.0, "high": 1.0}, "low"),
        ({"batchnorm_eps": 0.0}, "batchnorm_eps"),
    ],
)
def test_names_what_it_refuses(given: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"shape": (1, 8, 8), "latent": 4, "width": "small", **given}
    with pytest.raises(ValueError, match=said):
        Trunk(settings.pop("shape"), **settings)
