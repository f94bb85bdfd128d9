"""The autoencoder: its size, its weights as published, its divergence, and what the encoder is given."""

import pytest
import torch
from torch import nn

from generators import Trunk
from generators.vae import VAE, Encoder, uniform_kernels

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def make(shape: tuple[int, int, int] = (1, 8, 8), latent: int = 6) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return VAE(shape, latent, low=0.0, high=1.0)


def test_the_encoder_has_the_published_layers() -> None:
    encoder = Encoder((3, 32, 32), 1000, low=0.0, high=1.0)
    convolutions = (3 * 64 * 9 + 64) + (64 * 128 * 9 + 128) + (128 * 128 * 9 + 128)
    flat = 32 * (32 // 4) ** 2
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + 2 * (64 + 128 + 128) + 2 * (
        flat * 1000 + 1000
    )
    norms = [part.eps for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms == [0.8, 0.8, 1e-5]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 8), (1, 28, 28), (3, 20, 16)])
def test_takes_any_image_that_the_trunk_makes(shape: tuple[int, int, int]) -> None:
    again, divergence = make(shape)(torch.rand(3, *shape), torch.randn(3, 6))
    assert again.shape == (3, *shape)
    assert divergence.shape == (3,)


def test_divergence_equals_its_definition() -> None:
    vae = make()
    _, divergence = vae(X, torch.zeros(4, 6))
    mean, log_var = vae.encoder(X)
    slow = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, torch.exp(log_var / 2)), torch.distributions.Normal(0.0, 1.0)
    ).sum(dim=1)
    torch.testing.assert_close(divergence, slow)
    assert divergence.min() > 0.0


def test_the_noise_moves_the_latent_by_its_standard_deviation() -> None:
    vae, noise = make().eval(), torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    mean, log_var = vae.encoder(X)
    with torch.no_grad():
        torch.testing.assert_close(vae(X, noise)[0], vae.decoder(mean + noise * log_var.exp().sqrt()))


def test_columns_are_brought_to_length_one() -> None:
    """So twice the contrast around grey is the same to the encoder."""
    encoder = make().encoder.eval()
    with torch.no_grad():
        for one, other in zip(encoder(X), encoder(0.5 + 0.5 * (X - 0.5)), strict=True):
            torch.testing.assert_close(one, other)
        assert not torch.allclose(encoder(X)[0], encoder(X.transpose(2, 3))[0])  # columns, not rows


def test_weights_are_uniform_and_biases_nothing() -> None:
    vae = make((3, 32, 32), 50)
    for part in vae.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            assert part.bias is not None
            assert not part.bias.any()
            assert 0.95 * 0.08 < part.weight.abs().max().item() <= 0.08
            # the variance of U(-r, r) is r^2 / 3; the smallest layer has 1728 weights
            assert part.weight.var().item() == pytest.approx(0.08**2 / 3, rel=0.1)


def test_a_spectral_norm_does_not_notice() -> None:
    trunk = Trunk((1, 8, 8), 6, "small", spectral_norm=True).eval()
    before = [part.weight.detach().clone() for part in trunk.modules() if isinstance(part, nn.Conv2d)]
    uniform_kernels(trunk)
    after = [part.weight.detach() for part in trunk.modules() if isinstance(part, nn.Conv2d)]
    assert len(after) == 3
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)
    assert 0.07 < trunk.stem.weight.abs().max().item() <= 0.08
