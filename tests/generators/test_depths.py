"""A trunk cut open gives the same images, whatever the place of the cut."""

from typing import Any

import pytest
import torch

from generators import Trunk
from generators.depths import DEPTHS, image_from, maps_of

Z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))

KINDS: list[dict[str, Any]] = [
    {},
    {"head": "tanh_batchnorm", "biases": True, "batchnorm_eps": 0.8},
    {"spectral_norm": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", range(DEPTHS))
def test_the_later_layers_finish_what_the_first_began(kind: dict[str, Any], depth: int) -> None:
    trunk = Trunk((3, 12, 8), 6, "small", low=-1.0, high=2.0, **kind).eval()
    with torch.no_grad():
        maps, x = maps_of(trunk, Z)
        assert torch.equal(x, trunk(Z))
        assert torch.equal(image_from(trunk, maps[depth], depth), x)


def test_maps_have_the_published_sizes() -> None:
    """128 maps of a quarter and of half the side, 64 of the whole: 104 values a pixel."""
    maps, _ = maps_of(Trunk((3, 32, 32), 6, "small"), Z)
    assert [tuple(part.shape[1:]) for part in maps] == [(128, 8, 8), (128, 16, 16), (64, 32, 32)]
    assert sum(part[0].numel() for part in maps) == 104 * 32 * 32


def test_the_first_cut_is_after_the_first_batchnorm() -> None:
    trunk = Trunk((1, 8, 8), 6, "small").train()
    first = maps_of(trunk, Z)[0][0]
    torch.testing.assert_close(first.mean(dim=(0, 2, 3)), torch.zeros(128), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("depth", [-1, 3])
def test_knows_no_other_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth: expected an integer from 0 to 2, found {depth}"):
        image_from(Trunk((1, 8, 8), 6, "small"), torch.zeros(1, 128, 2, 2), depth)
