"""The spectral slope of noise whose spectrum is known, which frequencies count, and where there is none."""

import math

import pytest
import torch
from torch import Tensor

from dfkd.fidelity import diagnose
from dfkd.fidelity.spectrum import radial_power, spectral_slope
from dfkd.problem import Probe
from dfkd.types import InputSpec


def coloured(slope: float, n: int, h: int, w: int, channels: int = 1) -> Tensor:
    """Normal noise (n, c, h, w) whose power is frequency ** slope on its grid, frequency being per shorter side."""
    rng = torch.Generator().manual_seed(5)
    white = torch.fft.fft2(torch.randn(n, channels, h, w, generator=rng, dtype=torch.float64))
    fy, fx = (torch.fft.fftfreq(side, dtype=torch.float64) * min(h, w) for side in (h, w))
    radius = (fy[:, None].square() + fx.square()).sqrt()
    radius[0, 0] = torch.inf if slope < 0.0 else 0.0
    amplitude = radius ** (0.5 * slope)
    noise: Tensor = torch.fft.ifft2(white * amplitude).real
    return noise


@pytest.mark.parametrize("slope", [-3.0, -2.0, -1.0, 0.0, 1.0])
@pytest.mark.parametrize(("h", "w"), [(8, 8), (28, 28), (32, 48), (9, 11)])
def test_finds_the_slope_of_coloured_noise(slope: float, h: int, w: int) -> None:
    """Each ring's power is a mean of 3200 squares or more, known to 2.5 % (off by 13 % once in 1e6)."""
    found = spectral_slope(coloured(slope, 400, h, w, channels=2))
    # the mean over a ring's frequencies is not their power at its place: under 4 % in the first ring, for -3 8 %
    assert found == pytest.approx(slope, abs=0.08 if slope > -3.0 else 0.16)


def test_one_wave_is_in_one_ring() -> None:
    """Power of cos(2 pi 3 x / 8), at amplitude 1: n^2 / 4 at two of the 8x8 frequencies, both in ring 3."""
    wave = torch.cos(2.0 * math.pi * 3.0 * torch.arange(8, dtype=torch.float64) / 8.0).expand(1, 1, 8, 8)
    frequency, power = radial_power(5.0 + wave)
    assert len(frequency) == len(power) == 4
    fy, fx = (torch.fft.fftfreq(8) * 8.0 for _ in range(2))
    members = int(((fy[:, None].square() + fx.square()).sqrt().round() == 3.0).sum())
    torch.testing.assert_close(power, torch.tensor([0.0, 0.0, 2 * 64.0**2 / 4.0 / members, 0.0], dtype=torch.float64))
    assert 2.5 < float(frequency[2]) < 3.5


def test_which_frequencies_count_of_8x8() -> None:
    """The mean and the corners beyond 4 cycles do not; all 4 rings do."""
    x = coloured(-1.0, 20, 8, 8)
    found = spectral_slope(x)
    assert spectral_slope(x + torch.rand(20, 1, 1, 1, dtype=torch.float64)) == pytest.approx(found)
    corner = torch.cos(math.pi * torch.arange(8.0))
    assert spectral_slope(x + 50.0 * corner[:, None] * corner) == pytest.approx(found)
    frequency, _ = radial_power(x)
    assert frequency.tolist() == pytest.approx([1.189, 2.154, 3.035, 3.995], abs=1e-3)
    assert spectral_slope(7.0 * x) == pytest.approx(found)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 1, 3, 40), (2, 1, 1, 5)])
def test_flat_or_tiny_images_have_none(shape: tuple[int, ...]) -> None:
    assert spectral_slope(torch.full(shape, 0.3)) is None
    assert spectral_slope(torch.rand(shape)) is None or shape[2] == 8


def test_a_single_frequency_has_none() -> None:
    assert spectral_slope(torch.cos(2.0 * math.pi * torch.arange(8) / 8.0).expand(1, 1, 8, 8)) is None


def test_it_is_a_diagnostic(teacher: Probe, spec: InputSpec) -> None:
    x = coloured(-2.0, 50, 8, 8)
    x = (0.5 + 0.1 * x / x.std()).clamp(0.0, 1.0)
    found = diagnose(teacher, x.float(), spec).values["spectral_slope"]
    assert found == pytest.approx(spectral_slope(x.float()))
