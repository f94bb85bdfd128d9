"""Shaders: each function against what it is for, programs as long as they should be, images that are images."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from samplers import Shader, shader

MakeProblem = Callable[..., Problem]


def chance(seed: int = 1) -> shader.Chance:
    return shader.Chance(torch.Generator().manual_seed(seed))


def places(n: int = 5, side: int = 9) -> Tensor:
    return 4 * torch.rand(n, 2, side, side, generator=torch.Generator().manual_seed(2)) - 2


def draw(sampler: Shader, problem: Problem, n: int, seed: int = 3) -> Tensor:
    return sampler.draw(sampler.init(problem, seed), problem, n).x


# -- the functions -------------------------------------------------------------------------------------------------


def turned(at: Tensor, angle: float) -> Tensor:
    x, y = at.unbind(dim=1)
    return torch.stack([math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y], dim=1)


def test_a_kaleidoscope_repeats_around_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shader.Chance, "whole", lambda self, low, high, n: torch.full((n, 1, 1, 1), 5))
    at = places()
    same, other = (shader._kaleidoscope(turned(at, 2 * math.pi * share), chance()) for share in (0.2, 0.1))
    found = shader._kaleidoscope(at, chance())
    torch.testing.assert_close(found, same, atol=1e-4, rtol=0.0)
    assert not torch.allclose(found, other, atol=1e-2)


def test_tiles_repeat() -> None:
    at, twin = places(), chance()
    size = twin.between(0.4, 1.0, 5)
    found = shader._tiles(at, chance())
    torch.testing.assert_close(found, shader._tiles(at + 3 / size, chance()), atol=1e-4, rtol=0.0)
    assert found.min() >= -1.0
    assert found.max() <= 1.0


def test_a_mirror_folds() -> None:
    twin = chance()
    angle = twin.between(0.0, 2 * math.pi, 5)
    low = -twin.between(0.1, 0.7, 5, 2)
    at = places()
    found = shader._mirror(at, chance())
    assert (found >= low).all()
    # from the middle, on the other side of it, the same is seen
    torch.testing.assert_close(found, shader._mirror(-at, chance()))
    assert torch.isfinite(angle).all()


def test_a_product_squares() -> None:
    twin = chance()
    moved = twin.between(-0.6, 0.6, 5, 2)
    at = places()
    z = torch.complex(at[:, 0].double(), at[:, 1].double())
    expected = 1.5 * z**2 / (0.5 + z.abs())
    found = (shader._product(at, chance()) - moved).double()
    torch.testing.assert_close(torch.complex(found[:, 0], found[:, 1]), expected, atol=1e-5, rtol=1e-5)


def test_waves_move_by_a_sine_of_the_other_coordinate() -> None:
    at = places()
    found = shader._waves(at, chance()) - at
    assert float(found.abs().max()) <= 0.7
    assert (found.abs().amax(dim=(1, 2, 3)) > 0.05).all()
    aside = at.clone()
    aside[:, 0] += 1.0  # moving along x changes how far y is moved, not x
    other = shader._waves(aside, chance()) - aside
    torch.testing.assert_close(found[:, 0], other[:, 0], atol=1e-5, rtol=0.0)
    assert not torch.allclose(found[:, 1], other[:, 1], atol=1e-2)


def slow_noise(grid: Tensor, i: int, j: int, h: int, w: int) -> float:
    """Between the four nodes around the middle of a pixel, by smooth steps."""
    cells = len(grid) - 1
    y, x = (i + 0.5) * cells / h, (j + 0.5) * cells / w
    up, left = int(y), int(x)
    down, right = ((t * t * (3 - 2 * t)) for t in (y - up, x - left))
    a = float(grid[up, left]) * (1 - right) + float(grid[up, left + 1]) * right
    b = float(grid[up + 1, left]) * (1 - right) + float(grid[up + 1, left + 1]) * right
    return a * (1 - down) + b * down


def test_noise_lies_between_its_nodes() -> None:
    grid = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    h, w = 11, 7
    found = shader._between_nodes(h, 4, grid) @ grid @ shader._between_nodes(w, 4, grid).T
    slow = torch.tensor([[slow_noise(grid, i, j, h, w) for j in range(w)] for i in range(h)])
    torch.testing.assert_close(found, slow, atol=1e-5, rtol=0.0)


def test_a_warp_sums_octaves_each_half_as_strong() -> None:
    h, w, n = 16, 32, 12
    at = shader._coordinates(n, h, w, 1, chance(4))
    moved = shader._warp(at, chance(8)) - at
    twin = chance(8)
    octaves, strength = twin.whole(1, 6, n).flatten().tolist(), twin.between(0.3, 1.0, n).flatten().tolist()
    grids = [twin.normal(n, 2, cells + 1, cells + 1) for cells in (2, 4, 8)]  # of 16 cells each would have two pixels
    assert min(octaves) < 3
    for row in range(n):
        for c in (0, 1):
            share = strength[row] * float(at[row, c].std())
            for i, j in ((0, 0), (3, 17), (15, 31)):
                used = enumerate(grids[: octaves[row]])
                slow = sum(0.5**octave * slow_noise(grid[row, c], i, j, h, w) for octave, grid in used)
                assert float(moved[row, c, i, j]) == pytest.approx(share * slow, abs=1e-4)


def test_a_warp_moves_smoothly() -> None:
    at = shader._coordinates(6, 32, 32, 1, chance())
    moved = shader._warp(at, chance()) - at
    spread = at.std(dim=(2, 3), keepdim=True)
    assert ((moved / spread).abs().amax(dim=(1, 2, 3)) > 0.05).all()
    steps = moved.diff(dim=3).abs().mean(dim=(1, 2, 3)) / moved.std(dim=(2, 3)).mean(dim=1)
    assert (steps < 0.5).all()  # neighbours of white noise are 1.13 deviations apart


# -- the programs --------------------------------------------------------------------------------------------------


def programs(monkeypatch: pytest.MonkeyPatch, problem: Problem, sampler: Shader, n: int, draws: int) -> Tensor:
    """(draws n, 6): how often each function was applied to each row."""
    seen: list[Tensor] = []

    def numbered(place: int) -> Callable[[Tensor, shader.Chance], Tensor]:
        return lambda at, chance: at + 10.0**place

    def read(at: Tensor, c: int, chance: shader.Chance) -> Tensor:
        total = at[:, 0, 0, 0].round().long()
        seen.append(torch.stack([total // 10**place % 10 for place in range(6)], dim=1))
        return torch.rand(len(at), c, *at.shape[2:], generator=chance.generator)

    def nowhere(n: int, h: int, w: int, finer: int, chance: shader.Chance) -> Tensor:
        del chance
        return torch.zeros(n, 2, finer * h, finer * w)

    monkeypatch.setattr(shader, "FUNCTIONS", tuple(numbered(place) for place in range(6)))
    monkeypatch.setattr(shader, "_coloured", read)
    monkeypatch.setattr(shader, "_coordinates", nowhere)
    state = sampler.init(problem, 5)
    for _ in range(draws):
        sampler.draw(state, problem, n)
    return torch.cat(seen)


def test_every_length_and_function_is_met_equally_often(
    monkeypatch: pytest.MonkeyPatch, make_problem: MakeProblem
) -> None:
    used = programs(monkeypatch, make_problem(), Shader(), 60, 1)
    assert used.sum(dim=1).bincount().tolist() == [0, 0, 12, 12, 12, 12, 12]
    assert used.sum(dim=0).tolist() == [40] * 6
    assert len(used.unique(dim=0)) > 30


def test_a_single_row_is_any_program(monkeypatch: pytest.MonkeyPatch, make_problem: MakeProblem) -> None:
    """600 independent rows: each share is over 0.115 off with probability 2 exp(-15.9) = 2.5e-7."""
    used = programs(monkeypatch, make_problem(), Shader(layers=(1, 3)), 1, 600)
    lengths = used.sum(dim=1).bincount(minlength=4) / 600
    assert (lengths - torch.tensor([0, 1 / 3, 1 / 3, 1 / 3])).abs().max() < 0.115
    firsts = used[used.sum(dim=1) == 1].double().mean(dim=0)
    assert (firsts - 1 / 6).abs().max() < 0.2  # some 200 rows: 2 exp(-16)


# -- the images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20), (2, 33, 9)])
def test_images_have_contrast_and_differ(shape: tuple[int, int, int], make_problem: MakeProblem) -> None:
    problem = make_problem(shape=shape, low=-1.0, high=2.0)
    x = (draw(Shader(contrast=0.4), problem, 120) + 1.0) / 3.0
    assert torch.isfinite(x).all()
    assert x.min() >= 0.0
    assert x.max() <= 1.0
    size = x.amax(dim=(1, 2, 3)) - x.amin(dim=(1, 2, 3))
    assert size.min() >= 0.4 - 1e-5
    # (size - 0.4) / 0.6 is uniform: of 120 values the mean is over 0.26 off with probability 2 exp(-16.2) = 1.8e-7
    assert abs(float(size.mean()) - 0.7) < 0.6 * 0.26
    spread = x.std(dim=(1, 2, 3))
    assert float(spread.min()) > 0.01
    assert float((spread > 0.05).double().mean()) > 0.9
    plain = x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True)
    alike = torch.nn.functional.normalize(plain, dim=1) @ torch.nn.functional.normalize(plain, dim=1).T
    alike.fill_diagonal_(0.0)
    assert float(alike.abs().mean()) < 0.35
    assert float(alike.max()) < 0.999


def test_small_images_are_not_noise(make_problem: MakeProblem) -> None:
    """Neighbouring pixels go together; in noise they do not."""
    for side, least in ((8, 0.6), (32, 0.7)):
        x = draw(Shader(), make_problem(shape=(1, side, side)), 180)
        x = x - x.mean(dim=(2, 3), keepdim=True)
        x = x / x.square().mean(dim=(2, 3), keepdim=True).sqrt()
        together = (x[..., 1:] * x[..., :-1]).mean(dim=(1, 2, 3))
        assert float(together.median()) > least


def test_colours_come_from_a_palette() -> None:
    """Without shade and with sharp steps, an image has hardly more colours than its palette."""

    class Sharp(shader.Chance):
        def between(self, low: float, high: float, n: int, c: int = 1) -> Tensor:
            drawn = super().between(low, high, n, c)
            return torch.zeros_like(drawn) if (low, high) == (0.0, 0.7) else drawn

        def apart(self, low: float, high: float, n: int, c: int = 1) -> Tensor:
            drawn = super().apart(low, high, n, c)
            return torch.full_like(drawn, 1e6) if (low, high) == (0.5, 20.0) else drawn

    at = shader._coordinates(30, 32, 32, 1, chance())
    x = shader._coloured(at, 3, Sharp(torch.Generator().manual_seed(1)))
    colours = [len((image.flatten(1) * 255).round().unique(dim=1).T) for image in x]
    assert max(colours) <= 8  # 5, and pixels in the middle of a step
    assert len(set(colours)) >= 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (0, 2)}, r"layers: expected two integers, 1 <= least <= most, found \(0, 2\)"),
        ({"layers": (3, 2)}, "layers: expected two integers"),
        ({"layers": (2.5, 3)}, "layers: expected two integers"),
        ({"layers": (2,)}, "layers: expected two integers"),
        ({"layers": 2}, "layers: expected two integers, 1 <= least <= most, found 2"),
        ({"contrast": 0.0}, r"contrast: expected a share of the box in \(0, 1\], found 0.0"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_a_wrong_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shader(**settings)
