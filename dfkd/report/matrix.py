"""The fidelity matrix as rows of cells: training samplers down, evaluation distributions across, a panel a metric."""

from dataclasses import dataclass, replace

from dfkd.results import Cell, Summary

from .colour import LEVELS
from .scales import Scale, metric_scale
from .words import METRICS, Metric, describe, number, plain, spread

__all__ = ["Column", "Panel", "columns", "panels"]

DIAGNOSTIC_COLUMN = "own_draws"


@dataclass(frozen=True)
class Column:
    """name: as in the records. group: what stands above it. title: what is left to say. own: whose draws it holds.
    starts: whether it is the first of its group."""

    name: str
    group: str
    title: str
    own: str | None = None
    starts: bool = False


@dataclass(frozen=True)
class HeatCell:
    """paint: a class of the style sheet, empty where there is no number. words: for a pointer or a screen reader."""

    text: str
    spread: str
    paint: str
    status: str
    note: str
    words: str
    own: bool


@dataclass(frozen=True)
class HeatRow:
    sampler: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class Panel:
    """One metric's matrix."""

    name: str
    metric: Metric
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    rows: tuple[HeatRow, ...]
    scale: Scale


def columns(summary: Summary) -> list[Column]:
    """The evaluation columns: the test set and its damaged versions, noise, draws, searches."""
    found = [_column(name) for name in summary.evaluations if name != DIAGNOSTIC_COLUMN]
    order = ("test set", "damaged test set", "noise", "draws of", "worst case, ε / 255", "other")
    found.sort(key=lambda column: order.index(column.group))
    before = ["", *(column.group for column in found)]
    return [replace(column, starts=column.group != last) for column, last in zip(found, before, strict=False)]


def _column(name: str) -> Column:
    if name == "test":
        return Column(name, "test set", "test")
    if name.startswith("draws of "):
        sampler = name.removeprefix("draws of ")
        return Column(name, "draws of", sampler, sampler)
    if name.startswith("worst_case"):
        return Column(name, "worst case, ε / 255", name.partition("@")[2] or "search")
    if name in ("uniform", "gaussian"):
        return Column(name, "noise", name)
    if "@" in name:
        kind, _, severity = name.partition("@")
        return Column(name, "damaged test set", f"{kind} {severity}")
    return Column(name, "other", name.replace("_", " "))


def panels(summary: Summary, order: list[str]) -> list[Panel]:
    """One panel for each metric that the matrix has, the best known metrics first."""
    known = [name for name in METRICS if name in summary.metrics]
    rest = sorted(name for name in summary.metrics if name not in METRICS)
    every = columns(summary)
    names = {column.name for column in every}
    asked = {(line.evaluation, line.metric) for line in summary.lines if line.status == "ok" or not known}
    made = []
    for name in known + rest:
        if any(evaluation in names and metric == name for evaluation, metric in asked):
            here = [column for column in every if (column.name, name) in asked]
            made.append(_panel(summary, order, name, here))
    return made


def _panel(summary: Summary, order: list[str], name: str, here: list[Column]) -> Panel:
    metric = describe(name)
    cells = {(s, c.name): summary.cell(s, c.name, name) for s in order for c in here}
    scale = metric_scale(metric, [cell.mean for cell in cells.values() if cell.mean is not None])
    rows = []
    for s in order:
        runs = len(summary.of(s))
        rows.append(HeatRow(s, tuple(_heat(cells[s, c.name], metric, scale, s, c, runs) for c in here)))
    groups: list[tuple[str, int]] = []
    for column in here:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return Panel(name, metric, tuple(here), tuple(groups), tuple(rows), scale)


def _heat(cell: Cell, metric: Metric, scale: Scale, sampler: str, column: Column, runs: int) -> HeatCell:
    own = column.own == sampler
    failures = failed_words(cell, runs)
    if cell.mean is None:
        text = cell.status if cell.failures else "–"
        words = f"{sampler} on {column.name}: {failures or 'no value'}"
        return HeatCell(text, "", "", cell.status, "", words, own)
    level = round(scale.position(cell.mean) * (LEVELS - 1))
    values = ", ".join(
        f"seed {seed}: {_exact(value, metric)}" for seed, value in zip(cell.seeds, cell.values, strict=True)
    )
    words = f"{sampler} on {column.name}, {metric.title}: {values}" + (" (its own draws)" if own else "")
    return HeatCell(
        text=number(cell.mean, metric.form),
        spread=spread(cell.spread, metric.form, cell.mean),
        paint=f"{scale.kind}{level}",
        status=cell.status,
        note=failures,
        words=words,
        own=own,
    )


def failed_words(cell: Cell, runs: int) -> str:
    """2 of 3 diverged. runs: how many there are of the sampler; not every run has every metric."""
    kinds = list(dict.fromkeys(cell.failures))
    return ", ".join(f"{cell.failures.count(kind)} of {runs} {kind}" for kind in kinds)


def _exact(value: float | None, metric: Metric) -> str:
    if value is None:
        return "none"
    return (
        f"{100 * value:.2f} {metric.unit}" if metric.form in ("percent", "points") else f"{plain(value)} {metric.unit}"
    )
