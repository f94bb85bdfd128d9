"""A comparison's results as a table in Markdown, for a README.

    python -m experiments.table runs/digits

One row for each sampler, best accuracy first, on the test set: mean ± sample standard deviation over seeds. What the
teacher was asked and the seconds are means over seeds; seconds depend on what else the machine was doing.
"""

import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dfkd.results import Line, read

__all__ = ["table"]

METRICS = ("accuracy", "agreement", "kl")


def table(lines: list[Line], published: dict[str, Any] | None = None) -> str:
    """published: accuracies in %, by label, for a column of their own."""
    rows = []
    for label in dict.fromkeys(line.sampler for line in lines):
        own = [line for line in lines if line.sampler == label and line.evaluation == "test"]
        found = {m: [line.value for line in own if line.metric == m and line.value is not None] for m in METRICS}
        costs = [line for line in own if line.metric == "agreement"]
        images, seconds = fmean(line.teacher_images for line in costs), fmean(line.seconds for line in costs)
        bad = [line.status for line in costs if line.status != "ok"]
        status = ", ".join(f"{bad.count(one)} {one}" for one in sorted(set(bad))) or "ok"
        cells = [label, "free" if own[0].data_free else "reads"]
        cells += [] if published is None else [str(published.get(label, ""))]
        cells += [_spread(found["accuracy"], 100.0), _spread(found["agreement"], 100.0), _spread(found["kl"], 1.0)]
        cells += [f"{images / 1e6:.2f}", f"{seconds:.0f}", status]
        rows.append((fmean(found["accuracy"] or [0.0]), cells))
    head = [
        "sampler",
        "data",
        *([] if published is None else ["published %"]),
        "accuracy %",
        "agreement %",
        "KL (nats)",
    ]
    head += ["teacher images (M)", "seconds", "runs"]
    ordered = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *ordered])


def _spread(values: list[float], factor: float) -> str:
    if not values:
        return ""
    digits = 2 if factor == 100.0 else 3
    mean = f"{factor * fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * stdev(values):.{digits}f}"


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]) / "results.jsonl")), end="")
