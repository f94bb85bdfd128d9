"""Opaque shapes of random size, place and colour painted over one another until they hide the canvas.

Baradad Jurjo, Wulff, Wang, Isola, Torralba: Learning to See by Looking at Noise. 2021. arXiv:2106.05963. Changed: as
many shapes as leave on average the share `bare` of the canvas, which has a colour of its own, where theirs go on until
no pixel is left; no radius below one pixel, where theirs become one pixel; and the radii of one image are one from each
of as many equal parts of their law, so that small shapes need to be looked for in small windows only.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, whole

from .checks import a_labelling, one_of, positive, some_rows, whole_at_least
from .state import State, Stream

Shape = Literal["mixed", "disc", "square", "rotated_square", "rectangle", "triangle", "quadrilateral"]
KINDS = get_args(Shape)[1:]

_AREAS = (math.pi, 2.0, 2.0, 4 / math.pi, 3 / (2 * math.pi), 3 / math.pi)  # of each kind, on average, for a radius of 1
_CELLS = 1 << 18  # pixels tested at once: what stays in a processor's cache
_WIDE = 0.8  # of the shorter side: a window wider than this is the whole image
_BITS = 13  # of a key are the shape's number, the 18 above it chance
_CANVAS = (1 << 31) - 1


@dataclass(frozen=True)
class DeadLeaves:
    """Shapes whose radii have a density proportional to 1 / r^3 - 1, with uniform centres and colours.

    shape: `mixed` (each kind equally often) or one of `disc`, `square`, `rotated_square`, `rectangle`, `triangle`,
    `quadrilateral`, with corners on a circle of that radius. least: smallest radius as a fraction of the shorter side,
    in (0, 1); one pixel where that is more. bare: share of the canvas left visible, on average and far from the edges,
    in (0, 1). cap: most shapes per image, 1 to 8191. labelling: BatchNorm statistics the teacher labels with, `eval`
    (stored) or `batch` (of the rows asked together).
    """

    shape: Shape = "mixed"
    least: float = 0.03
    bare: float = 0.01
    cap: int = 5000
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "dead_leaves"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of(self, get_args(Shape), "shape")
        positive(self, "least", "bare")
        for setting in ("least", "bare"):
            if getattr(self, setting) >= 1.0:
                raise ValueError(f"{setting}: expected a number below 1, found {getattr(self, setting)!r}")
        whole_at_least(self, 1, "cap")
        if self.cap >= 1 << _BITS:
            raise ValueError(f"cap: expected an integer below {1 << _BITS}, found {self.cap!r}")
        a_labelling(self.labelling)

    def init(self, problem: Problem, seed: int) -> State:
        return State(stream=Stream(seed, problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        spec, rng = problem.spec, state.stream.advance()
        h, w, side = spec.height, spec.width, min(spec.height, spec.width)
        least = min(max(self.least, 1 / side), 0.99)
        count = self.shapes(h, w)
        leaves = _scatter(n, count, least, (h, w), self.shape, rng)
        top = _topmost(leaves, _tiers(count, least, side), (h, w))
        colours = torch.empty(n, spec.channels, count + 1, device=problem.device)
        colours.uniform_(spec.low, spec.high, generator=rng)
        x = colours.gather(2, top[:, None].expand(-1, spec.channels, -1)).view(n, *spec.shape)
        return Batch(x, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss

    def shapes(self, height: int, width: int) -> int:
        """How many are painted: (1 - mean share of the image that one hides) ^ shapes = bare, or the cap."""
        side = min(height, width)
        a = min(max(self.least, 1 / side), 0.99)
        square = (-math.log(a) - (1 - a**3) / 3) / ((a**-2 - 1) / 2 - (1 - a))  # the mean of r^2
        area = sum(_AREAS) / len(_AREAS) if self.shape == "mixed" else _AREAS[KINDS.index(self.shape)]
        share = min(0.5, square * area * side / max(height, width))  # centres lie in the image, so half is outside it
        return min(self.cap, math.ceil(math.log(self.bare) / math.log1p(-share)))


@dataclass(frozen=True)
class Leaves:
    """Shapes (n, count), in pixels. A point (x, y) from the centre is inside where x^2 + y^2 <= r^2 and, for each of
    four edges (4, n, count), x cos + y sin <= reach. Where shapes meet, the smallest key is on top."""

    r: Tensor
    x: Tensor
    y: Tensor
    cos: Tensor
    sin: Tensor
    reach: Tensor
    key: Tensor


def quantile(u: Tensor, least: float) -> Tensor:
    """The radius below which the share u of the law of density proportional to 1 / r^3 - 1 on [least, 1] lies.

    Its integral is g = -1 / (2 r^2) - r; 1 / r is then the largest root of t^3 + 2 g t + 2, here by cosines.
    """
    bottom = -0.5 / least**2 - least
    s = ((bottom + (-1.5 - bottom) * u) * (-2 / 3)).clamp_min(1.0).sqrt()
    return 0.5 / (s * torch.cos(torch.arccos(-1 / s**3) / 3))


def _scatter(n: int, count: int, least: float, size: tuple[int, int], shape: str, rng: torch.Generator) -> Leaves:
    """Shapes of ascending radius; which is on top is up to their keys."""
    h, w = size
    u = torch.rand(4, n, count, generator=rng, device=rng.device)
    place = torch.arange(count, device=rng.device)
    r = quantile((u[0] + place) / count, least) * min(h, w)
    key = torch.randint(1 << 18, (n, count), generator=rng, device=rng.device, dtype=torch.int32)
    key = key.bitwise_left_shift_(_BITS).bitwise_or_(place.int())
    if shape == "mixed":
        kind = torch.randint(len(KINDS), (n, count), generator=rng, device=rng.device)
    else:
        kind = torch.full((n, count), KINDS.index(shape), device=rng.device)
    corners = _corners(kind, torch.rand(4, n, count, generator=rng, device=rng.device))
    after = torch.cat([corners[1:], corners[:1] + 1])
    middle, half = (corners + after) * math.pi, (after - corners) * math.pi
    reach = torch.where(kind == 0, r, half.cos() * r)  # a disc has the circle alone
    return Leaves(r, u[1] * w, u[2] * h, middle.cos(), middle.sin(), reach, key)


def _corners(kind: Tensor, u: Tensor) -> Tensor:
    """(n, count) places in KINDS, (4, n, count) uniform -> ascending corners (4, n, count) on the circle, in turns."""
    a, b, c, d = u
    low, high, below, above = torch.minimum(a, b), torch.maximum(a, b), torch.minimum(c, d), torch.maximum(c, d)
    first, last = torch.minimum(low, below), torch.maximum(high, above)
    one, other = torch.maximum(low, below), torch.minimum(high, above)
    corners = torch.stack([first, torch.minimum(one, other), torch.maximum(one, other), last])
    first, rest = torch.minimum(low, c), torch.maximum(low, c)
    last = torch.maximum(high, rest)
    triangle = torch.stack([first, torch.minimum(high, rest), last, last])  # an edge of no length cuts nothing off
    quarters = torch.arange(4, device=u.device)[:, None, None] / 4
    tilt = a / 4
    rectangle = torch.stack([tilt, 0.5 - tilt, 0.5 + tilt, 1 - tilt])
    for place, others in ((4, triangle), (3, rectangle), (2, quarters + tilt), (1, quarters + 0.125)):
        corners = torch.where(kind == place, others, corners)
    return corners


def _tiers(count: int, least: float, side: int) -> list[tuple[int, int, int]]:
    """Runs of shapes, first and last, and how many pixels the widest of each can cover in a row."""
    found: list[tuple[int, int, int]] = []
    first = 0
    while first < count:
        last = min(count, first + max(1, (count - first + 1) // 2))
        share = torch.tensor(last / count, dtype=torch.float64)  # on the host
        window = int(2 * float(quantile(share, least)) * side + 1e-3) + 1
        if window > _WIDE * side:
            return [*found, (first, count, side)]
        found.append((first, last, window))
        first = last
    return found


def _topmost(leaves: Leaves, tiers: list[tuple[int, int, int]], size: tuple[int, int]) -> Tensor:
    """(n, h w): the number of the shape that is seen at each pixel; their count where it is the canvas."""
    n, count = leaves.key.shape
    h, w = size
    top = torch.full((n, h, w), _CANVAS, dtype=torch.int32, device=leaves.key.device)
    for first, last, window in tiers:
        high, wide = (h, w) if window == min(h, w) else (window, window)
        rows = max(1, _CELLS // (high * wide * (last - first)))
        for row in range(0, n, rows):
            _paint(top, leaves, slice(row, row + rows), slice(first, last), high, wide)
    number = (top & ((1 << _BITS) - 1)).long().flatten(1)
    return torch.where(top.flatten(1) == _CANVAS, count, number)


def _paint(top: Tensor, leaves: Leaves, rows: slice, columns: slice, high: int, wide: int) -> None:
    """top (n, h, w) becomes the smallest key, of these shapes too, each looked for in a window of the image."""
    _, h, w = top.shape
    part = (rows, columns)
    r, x, y = leaves.r[part], leaves.x[part], leaves.y[part]
    left, up = (x - r - 0.5).ceil().clamp(0, w - wide), (y - r - 0.5).ceil().clamp(0, h - high)
    dx = (left - x)[..., None] + torch.arange(wide, device=x.device) + 0.5  # to the pixels' middles
    dy = (up - y)[..., None] + torch.arange(high, device=x.device) + 0.5
    inside = (dx * dx)[..., None, :] <= ((r * r)[..., None] - dy * dy)[..., None]
    for cos, sin, reach in zip(leaves.cos, leaves.sin, leaves.reach, strict=True):
        bound = reach[part][..., None] - dy * sin[part][..., None]
        inside &= (dx * cos[part][..., None])[..., None, :] <= bound[..., None]
    keys = torch.where(inside, leaves.key[part][..., None, None], _CANVAS)
    if (high, wide) == (h, w):
        for column in range(keys.shape[1]):  # a few shapes, each of which may cover everything
            torch.minimum(top[rows], keys[:, column], out=top[rows])
        return
    first = torch.arange(top.shape[0], device=x.device)[rows, None] * (h * w) + (up * w + left).long()
    down = torch.arange(high, device=x.device)[:, None] * w
    index = first[..., None, None] + (down + torch.arange(wide, device=x.device))
    top.view(-1).scatter_reduce_(0, index.view(-1), keys.view(-1), "amin")
