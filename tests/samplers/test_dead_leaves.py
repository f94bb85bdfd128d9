"""Dead leaves: the law of the radii, and a painting done pixel by pixel and shape by shape."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from samplers import DeadLeaves
from samplers.dead_leaves import _AREAS, KINDS, Leaves, _corners, _scatter, _tiers, _topmost, quantile

MakeProblem = Callable[..., Problem]

N, E = 20_000, 0.02
"""Of N independent values the empirical distribution is off by over E with probability 2.3e-7; radii that are one from
each part of their law are nearer to it."""


def law(least: float, power: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """The distribution function of r^-power - 1 on [least, 1], by trapezia."""
    r = np.linspace(least, 1.0, 200_001)
    density = r**-power - 1.0
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(r))])
    return r, mass / mass[-1]


@pytest.mark.parametrize("least", [0.03, 0.125, 0.9])
def test_radii_have_their_law(least: float) -> None:
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    r, share = law(least)
    np.testing.assert_allclose(np.interp(quantile(u, least).numpy(), r, share), u.numpy(), atol=1e-6)


def test_the_shapes_of_an_image_have_the_law() -> None:
    leaves = _scatter(200, 100, 0.05, (40, 50), "mixed", torch.Generator().manual_seed(3))
    radii = np.sort((leaves.r / 40).flatten().double().numpy())
    steps = np.arange(N + 1) / N
    for power, fits in ((3.0, True), (2.5, False)):
        expected = np.interp(radii, *law(0.05, power))
        off = max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max())
        assert (off < E) == fits, (power, off)


def test_which_is_on_top_has_nothing_to_do_with_the_size() -> None:
    key = _scatter(200, 100, 0.05, (32, 32), "mixed", torch.Generator().manual_seed(3)).key
    first = key.argmin(dim=1).double() / 99  # the place of the topmost in the order of size, 200 values in [0, 1]
    assert abs(float(first.mean()) - 0.5) < 0.2  # over 0.2 off with probability 2 exp(-16) = 2.3e-7
    keys = (key >> 13).double() / 2**18
    assert abs(float(keys[:, :50].mean()) - 0.5) < 0.03  # 10 000 values, 3e-8
    assert abs(float(keys[:, 50:].mean()) - 0.5) < 0.03


def slow_corners(kind: str, u: list[float]) -> list[float]:
    """Angles of the corners, as the paper's program has them."""
    tilt = u[0] * math.pi / 2
    if kind in ("square", "rotated_square"):
        start = math.pi / 4 if kind == "square" else tilt
        return [start + quarter * math.pi / 2 for quarter in range(4)]
    if kind == "rectangle":
        return [tilt, math.pi - tilt, math.pi + tilt, -tilt]
    return sorted(2 * math.pi * part for part in u[: 3 if kind == "triangle" else 4])


def slow_inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """How often a ray to the right meets the outline: an odd number of times from inside."""
    odd = False
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay):
            odd = not odd
    return odd


@pytest.mark.parametrize("size", [(12, 9), (8, 16)])
@pytest.mark.parametrize("shape", ["mixed", "disc"])
def test_paints_as_one_would_by_hand(size: tuple[int, int], shape: str) -> None:
    h, w = size
    n, count, least = 3, 40, 0.1
    leaves = _scatter(n, count, least, size, shape, torch.Generator().manual_seed(4))
    tiers = _tiers(count, least, min(size))
    assert len(tiers) > 2
    top = _topmost(leaves, tiers, size).view(n, h, w)
    twin = torch.Generator().manual_seed(4)
    place = torch.rand(4, n, count, generator=twin).double()
    torch.randint(1 << 18, (n, count), generator=twin, dtype=torch.int32)
    kinds = torch.randint(6, (n, count), generator=twin) if shape == "mixed" else torch.zeros(n, count).long()
    u = torch.rand(4, n, count, generator=twin).double()
    for row in range(n):
        order = leaves.key[row].argsort().tolist()
        for i in range(h):
            for j in range(w):
                seen = count
                for s in order:
                    x, y = j + 0.5 - w * float(place[1, row, s]), i + 0.5 - h * float(place[2, row, s])
                    r, kind = float(leaves.r[row, s]), KINDS[int(kinds[row, s])]
                    angles = slow_corners(kind, u[:, row, s].tolist())
                    corners = [(r * math.cos(angle), r * math.sin(angle)) for angle in angles]
                    if x * x + y * y <= r * r if kind == "disc" else slow_inside(x, y, corners):
                        seen = s
                        break
                assert int(top[row, i, j]) == seen, (row, i, j)


