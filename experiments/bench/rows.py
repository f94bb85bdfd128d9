"""A measured ratio to the bare loop, with its interval, as a row of a table and as a line of JSON; and on what it was.

no paper.
"""

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.runtime import describe

from .goals import Goal, Step

__all__ = ["HEAD", "Row", "about", "as_json", "as_text", "coverage", "interval"]

HEAD = (
    f"{'sampler':28} {'step':9} {'ours / bare':>11}  {'interval':14}  {'covers':>6}  {'min to max':14}  {'seconds':>7} "
    f"{'bare':>6}  {'existing':9}  {'goal':12}  {'met':6}  to frozen"
)


@dataclass(frozen=True)
class Row:
    """Median of the pairs' ratios, its interval and the extremes; medians in seconds.

    to_frozen: the median ratio to a bare loop whose teacher is frozen. goal: where there is one. memory: the most bytes
    that the process held, both loops in it; None where it cannot be told.
    """

    sampler: str
    step: Step
    ratio: float
    interval: tuple[float, float]
    extremes: tuple[float, float]
    seconds: float
    bare_seconds: float
    to_frozen: float | None
    pairs: int
    goal: Goal | None
    memory: int | None = None

    @property
    def covers(self) -> float:
        return coverage(self.pairs)


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """(low, median, high), by order alone; the interval holds the true median as often as `coverage` says."""
    values, edge = sorted(ratios), _edge(len(ratios))
    return values[edge], float(np.median(values)), values[-1 - edge]


def coverage(n: int) -> float:
    """In what share of repetitions, at least, the interval of n values holds the true median.

    0.95 or more of six values and more; the extremes of fewer hold it less often, 0.9375 of five, 0 of one.
    """
    return 1.0 - 2.0 * _tail(n, _edge(n))


def _edge(n: int) -> int:
    """How many values are left out at either end."""
    edge = 0
    while _tail(n, edge + 1) <= 0.025:
        edge += 1
    return edge


def _tail(n: int, edge: int) -> float:
    """The probability of at most `edge` heads of n."""
    return sum(math.comb(n, heads) for heads in range(edge + 1)) / 2.0**n


def as_text(row: Row) -> str:
    existing = goal = met = "-"
    if row.goal is not None:
        existing, goal, met = _span(row.goal.existing), f"<= {_span(row.goal.most)}", row.goal.met(row.ratio)
    frozen = "-"
    if row.to_frozen is not None:
        frozen = f"{row.to_frozen:.3f}" + ("" if row.goal is None else f" ({row.goal.met(row.to_frozen)})")
    covers = f"{100.0 * row.covers:.1f} %"
    return (
        f"{row.sampler:28} {row.step:9} {row.ratio:11.3f}  {_between(row.interval):14}  {covers:>6}  "
        f"{_between(row.extremes):14}  {row.seconds:7.3f} {row.bare_seconds:6.3f}  "
        f"{existing:9}  {goal:12}  {met:6}  {frozen}"
    )


def as_json(row: Row) -> str:
    line: dict[str, Any] = {
        "sampler": row.sampler,
        "step": row.step,
        "ratio": row.ratio,
        "ratio_low": row.interval[0],
        "ratio_high": row.interval[1],
        "covers": row.covers,
        "ratio_min": row.extremes[0],
        "ratio_max": row.extremes[1],
        "seconds": row.seconds,
        "bare_seconds": row.bare_seconds,
    }
    if row.to_frozen is not None:
        line["ratio_to_frozen"] = row.to_frozen
    line |= {"pairs": row.pairs, "process_peak_bytes": row.memory}
    if row.goal is not None:
        line |= {"existing": row.goal.existing, "goal": row.goal.most, "met": row.goal.met(row.ratio)}
    return json.dumps({key: _rounded(value) for key, value in line.items()})


def about(clock: str) -> dict[str, Any]:
    """Versions, hardware, commit (with `+` where files have changed since) and clock."""
    return {"commit": _commit(), "clock": clock, **describe()}


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [round(entry, 4) for entry in value]
    return round(value, 4) if isinstance(value, float) else value


def _between(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _span(ends: tuple[float, float]) -> str:
    """One number where both ends are the same."""
    low, high = (f"{end:.2f}" for end in ends)
    return low if low == high else f"{low}-{high}"
