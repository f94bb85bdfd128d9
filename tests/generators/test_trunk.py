"""The trunk: its sizes, its parameter counts as published, its box, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn

from generators import Trunk


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


def test_is_grey_where_the_head_says_nothing() -> None:
    trunk = Trunk((1, 8, 8), 4, "small", low=-1.0, high=3.0)
    with torch.no_grad():
        for parameter in trunk.head.parameters():
            parameter.zero_()
    torch.testing.assert_close(trunk(torch.randn(2, 4)), torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize(("wanted", "given"), [(1e-5, {}), (0.8, {"batchnorm_eps": 0.8})])
def test_names_the_eps_of_its_batchnorms(wanted: float, given: dict[str, float]) -> None:
    norms = [part for part in Trunk((1, 8, 8), 4, "small", **given).modules() if isinstance(part, nn.BatchNorm2d)]
    assert [part.eps for part in norms] == [wanted] * 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": (1, 30, 32)}, r"shape: .*\(1, 30, 32\)"),
        ({"shape": (1, 32, 30)}, "shape"),
        ({"shape": (1, 4, 4)}, "shape"),
        ({"shape": (0, 8, 8)}, "shape"),
        ({"latent": 0}, "latent: .* >= 1, found 0"),
        ({"width": "huge"}, "width: expected one of small, large, found 'huge'"),
        ({"low": 1.0, "high": 1.0}, "low"),
        ({"batchnorm_eps": 0.0}, "batchnorm_eps"),
    ],
)
def test_names_what_it_refuses(given: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"shape": (1, 8, 8), "latent": 4, "width": "small", **given}
    with pytest.raises(ValueError, match=said):
        Trunk(settings.pop("shape"), **settings)
