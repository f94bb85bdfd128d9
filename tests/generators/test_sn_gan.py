"""The residual GAN: its sizes as published, a slow forward pass, its classes, its norms, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, interpolate, linear

from generators import SNCritic, SNGenerator

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 12, 8)]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_has_the_published_layers_at_32_pixels() -> None:
    """Linear to 256x4x4, three blocks of two 3x3 convolutions with two BatchNorms, one more, and a convolution."""
    block = 2 * (256 * 256 * 9 + 256) + 2 * 2 * 256
    assert count(SNGenerator((3, 32, 32))) == 128 * 4096 + 4096 + 3 * block + 2 * 256 + 256 * 3 * 9 + 3
    # pooled blocks with a 1x1 shortcut from 3 and from 128 channels, two without, and a linear layer
    c, first = 128 * 128 * 9 + 128, 3 * 128 * 9 + 128
    pooled = (first + c + 3 * 128 + 128) + (2 * c + 128 * 128 + 128)
    assert count(SNCritic((3, 32, 32))) == pooled + 2 * 2 * c + 128 + 1


@pytest.mark.parametrize(
    ("side", "start", "doublings", "halvings"), [(8, 4, 1, 0), (28, 7, 2, 2), (32, 4, 3, 2), (64, 4, 4, 3)]
)
def test_blocks_follow_the_size(side: int, start: int, doublings: int, halvings: int) -> None:
    generator, critic = SNGenerator((1, side, side), width=4), SNCritic((1, side, side), width=4)
    assert (generator.start, len(generator.blocks)) == ((4, start, start), doublings)
    assert sum(bool(block.pool) for block in critic.blocks) == halvings
    assert len(critic.blocks) - halvings >= 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [None, 3])
def test_makes_and_judges_images_of_these_sizes(shape: tuple[int, int, int], classes: int | None) -> None:
    torch.manual_seed(0)
    generator = SNGenerator(shape, latent=5, width=8, classes=classes, low=-1.0, high=3.0)
    critic = SNCritic(shape, width=8, classes=classes, low=-1.0, high=3.0)
    y = None if classes is None else torch.tensor([0, 1, 2, 2])
    x = generator(torch.randn(4, 5), y)
    assert x.shape == (4, *shape)
    assert x.is_contiguous()
    assert -1.0 <= x.min() < x.max() <= 3.0
    assert critic(x, y).shape == (4,)
    critic(x, y).sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_generator_is_its_definition() -> None:
    torch.manual_seed(0)
    generator = SNGenerator((2, 8, 8), latent=3, width=4)
    z = torch.randn(5, 3)
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    for name in state:
        if "norm.weight" in name or "norm.bias" in name:
            state[name] = torch.randn(4)
    generator.load_state_dict(state)

    def convolved(x: Tensor, name: str) -> Tensor:
        return conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def normal(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.norm.weight"], state[f"{name}.norm.bias"]
        return batch_norm(x, None, None, weight, bias, training=True).clamp_min(0.0)

    def doubled(x: Tensor) -> Tensor:
        return interpolate(x, size=(8, 8), mode="bilinear", align_corners=False)

    x = linear(z, state["stem.weight"], state["stem.bias"]).view(5, 4, 4, 4)
    inner = convolved(doubled(normal(x, "blocks.0.norms.0")), "blocks.0.convolutions.0")
    inner = convolved(normal(inner, "blocks.0.norms.1"), "blocks.0.convolutions.1")
    x = convolved(normal(doubled(x) + inner, "norm"), "head")
    torch.testing.assert_close(generator(z), (1.0 + x.tanh()) / 2.0)


def test_classes_scale_and_shift_and_begin_alike() -> None:
    torch.manual_seed(0)
    generator = SNGenerator((1, 8, 8), latent=3, width=4, classes=2)
    z = torch.randn(6, 3)
    first, second = (generator(z, torch.full((6,), c)) for c in (0, 1))
    torch.testing.assert_close(first, second)
    affine = generator.norm.affine
    assert isinstance(affine, nn.Embedding)
    with torch.no_grad():
        affine.weight[1, :4] = 2.0
        affine.weight[1, 4:] = -1.0
    torch.testing.assert_close(generator(z, torch.zeros(6, dtype=torch.int64)), first)
    assert (generator(z, torch.ones(6, dtype=torch.int64)) - second).abs().max() > 0.01


def test_a_critics_layers_have_norm_one() -> None:
    torch.manual_seed(0)
    critic = SNCritic((1, 8, 8), width=6, classes=3)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for _ in range(300):
        critic(x, y)  # in training each pass refines the largest singular values by one power iteration
    layers = [part for part in critic.modules() if isinstance(part, (nn.Conv2d, nn.Linear, nn.Embedding))]
    assert len(layers) == 4 * 2 + 1 + 1 + 1
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1.0, rel=0.02)


def test_a_critic_of_classes_adds_their_likeness() -> None:
    torch.manual_seed(0)
    critic = SNCritic((1, 8, 8), width=6, classes=3).eval()
    x = torch.rand(1, 1, 8, 8)
    features = critic.blocks((x - 0.5) / 0.5).relu().mean(dim=(2, 3))
    assert isinstance(critic.likeness, nn.Embedding)
    for c in range(3):
        expected = critic.score(features)[0, 0] + (critic.likeness.weight[c] * features[0]).sum()
        torch.testing.assert_close(critic(x, torch.tensor([c]))[0], expected)


def test_learns_two_kinds_of_images() -> None:
    """Hinge loss on bright images for class 1 and dark ones for class 0, a minute fraction of a real training."""
    torch.manual_seed(0)
    generator = SNGenerator((1, 8, 8), latent=4, width=8, classes=2)
    critic = SNCritic((1, 8, 8), width=8, classes=2)
    ways = [torch.optim.Adam(net.parameters(), lr=5e-3, betas=(0.0, 0.9)) for net in (generator, critic)]
    y = torch.arange(32) % 2
    for step in range(100):
        real = (0.2 + 0.6 * y.view(-1, 1, 1, 1) + 0.05 * torch.randn(32, 1, 8, 8)).clamp(0, 1)
        made = generator(torch.randn(32, 4), y)
        if step % 2 == 0:
            loss = (1.0 - critic(real, y)).relu().mean() + (1.0 + critic(made.detach(), y)).relu().mean()
            way = ways[1]
        else:
            loss, way = -critic(made, y).mean(), ways[0]
        way.zero_grad()
        loss.backward()
        way.step()
    with torch.no_grad():
        shades = generator(torch.randn(64, 4), torch.arange(64) % 2).mean(dim=(1, 2, 3))
    # real ones have 0.2 and 0.8; measured at four seeds: 0.20 to 0.23 and 0.75 to 0.81
    assert shades[::2].mean().item() == pytest.approx(0.2, abs=0.15)
    assert shades[1::2].mean().item() == pytest.approx(0.8, abs=0.15)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": (1, 9, 8)}, r"shape: expected .* with even sides of 8 or more, found \(1, 9, 8\)"),
        ({"shape": (1, 6, 6)}, "shape: expected"),
        ({"width": 0}, "width: expected an integer >= 1, found 0"),
        ({"classes": 0}, "classes: expected an integer >= 1, found 0"),
        ({"low": 1.0}, "low: expected a number below high"),
    ],
)
@pytest.mark.parametrize("network", [SNGenerator, SNCritic])
def test_refuses(network: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        network(**{"shape": (1, 8, 8), **given})


def test_classes_are_given_where_there_are_some() -> None:
    z, x, y = torch.randn(2, 128), torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="y: expected none"):
        SNGenerator((1, 8, 8), width=4)(z, y)
    with pytest.raises(ValueError, match="y: expected one of 3 classes for each row"):
        SNCritic((1, 8, 8), width=4, classes=3)(x)
