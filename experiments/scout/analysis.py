"""How far an order of samplers, made before or without any test, is that of their students' test agreement.

Of each sampler a row, as `run` makes them in `__main__`; at the end the table that is printed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from dfkd.scouting import CRITERIA, Scouted, ranked, resolution

__all__ = ["Correlation", "correlate", "correlations", "misplaced", "orders", "spearman", "table"]

Array = npt.NDArray[np.float64]
RESAMPLES = 2000
DIGITS = 12  # of a score: sums in another order must not break ties


# -- orders ------------------------------------------------------------------------------------------------------------


def orders(rows: Mapping[str, Any], draws: int, classes: int) -> dict[str, dict[str, float]]:
    """A height by sampler, the higher the better expected: of the score, of each of its parts alone, and of the
    preference among trained students, which is no forecast.

    Only what has a student takes part: else a sampler that cannot be trained would move the ranks of the others.
    """
    trained = {label: row for label, row in rows.items() if row["student"] is None}
    found = {"score": _scores(trained, draws, classes, tuple(CRITERIA))}
    found |= {name: _scores(trained, draws, classes, (name,)) for name in CRITERIA}
    preferred = {k: fmean(row["preference"]) for k, row in trained.items() if None not in row["preference"]}
    return found | {"preference (after training)": preferred}


def _scores(rows: Mapping[str, Any], draws: int, classes: int, used: tuple[str, ...]) -> dict[str, float]:
    """The scout's score of these criteria by sampler, the mean over seeds."""
    usable = {label: row["diagnostics"] for label, row in rows.items() if row["scout"] is None}
    totals: dict[str, list[float]] = {label: [] for label in usable}
    for seed in range(len(next(iter(usable.values()), []))):
        seen = [
            Scouted(label, values={name: values[seed].get(name) for name in used}) for label, values in usable.items()
        ]
        for one in ranked(seen, resolution(draws, classes)):
            totals[one.label].append(one.score or 0.0)
    return {label: fmean(values) for label, values in totals.items()}


