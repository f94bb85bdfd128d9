"""The generator for larger images: its layers as described, its box, its start, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn

from generators import Dcgan


def test_has_the_layers_described() -> None:
    net = Dcgan((3, 128, 128), 256)
    # Linear to 512 x 8 x 8 with bias; 4x4 kernels without; BatchNorm of 512, 256, 128, 64, 64; one 3x3 with bias
    expected = (256 + 1) * 512 * 64 + 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 64)
    expected += 2 * (512 + 256 + 128 + 64 + 64) + 64 * 3 * 9 + 3
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 48, 32)])
def test_makes_images_in_its_box(shape: tuple[int, int, int]) -> None:
    net = Dcgan(shape, 5, low=-0.3, high=0.7)
    with torch.no_grad():
        net.head.weight *= 1e4
        x = net(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)))
    assert x.shape == (4, *shape)
    assert x.min() == torch.tensor(-0.3)
    assert x.max() == torch.tensor(0.7)


def test_starts_as_described() -> None:
    net = Dcgan((3, 32, 32), 64)
    for part in net.modules():
        if isinstance(part, (nn.Linear, nn.ConvTranspose2d)):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(part, nn.BatchNorm2d):
            assert part.weight.mean().item() == pytest.approx(1.0, abs=0.015)
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert all(not value.any() for name, value in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": (1, 40, 32)}, r"shape: .*32, 48.*\(1, 40, 32\)"),
        ({"shape": (1, 16, 16)}, "shape"),
        ({"latent": 0}, "latent: .* >= 1, found 0"),
        ({"low": 1.0}, "low"),
    ],
)
def test_names_what_it_refuses(given: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"shape": (1, 32, 32), "latent": 4, **given}
    with pytest.raises(ValueError, match=said):
        Dcgan(settings.pop("shape"), **settings)
