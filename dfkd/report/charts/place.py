"""Badges beside the points they name, kept off each other and off the points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Badge", "Frame", "Tick", "place"]

RADIUS = 9.0


@dataclass(frozen=True)
class Frame:
    """The drawing and the part of it inside the axes, in drawing units."""

    width: float = 560.0
    height: float = 330.0
    left: float = 46.0
    right: float = 544.0
    top: float = 12.0
    bottom: float = 284.0

    def x(self, position: float) -> float:
        return round(self.left + position * (self.right - self.left), 2)

    def y(self, position: float) -> float:
        return round(self.bottom - position * (self.bottom - self.top), 2)


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Badge:
    """x, y: the badge; px, py: the point it names. far: whether a line between them is needed."""

    sampler: str
    x: float
    y: float
    px: float
    py: float

    @property
    def far(self) -> bool:
        return math.hypot(self.x - self.px, self.y - self.py) > 1.9 * RADIUS


def place(points: Sequence[tuple[str, float, float]], frame: Frame) -> list[Badge]:
    """One badge per (sampler, x, y), greedily at the free spot nearest to its point."""
    badges: list[Badge] = []
    for sampler, px, py in points:
        spots = [
            (px + reach * math.cos(angle), py - reach * math.sin(angle))
            for reach in (15.0, 19.0, 25.0, 33.0, 44.0, 58.0, 75.0, 100.0)
            for angle in (0.0, 0.8, -0.8, 1.57, -1.57, 2.36, -2.36, 3.14)
        ]
        cost = [_cost(x, y, px, py, points, badges, frame) for x, y in spots]
        x, y = spots[cost.index(min(cost))]
        badges.append(Badge(sampler, round(x, 2), round(y, 2), px, py))
    return badges


def _cost(
    x: float,
    y: float,
    px: float,
    py: float,
    points: Sequence[tuple[str, float, float]],
    badges: Sequence[Badge],
    frame: Frame,
) -> float:
    cost = 0.05 * math.hypot(x - px, y - py)
    cost += sum(100.0 for b in badges if math.hypot(x - b.x, y - b.y) < 2 * RADIUS + 1)
    cost += sum(10.0 for _, qx, qy in points if math.hypot(x - qx, y - qy) < RADIUS + 4.5)
    inside = frame.left + RADIUS < x < frame.width - RADIUS - 1 and RADIUS < y < frame.bottom - RADIUS
    return cost + (0.0 if inside else 1000.0)
