"""A comparison's results as a table in Markdown, for a README.

    python -m experiments.table runs/digits

The folder, or a file of its results that was kept.
One row for each sampler, the best by the first column of numbers first: mean ± sample standard deviation over seeds.
What the teacher was asked and the seconds are means over seeds; seconds depend on what else the machine was doing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dfkd.fidelity.metrics import METRICS
from dfkd.results import Line, read

from .ending import in_a_line

__all__ = ["is_share", "kept", "place", "results_file", "table"]

SHOWN = ("accuracy@test", "agreement@test", "kl@test")
"""What a table shows where nobody says otherwise: METRIC@COLUMN of the fidelity matrix."""

_SHARES = ("accuracy", "agreement", "excess_agreement", "chance_agreement")  # and all that begin so, in %


def table(lines: list[Line], published: dict[str, Any] | None = None, shown: Sequence[str] = SHOWN) -> str:
    """published: accuracies in %, by label, for a column of their own."""
    rows = []
    for label in dict.fromkeys(line.sampler for line in lines):
        own = [line for line in lines if line.sampler == label]
        costs = [line for line in own if line.evaluation == "test" and line.metric == "agreement"]
        if not costs:
            raise ValueError(f"{label}: expected agreement on test among its results, found none")
        images, seconds = fmean(line.teacher_images for line in costs), fmean(line.seconds for line in costs)
        bad = [line.status for line in costs if line.status != "ok"]
        status = ", ".join(f"{bad.count(one)} {one}" for one in sorted(set(bad))) or "ok"
        found = [[line.value for line in own if place(line) == one and line.value is not None] for one in shown]
        cells = [label, "free" if own[0].data_free else "reads"]
        cells += [] if published is None else [str(published.get(label, ""))]
        cells += [_spread(values, one) for values, one in zip(found, shown, strict=True)]
        cells += [f"{images / 1e6:.2f}", f"{seconds:.0f}", status]
        rows.append((fmean(found[0] or [0.0]), cells))
    head = ["sampler", "data", *([] if published is None else ["published %"]), *[_named(one, lines) for one in shown]]
    head += ["teacher images (M)", "seconds", "runs"]
    ordered = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *ordered])


def results_file(where: Path) -> Path:
    """Of a comparison's folder, or kept by itself; ValueError where there is none."""
    file = where / "results.jsonl" if where.is_dir() else where
    if not file.is_file():
        found = f"no results.jsonl in {where}" if where.is_dir() else f"nothing at {where}"
        raise ValueError(f"results: expected a comparison's folder or a file of its results, found {found}")
    return file


def kept(file: Path) -> list[Line]:
    """All lines of a file of results, which are those of `dfkd compare`; ValueError where there are none."""
    lines = read(file)
    if not lines:
        raise ValueError(f"{file}: expected lines of results as `dfkd compare` writes them, found none")
    return lines


def place(line: Line) -> str:
    """What a line is of, as METRIC@COLUMN."""
    return f"{line.metric}@{line.evaluation}"


def is_share(one: str) -> bool:
    """Whether METRIC@COLUMN is a share of the rows, shown in %."""
    return one.startswith(_SHARES)


def _named(one: str, lines: list[Line]) -> str:
    # metrics and columns may have an @ in their names, so what was scored says where the two meet
    places = {place(line): (line.metric, line.evaluation) for line in lines}
    metric, column = places.get(one) or (one.rpartition("@")[0], one.rpartition("@")[2])
    unit = METRICS[metric].unit if metric in METRICS else "fraction"
    name = "KL" if metric == "kl" else metric.replace("_", " ")
    where = "" if column == "test" else f" on {column}"
    return f"{name}{where}{' %' if is_share(metric) else '' if unit == 'fraction' else f' ({unit})'}"


def _spread(values: list[float], one: str) -> str:
    if not values:
        return ""
    factor, digits = (100.0, 2) if is_share(one) else (1.0, 3)
    mean = f"{factor * fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * stdev(values):.{digits}f}"


def main(words: list[str]) -> str:
    if len(words) != 1:
        raise ValueError(f"expected FOLDER, found {' '.join(words) or 'nothing'}")
    return table(kept(results_file(Path(words[0]))))


if __name__ == "__main__":
    with in_a_line("experiments.table"):
        print(main(sys.argv[1:]), end="")
