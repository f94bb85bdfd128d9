"""Where a value stands between the worst and the best: the one scale of heat map, curves and scatter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .words import Metric, number

__all__ = ["Scale", "axis_linear", "axis_log", "metric_scale", "stretched"]


@dataclass(frozen=True)
class Scale:
    """position: value -> 0 (far from the teacher) to 1 (close). ticks: (position, text). kind: seq or div."""

    position: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]
    kind: str = "seq"
    low_end: str = "farther from the teacher"
    high_end: str = "closer to the teacher"


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def stretch(share: float) -> float:
    """0 -> 0, 1 -> 1, steeper towards 1: 90, 96 and 99 % are told apart, and so are 10 and 30 %."""
    return 1.0 - math.sqrt(1.0 - _clip(share))


def stretched(lowest: float) -> Scale:
    """Shares of rows from `lowest` to 1, drawn out towards 1."""
    start = 0.0
    for candidate in (0.9, 0.8, 0.7, 0.5, 0.3):
        if lowest >= candidate:
            start = candidate
            break
    bottom = stretch(start)

    def position(value: float) -> float:
        return _clip((stretch(value) - bottom) / (1.0 - bottom))

    ticks = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0]
    if start >= 0.8:
        ticks = [*ticks[:-1], 0.99, 0.995, 1.0]
    return Scale(position, tuple((position(t), f"{100 * t:g}") for t in ticks if t >= start))


def axis_log(values: Sequence[float]) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Positive values -> their position on a logarithmic axis with a little room, and ticks at 1, 2, 5 or decades."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    room = max(0.06 * (high - low), 0.05)
    low, high = low - room, high + room

    def position(value: float) -> float:
        return (math.log10(max(value, 1e-300)) - low) / (high - low)

    steps = (1.0, 2.0, 5.0) if high - low < 2.5 else (1.0, 3.0) if high - low < 4 else (1.0,)
    ticks = []
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for step in steps:
            value = step * 10.0**exponent
            if low <= math.log10(value) <= high:
                ticks.append((position(value), _short(value)))
    return position, ticks


def axis_linear(high: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """From 0 to a little over `high`, ticks at round numbers."""
    top = 1.06 * high
    rough = top / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * part for part in (1, 2, 5, 10) if size * part >= rough)
    ticks = [(step * i / top, _short(step * i) if i else "0") for i in range(int(top / step) + 1)]
    return lambda value: value / top, ticks


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.999:
            return f"{value / size:g}{letter}"
    return f"{value:g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def metric_scale(metric: Metric, values: Sequence[float]) -> Scale:
    """The scale on which these values of a metric are coloured."""
    if metric.form == "points" or metric.title.startswith("excess"):
        return _signed(metric, values)
    if metric.form == "percent" and metric.better == "higher":
        return stretched(0.0)
    if metric.form == "percent" and metric.better == "lower":
        mirrored = stretched(0.0)
        ticks = tuple((mirrored.position(1 - t), f"{100 * t:g}") for t in (1.0, 0.7, 0.5, 0.3, 0.1, 0.03, 0.0))
        return Scale(lambda value: mirrored.position(1.0 - value), ticks)
    if metric.better == "lower":
        return _falling(values)
    return _linear(metric, values)


def _signed(metric: Metric, values: Sequence[float]) -> Scale:
    most = max((abs(value) for value in values), default=0.0) or 1.0
    sign = -1.0 if metric.better == "lower" else 1.0
    ticks = tuple((0.5 + 0.5 * sign * part, number(part * most, metric.form)) for part in (-sign, 0.0, sign))
    return Scale(
        lambda value: _clip(0.5 + 0.5 * sign * value / most), ticks, "div", "worse than the control", "better than it"
    )


def _falling(values: Sequence[float]) -> Scale:
    """Non-negative, small is good, over orders of magnitude."""
    positive = [value for value in values if value > 0] or [1.0]
    top = max(positive)
    bottom = max(min(positive), 1e-4 * top)
    if top / bottom < 2:
        bottom = top / 2
    low, high = math.log(bottom), math.log(top)

    def position(value: float) -> float:
        return _clip((high - math.log(max(value, bottom))) / (high - low))

    ticks = []
    for exponent in range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1):
        for step in (1, 3) if top / bottom < 1e3 else (1,):
            value = step * 10.0**exponent
            if bottom <= value <= top:
                ticks.append((position(value), _short(value)))
    return Scale(position, tuple(ticks))


def _linear(metric: Metric, values: Sequence[float]) -> Scale:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high <= low:
        room = max(0.5, abs(low) * 1e-6)  # so large that it is not lost in rounding
        low, high = low - room, high + room
    ends = ("lower", "higher") if metric.better is None else ("farther from the teacher", "closer to the teacher")
    ticks = tuple((part, number(low + part * (high - low), metric.form)) for part in (0.0, 0.5, 1.0))
    return Scale(lambda value: _clip((value - low) / (high - low)), ticks, "seq", *ends)
