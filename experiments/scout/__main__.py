"""Whether the scout's order of samplers is that of their students' agreement with the teacher on test data.

    python -m experiments.scout digits out=runs/scout-digits
    python -m experiments.scout mnist data=mnist.npz out=runs/scout-mnist workers=2

The first word names a YAML file beside this one; then its settings as KEY=VALUE, `out`, `workers`, and `data` (of the
teacher). A folder that was begun is continued. Writes results.json and table.md there, and prints the table.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from dfkd import config
from dfkd.files import replace_file
from dfkd.scout import CRITERIA, Scouted, ranked, resolution

from .analysis import correlate, misplaced
from .study import StudyConfig, run

HERE = Path(__file__).parent


def main(words: list[str]) -> dict[str, Any]:
    name, *rest = words or [""]
    file = HERE / f"{name}.yaml"
    if not file.exists():
        raise SystemExit(f"experiments.scout: expected digits or mnist first, found {name!r}")
    settings = config.read_settings([str(file), *rest])
    out, workers = Path(settings.pop("out", f"runs/scout-{name}")), int(settings.pop("workers", 1))
    if "data" in settings:
        settings["teacher"] = {**settings["teacher"], "data": settings.pop("data")}
    study: StudyConfig = config.parse(StudyConfig, settings)
    found = run(study, out, workers)
    found["correlations"] = correlations(found, study.draws.rows)
    text = table(found)
    replace_file(out / "results.json", json.dumps(found, indent=1).encode())
    replace_file(out / "table.md", text.encode())
    print(text, end="")
    return found


def scores(rows: Mapping[str, Any], draws: int, classes: int, only: str | None = None) -> dict[str, float]:
    """The scout's score by sampler, the mean over seeds; `only`: of one criterion alone."""
    usable = {label: row["diagnostics"] for label, row in rows.items() if all(row["diagnostics"])}
    totals: dict[str, list[float]] = {label: [] for label in usable}
    for seed in range(len(next(iter(usable.values()), []))):
        seen = [
            Scouted(label, values={k: v for k, v in values[seed].items() if only in (None, k)})
            for label, values in usable.items()
        ]
        for one in ranked(seen, resolution(draws, classes)):
            totals[one.label].append(one.score or 0.0)
    return {label: fmean(values) for label, values in totals.items()}


def correlations(found: dict[str, Any], draws: int) -> dict[str, Any]:
    """Of the score, of its parts, and of the preference among trained students; over all samplers and some of them.

    The score, its parts and `groups` were fixed before any of it was measured. Puts each sampler's score in its row.
    """
    rows = found["samplers"]
    agreement = {k: fmean(row["agreement"]) for k, row in rows.items() if _whole(row["agreement"])}
    preferred = {k: fmean(row["preference"]) for k, row in rows.items() if _whole(row["preference"])}
    # only what has a student takes part: else a sampler that cannot be trained would move the ranks of the others
    trained = {label: row for label, row in rows.items() if label in agreement}
    orders = {"score": scores(trained, draws, found["classes"])}
    orders |= {name: scores(trained, draws, found["classes"], only=name) for name in CRITERIA}
    orders |= {"preference (after training)": preferred}
    groups = {
        "all": list(rows),
        "data-free": [label for label, row in rows.items() if row["data_free"]],
        "do not follow the student": [label for label, row in rows.items() if not row["follows_student"]],
    }
    for label, row in rows.items():
        row["score"] = orders["score"].get(label)
    said: dict[str, Any] = {}
    for group, labels in groups.items():
        for order, values in orders.items():
            result = correlate({k: v for k, v in values.items() if k in labels}, agreement)
            said.setdefault(group, {})[order] = None if result is None else asdict(result)
    said["misplaced"] = misplaced(orders["score"], agreement)
    return said


def _whole(values: list[float | None]) -> bool:
    return bool(values) and all(value is not None for value in values)


def table(found: Mapping[str, Any]) -> str:
    """Markdown: the samplers by score, the correlations, what is misplaced, and what could not be used."""
    rows, seeds = found["samplers"], len(found["seeds"])
    lines = ["| sampler | data | score | test agreement % | preference % | scout s |", "|---|---|---|---|---|---|"]
    for label in sorted(rows, key=lambda k: -(rows[k]["score"] or -1.0)):
        row = rows[label]
        if row["score"] is None:
            continue
        mark = "*" if row["follows_student"] else ""
        lines.append(
            f"| {label}{mark} | {'free' if row['data_free'] else 'reads'} | {row['score']:.2f} "
            f"| {_percent(row['agreement'])} | {_percent(row['preference'])} | {fmean(row['scout_seconds']):.1f} |"
        )
    lines += ["", f"Means over {seeds} seed(s); *: follows the student. Spearman's rho with test agreement [95 %]:", ""]
    lines += ["| samplers | n | order | rho | its first | less than the best, % |", "|---|---|---|---|---|---|"]
    for group in ("all", "data-free", "do not follow the student"):
        for order, result in found["correlations"][group].items():
            if result is not None:
                lines.append(
                    f"| {group} | {result['samplers']} | {order} | {result['rho']:.2f} [{result['low']:.2f}, "
                    f"{result['high']:.2f}] | {result['first']} | {100 * result['regret']:.1f} |"
                )
    lines += ["", "Farthest from its place (by score, by agreement): "]
    lines[-1] += "; ".join(f"{label} ({said}, {true})" for label, said, true in found["correlations"]["misplaced"])
    reasons = {label: row["reason"] or row["status"][0] for label, row in rows.items() if row["score"] is None}
    lines += ["", "Without a student:", ""]
    lines += [f"- {label}: {reason}" for label, reason in {**reasons, **found["left"]}.items()]
    return "\n".join(lines) + "\n"


def _percent(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
