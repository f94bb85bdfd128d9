"""A measured ratio to the bare loop, as a row of a table and as a line of JSON, with what it was measured on.

no paper.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd.runtime import describe

from .goals import Goal, Step

__all__ = ["HEAD", "Row", "about", "as_json", "as_text"]

HEAD = (
    f"{'sampler':28} {'step':9} {'ours / bare':>11}  {'95 % interval':14}  {'min to max':14}  {'seconds':>7} "
    f"{'bare':>6}  {'existing':9}  {'goal':12}  {'met':6}  to frozen"
)


@dataclass(frozen=True)
class Row:
    """Median of the pairs' ratios, its 95 % interval and the extremes; medians in seconds.

    to_frozen: the median ratio to a bare loop whose teacher is frozen. goal: where there is one.
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


def as_text(row: Row) -> str:
    existing = goal = met = "-"
    if row.goal is not None:
        existing, goal, met = _span(row.goal.existing), f"<= {_span(row.goal.most)}", row.goal.met(row.ratio)
    frozen = "-"
    if row.to_frozen is not None:
        frozen = f"{row.to_frozen:.3f}" + ("" if row.goal is None else f" ({row.goal.met(row.to_frozen)})")
    return (
        f"{row.sampler:28} {row.step:9} {row.ratio:11.3f}  {_between(row.interval):14}  {_between(row.extremes):14}  "
        f"{row.seconds:7.3f} {row.bare_seconds:6.3f}  {existing:9}  {goal:12}  {met:6}  {frozen}"
    )


def as_json(row: Row) -> str:
    line: dict[str, Any] = {
        "sampler": row.sampler,
        "step": row.step,
        "ratio": row.ratio,
        "ratio_low": row.interval[0],
        "ratio_high": row.interval[1],
        "ratio_min": row.extremes[0],
        "ratio_max": row.extremes[1],
        "seconds": row.seconds,
        "bare_seconds": row.bare_seconds,
    }
    if row.to_frozen is not None:
        line["ratio_to_frozen"] = row.to_frozen
    line["pairs"] = row.pairs
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