def correlations(rows: Mapping[str, Any], ordered: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """By group and order. The score, its parts and the groups were fixed before any of it was measured."""
    groups = {
        "all": list(rows),
        "data-free": [label for label, row in rows.items() if row["data_free"]],
        "do not follow the student": [label for label, row in rows.items() if not row["follows_student"]],
    }
    agreement = _agreement(rows)
    said: dict[str, dict[str, Any]] = {group: {} for group in groups}
    for group, labels in groups.items():
        for order, heights in ordered.items():
            result = correlate({k: v for k, v in heights.items() if k in labels}, agreement)
            said[group][order] = None if result is None else asdict(result)
    return said


def _agreement(rows: Mapping[str, Any]) -> dict[str, float]:
    return {label: fmean(row["agreement"]) for label, row in rows.items() if row["student"] is None}


# -- statistics --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlation:
    """rho: Spearman's. low, high: 95 % of bootstrap resamples of the samplers. first: what the order puts first,
    several where they tie. regret: how much less than the best their agreement is, on average. samplers: how many."""

    rho: float
    low: float
    high: float
    first: tuple[str, ...]
    regret: float
    samplers: int


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, ties sharing theirs; None where either side is constant."""
    rho = float(_spearmans(np.array([x]), np.array([y]))[0])
    return None if np.isnan(rho) else rho


def _spearmans(x: Array, y: Array) -> Array:
    """x, y (r, n) -> (r,), NaN where either side is constant."""
    a, b = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    rho: Array = np.divide((a * b).sum(axis=1), size, out=np.full(len(x), np.nan), where=size > 0.0)
    return rho


def correlate(order: Mapping[str, float], agreement: Mapping[str, float]) -> Correlation | None:
    """order: the higher the better expected; of the samplers that both have. None for fewer than three or all equal."""
    labels = [label for label in order if label in agreement]
    x, y = (np.round([values[k] for k in labels], DIGITS) for values in (order, agreement))
    rho = spearman(x.tolist(), y.tolist()) if len(labels) > 2 else None
    if rho is None:
        return None
    picks = np.random.default_rng(0).integers(0, len(labels), (RESAMPLES, len(labels)))
    low, high = np.nanquantile(_spearmans(x[picks], y[picks]), [0.025, 0.975])
    first = tuple(label for label, height in zip(labels, x, strict=True) if height == x.max())
    regret = y.max() - y[x == x.max()].mean()
    return Correlation(rho, float(low), float(high), first, float(regret), len(labels))


def misplaced(rows: Mapping[str, Any], order: Mapping[str, float], most: int = 5) -> list[tuple[str, int, int]]:
    """(label, place in the order, place by agreement), the farthest apart first, where they differ; ties share one."""
    agreement = _agreement(rows)
    labels = [label for label in order if label in agreement]

    def places(heights: Mapping[str, float]) -> dict[str, int]:
        found = rankdata([-round(heights[label], DIGITS) for label in labels], method="min")
        return {label: int(place) for label, place in zip(labels, found, strict=True)}

    said, true = places(order), places(agreement)
    apart = sorted(labels, key=lambda label: -abs(said[label] - true[label]))
    return [(label, said[label], true[label]) for label in apart[:most] if said[label] != true[label]]


# -- for people --------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """Markdown: the samplers by score, the correlations, what is farthest from its place, and what is left out."""
    rows, scored = found["samplers"], [k for k, row in found["samplers"].items() if row["score"] is not None]
    lines = ["| sampler | data | score | test agreement % | preference % | scout s |", "|---|---|---|---|---|---|"]
    for label in sorted(scored, key=lambda k: -rows[k]["score"]):
        row = rows[label]
        lines.append(
            f"| {label}{'*' if row['follows_student'] else ''} | {'free' if row['data_free'] else 'reads'} "
            f"| {row['score']:.2f} | {_percent(row['agreement'])} | {_percent(row['preference'])} "
            f"| {fmean(row['scout_seconds']):.1f} |"
        )
    seeds = ", ".join(map(str, found["seeds"]))
    lines += ["", f"Means, ± sample standard deviations, over seeds {seeds}. *: follows the student.", ""]
    lines += _correlated(found["correlations"])
    said = [f"{label} ({place} by score, {true} by agreement)" for label, place, true in found["misplaced"]]
    if said:
        lines += ["", f"Farthest from their place: {'; '.join(said)}."]
    left = [f"- {label}: {_why(row)}" for label, row in rows.items() if row["score"] is None]
    left += [f"- {label}: not scouted: {reason}" for label, reason in found["unread"].items()]
    return "\n".join(lines + (["", "Left out:", "", *left] if left else [])) + "\n"


def _correlated(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each group and order but those of fewer than three samplers, or of nothing to tell them apart."""
    rows = []
    for group, by_order in found.items():
        for order, one in by_order.items():
            if one is not None:
                first = " = ".join(one["first"]) if len(one["first"]) < 3 else f"{len(one['first'])} of them tie"
                rho = f"{one['rho']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
                rows.append(f"| {group} | {one['samplers']} | {order} | {rho} | {first} | {100 * one['regret']:.1f} |")
    if not rows:
        return ["No correlation: fewer than three samplers with a student and an order, or nothing tells them apart."]
    return [
        "Spearman's rho with test agreement [95 % of resamples of the samplers], the sampler that an order puts first,",
        "and how many points its test agreement is below the best of the group:",
        "",
        "| samplers | n | order | rho | its first | below the best |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


def _why(row: Mapping[str, Any]) -> str:
    """Why a sampler is in no order of the score; with its agreement, where only the scout has none."""
    if row["student"] is not None:
        return f"not trained: {row['student']}" + (f"; not scouted: {row['scout']}" if row["scout"] else "")
    return f"not scouted: {row['scout']}; test agreement {_percent(row['agreement'])} %"


def _percent(values: list[float | None]) -> str:
    found = [100 * value for value in values if value is not None]
    if not found:
        return "-"
    return f"{fmean(found):.1f} ± {stdev(found):.1f}" if len(found) > 1 else f"{found[0]:.1f}"
