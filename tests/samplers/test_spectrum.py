"""Spectra against what was asked for, by a slow Fourier sum and by fitted slopes."""

import cmath
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from samplers import Spectrum

MakeProblem = Callable[..., Problem]

N, E = 2000, 0.0633
"""N independent values: the empirical distribution function is off by over E with probability 2.2e-7."""


def draw(sampler: Spectrum, problem: Problem, n: int, seed: int = 7) -> Tensor:
    return sampler.draw(sampler.init(problem, seed), problem, n).x


def farthest(values: Tensor, low: float, high: float) -> float:
    """The largest distance of the empirical distribution function from that of U[low, high]."""
    ordered = values.double().sort().values
    steps, expected = torch.arange(len(ordered) + 1) / len(ordered), ((ordered - low) / (high - low)).clamp(0, 1)
    return float(torch.maximum((steps[1:] - expected).abs(), (steps[:-1] - expected).abs()).max())


def slow_size(image: Tensor, kx: int, ky: int) -> float:
    h, w = image.shape
    total = 0j
    for i in range(h):
        for j in range(w):
            total += float(image[i, j]) * cmath.exp(-2j * math.pi * (kx * j / w + ky * i / h))
    return abs(total)


@pytest.mark.parametrize("slope", [0.0, 0.7, 2.0])
def test_the_spectrum_is_the_one_asked_for(slope: float, make_problem: MakeProblem) -> None:
    h, w = 9, 8
    problem = make_problem(shape=(1, h, w), low=-1.0, high=1.0)  # around 0, where float32 is fine enough
    x = draw(Spectrum(slopes=(slope, slope), tilt=0.0, std=0.02), problem, 2)
    for image in x[:, 0].double():
        sizes = {}
        for kx in range(w // 2 + 1):
            for ky in range(h):
                fx, fy = kx / w, min(ky, h - ky) / h
                if kx or ky:
                    sizes[kx, ky] = slow_size(image, kx, ky) * (fx**slope + fy**slope)
        middle = sorted(sizes.values())[len(sizes) // 2]
        assert sizes == {at: pytest.approx(middle, rel=1e-3) for at in sizes}
        assert slow_size(image, 0, 0) < 1e-4


def fitted(x: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes along width and along height, least squares in the logarithms."""
    size = torch.fft.fft2(x[:, 0].double()).abs().log()
    h, w = x.shape[2:]
    slopes = []
    for line, side in ((size[:, 0, 1 : w // 2 + 1], w), (size[:, 1 : h // 2 + 1, 0], h)):
        f = (torch.arange(1, side // 2 + 1).double() / side).log()
        f = f - f.mean()
        slopes.append(-(line * f).sum(dim=1) / f.square().sum())
    return slopes[0], slopes[1]


def test_slopes_have_their_law(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 16, 12), low=-1.0, high=1.0)
    a, b = fitted(draw(Spectrum(slopes=(0.5, 2.5), tilt=0.2, std=0.02), problem, N))
    assert farthest((a + b) / 2, 0.5, 2.5) < E
    assert farthest((a + b) / 2, 0.5, 2.8) > E  # a range 15 % too wide would be seen
    half = (a - b) / 2  # normal, standard deviation 0.2: its estimate has one of 0.2 / sqrt(2 N) = 0.0032
    assert abs(float(half.std()) - 0.2) < 5.5 * 0.0032
    assert abs(float(half.mean())) < 5.5 * 0.2 / math.sqrt(N)


def test_defaults_are_the_published_ones() -> None:
    assert (Spectrum().slopes, Spectrum().tilt, Spectrum().mean, Spectrum().std) == ((0.5, 3.5), 0.05, 0.5, 0.25)


def test_phases_are_uniform(make_problem: MakeProblem) -> None:
    x = draw(Spectrum(), make_problem(), N)[:, 0]
    for kx, ky in ((1, 0), (0, 2), (2, 5)):
        phase = torch.fft.fft2(x)[:, ky, kx].angle()
        assert farthest(phase, -math.pi, math.pi) < E
    assert (torch.fft.fft2(x)[:, 0, 4].real > 0).double().mean() == pytest.approx(0.5, abs=E)  # a sign, no phase


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 2.0)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12), (2, 8, 11)])
def test_mean_and_deviation(shape: tuple[int, int, int], low: float, high: float, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=shape, low=low, high=high)
    x = (draw(Spectrum(mean=0.4, std=0.05), problem, 40) - low) / (high - low)
    torch.testing.assert_close(x.mean(dim=(2, 3)), torch.full((40, shape[0]), 0.4), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(x.std(dim=(1, 2, 3), correction=0), torch.full((40,), 0.05), atol=1e-4, rtol=0.0)


def test_colours_are_mixed(make_problem: MakeProblem) -> None:
    """Channels of their own each would have a mean product near 0 in white noise; mixed ones go together or against."""
    x = draw(Spectrum(slopes=(0.0, 0.0), tilt=0.0, std=0.02), make_problem(shape=(3, 8, 8)), 600) - 0.5
    x = x / x.square().mean(dim=(2, 3), keepdim=True).sqrt()
    products = (x[:, 0] * x[:, 1]).mean(dim=(1, 2))
    assert float(products.abs().mean()) > 0.3
    assert abs(float(products.mean())) < 0.25  # 600 values in [-1, 1]: 2 exp(-600 / 32) = 1.4e-8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slopes": (2.0, 1.0)}, r"slopes: expected two numbers, 0 <= least <= most, found \(2.0, 1.0\)"),
        ({"slopes": (-1.0, 1.0)}, "slopes: expected two numbers, 0 <= least <= most"),
        ({"slopes": 1.0}, "slopes: expected two numbers, 0 <= least <= most, found 1.0"),
        ({"slopes": (1.0,)}, "slopes: expected two numbers, 0 <= least <= most"),
        ({"tilt": -0.1}, "tilt: expected a number >= 0, found -0.1"),
        ({"mean": 128}, r"mean: expected a number in \[0, 1\], found 128"),
        ({"std": 0.0}, "std: expected a number > 0, found 0.0"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_a_wrong_setting(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spectrum(**settings)  # type: ignore[arg-type]
