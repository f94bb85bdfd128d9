"""Noise against its exact laws."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from samplers import Gaussian, Smoothed, Uniform

MakeProblem = Callable[..., Problem]

N, E = 20_000, 0.02
"""The empirical distribution function of N independent values is off by over E with probability
2 exp(-2 N E^2) = 2.3e-7 (Dvoretzky, Kiefer, Wolfowitz; Massart)."""


def farthest(values: Tensor, law: Callable[[Tensor], Tensor]) -> float:
    """The largest distance of the empirical distribution function from the law."""
    ordered = values.double().sort().values
    steps = torch.arange(len(ordered) + 1) / len(ordered)
    expected = law(ordered)
    return float(torch.maximum((steps[1:] - expected).abs(), (steps[:-1] - expected).abs()).max())


def normal(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    return lambda x: 0.5 * (1.0 + torch.erf((x - mean) / (std * math.sqrt(2.0))))


def one_pixel(sampler: Any, problem: Problem, row: int = 3, column: int = 5) -> Tensor:
    x: Tensor = sampler.draw(sampler.init(problem, 11), problem, N).x
    return x[:, 0, row, column]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 2.0)])
def test_uniform_has_its_law(low: float, high: float, make_problem: MakeProblem) -> None:
    values = one_pixel(Uniform(), make_problem(low=low, high=high))
    assert farthest(values, lambda x: (x - low) / (high - low)) < E
    assert farthest(values, lambda x: (x - low) / (high - low) / 1.1) > E  # a box 10 % too wide would be seen


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 2.0)])
def test_gaussian_has_its_law_between_the_ends(low: float, high: float, make_problem: MakeProblem) -> None:
    values = one_pixel(Gaussian(mean=0.4, std=0.3), make_problem(low=low, high=high))
    span = high - low
    mean, std = low + 0.4 * span, 0.3 * span
    inside = values[(values > low) & (values < high)].double()  # clipping moves only what is beyond the ends
    law, below, above = normal(mean, std), torch.tensor(low).double(), torch.tensor(high).double()
    given_inside = lambda x: (law(x) - law(below)) / (law(above) - law(below))  # noqa: E731
    bound = E * math.sqrt(N / len(inside))  # the same probability with fewer values
    assert farthest(inside, given_inside) < bound
    # a share off by over E has probability 2.3e-7 as well
    assert abs(float((values == low).double().mean()) - float(law(below))) < E
    assert abs(float((values == high).double().mean()) - float(1.0 - law(above))) < E
    wide = normal(mean, 1.2 * std)
    assert abs(float((values == low).double().mean()) - float(wide(below))) > E  # 20 % too wide would be seen


@pytest.mark.parametrize("sampler", [Uniform(), Gaussian()])
def test_pixels_are_independent(sampler: Any, make_problem: MakeProblem) -> None:
    """Products of signs of two pixels: N independent values in [-1, 1], mean off by over 2 E with P = 2.3e-7."""
    problem = make_problem(shape=(3, 8, 8))
    x = sampler.draw(sampler.init(problem, 12), problem, N).x - 0.5
    for other in (x[:, 0, 3, 6], x[:, 0, 4, 5], x[:, 1, 3, 5], x[:, 0, 3, 5].roll(1)):
        assert abs(float((x[:, 0, 3, 5].sign() * other.sign()).double().mean())) < 2 * E


def slow_blur(noise: Tensor, sigma: float) -> Tensor:
    """The weighted mean over all pixels, one pixel at a time."""
    h, w = noise.shape
    out = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            total = norm = 0.0
            for a in range(h):
                for b in range(w):
                    weight = math.exp(-((i - a) ** 2 + (j - b) ** 2) / (2.0 * sigma**2))
                    total, norm = total + weight * float(noise[a, b]), norm + weight
            out[i, j] = total / norm
    return out


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_smoothed_is_blurred_noise_that_fills_the_box(sigma: float, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 6, 9), low=-1.0, high=2.0)
    sampler = Smoothed(sigma=sigma)
    state, twin = sampler.init(problem, 5), sampler.init(problem, 5)
    x = sampler.draw(state, problem, 3).x
    noise = torch.empty(3, 1, 6, 9).normal_(generator=twin.stream.advance())
    for image, source in zip(x[:, 0], noise[:, 0], strict=True):
        blurred = slow_blur(source, sigma)
        expected = -1.0 + 3.0 * (blurred - blurred.min()) / (blurred.max() - blurred.min())
        torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0.0)
        assert image.min() == -1.0
        assert image.max() == 2.0


@pytest.mark.parametrize("sigma", [1e-6, 1e4])
def test_smoothed_stays_finite_at_extreme_widths(sigma: float, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(3, 8, 8))
    sampler = Smoothed(sigma=sigma)
    assert torch.isfinite(sampler.draw(sampler.init(problem, 1), problem, 8).x).all()


@pytest.mark.parametrize("kind", [Uniform, Gaussian, Smoothed])
def test_labelling_is_a_setting(kind: Any, make_problem: MakeProblem) -> None:
    problem = make_problem()
    for labelling, sampler in (("batch", kind()), ("eval", kind(labelling="eval"))):
        assert sampler.draw(sampler.init(problem, 1), problem, 4).labelling == ((4, labelling),)
    with pytest.raises(ValueError, match="labelling: expected one of eval, batch, found 'train'"):
        kind(labelling="train")


def test_names_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="std: expected a number > 0, found 0"):
        Gaussian(std=0)
    with pytest.raises(ValueError, match=r"mean: expected a fraction of the box in \[0, 1\], found 128"):
        Gaussian(mean=128)
    for sigma in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma: expected a number of pixels > 0"):
            Smoothed(sigma=sigma)