def test_mean_areas() -> None:
    u = torch.rand(4, 1, 200_000, generator=torch.Generator().manual_seed(5))
    for place, kind in enumerate(KINDS):
        corners = _corners(torch.full((1, 200_000), place), u) * 2 * math.pi
        gaps = torch.cat([corners[1:], corners[:1] + 2 * math.pi]) - corners
        assert gaps.min() > -1e-6
        found = math.pi if kind == "disc" else float(0.5 * gaps.sin().sum(dim=0).mean())
        assert found == pytest.approx(_AREAS[place], rel=0.01)


def canvas(leaves: Leaves, count: int, least: float) -> Tensor:
    return (_topmost(leaves, _tiers(count, least, 8), (8, 8)) == count).double().view(-1, 8, 8)


def test_as_many_shapes_as_leave_little_of_the_canvas() -> None:
    """The middle of 4000 images; the share is over 0.045 off with probability 2 exp(-16.2) = 1.8e-7."""
    sampler = DeadLeaves(shape="disc", bare=0.2)
    count = sampler.shapes(8, 8)
    found = canvas(_scatter(4000, count, 0.125, (8, 8), "disc", torch.Generator().manual_seed(6)), count, 0.125)
    assert abs(float(found[:, 4, 4].mean()) - 0.2) < 0.045 + 0.015  # of large discs a part is outside the image
    few = sampler.shapes(8, 8) // 2
    found = canvas(_scatter(4000, few, 0.125, (8, 8), "disc", torch.Generator().manual_seed(6)), few, 0.125)
    assert abs(float(found[:, 4, 4].mean()) - 0.2) > 0.1
    assert DeadLeaves(bare=0.01).shapes(32, 32) > 300
    assert DeadLeaves(bare=0.01, cap=7).shapes(32, 32) == 7


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20), (2, 9, 8), (1, 40, 8)])
def test_every_pixel_has_a_colour_of_its_image(shape: tuple[int, int, int], make_problem: MakeProblem) -> None:
    problem = make_problem(shape=shape, low=-1.0, high=2.0)
    sampler = DeadLeaves(cap=3, least=0.3)
    x = sampler.draw(sampler.init(problem, 1), problem, 50).x
    colours = [image.flatten(1).unique(dim=1).shape[1] for image in x]
    assert max(colours) <= 4  # three shapes and the canvas
    assert min(colours) >= 1
    assert sum(colours) > 100
    assert x.min() >= -1.0
    assert x.max() <= 2.0
    assert abs(float(x[:, 0].mean()) - 0.5) < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "circle"}, "shape: expected one of mixed, disc, square, .*, found 'circle'"),
        ({"least": 0.0}, "least: expected a number > 0, found 0.0"),
        ({"least": 1.0}, "least: expected a number below 1, found 1.0"),
        ({"bare": 2}, "bare: expected a number below 1, found 2"),
        ({"cap": 0}, "cap: expected an integer >= 1, found 0"),
        ({"cap": 10000}, "cap: expected an integer below 8192, found 10000"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch, found 'train'"),
    ],
)
def test_names_a_wrong_setting(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeadLeaves(**settings)  # type: ignore[arg-type]
