"""Whether the scout's order of a comparison's samplers is that of their students' agreement with the teacher on test.

    python -m experiments.scout runs/digits --out runs/scout-digits
    python -m experiments.scout runs/mnist/lenet5-cpu --out runs/scout-mnist draws.limit=300

The first word is the folder of a finished comparison, which is only read; no student is trained. Then KEY=VALUE:
`draws` as for `dfkd scout`, `seeds` and `samplers` (labels) for some of the comparison's. What was begun in --out is
continued. Writes results.json and table.md there, and prints the table.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfkd import config as configuration
from dfkd.claim import claimed
from dfkd.files import replace_file
from dfkd.interfaces import is_data_free, walk
from dfkd.naming import unknown
from dfkd.resolve import say, student_of
from dfkd.scouting import Settings as ScoutSettings
from dfkd.scouting import scout

from ..ending import in_a_line
from .analysis import correlations, misplaced, orders, table
from .comparison import Comparison, agreements, opened, preferences


@dataclass(frozen=True)
class StudyConfig:
    """draws: how each sampler is looked at. seeds, samplers: of the comparison's; none named, all."""

    draws: ScoutSettings
    seeds: tuple[int, ...] = ()
    samplers: tuple[str, ...] = ()


DRAWS = {"limit": 120.0}  # seconds for a sampler in all, where `dfkd scout` gives twenty


def main(words: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m experiments.scout")
    parser.add_argument("folder", type=Path, help="of a finished comparison")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="draws.limit=60, seeds=[0], samplers=[real]")
    parser.add_argument("--out", type=Path, required=True, help="a folder to write to")
    given = parser.parse_intermixed_args(words)
    settings = configuration.read_settings(given.settings, {"draws": DRAWS})
    comparison = opened(given.folder)
    study = _within(configuration.parse(StudyConfig, settings), comparison)
    found = run(comparison, study, given.out)
    text = table(found)
    replace_file(given.out / "results.json", json.dumps(found, indent=1).encode())
    replace_file(given.out / "table.md", text.encode())
    print(text, end="")
    return found


def _within(study: StudyConfig, comparison: Comparison) -> StudyConfig:
    """With all seeds and samplers named; ValueError where one is not of the comparison."""
    config, labels = comparison.config, [*comparison.config.samplers, *comparison.unread]
    for seed in study.seeds:
        if seed not in config.seeds:
            raise ValueError(f"seeds: expected some of {list(config.seeds)}, which were compared, found {seed}")
    for label in study.samplers:
        if label not in labels:
            raise unknown("samplers", label, labels)
    if study.draws.seed != 0:
        raise ValueError("draws.seed: each sampler is looked at with the seeds of the comparison; use seeds=[...]")
    return replace(study, seeds=study.seeds or config.seeds, samplers=study.samplers or tuple(labels))


def run(comparison: Comparison, study: StudyConfig, out: Path) -> dict[str, Any]:
    """Looks at what was not looked at yet, and puts it beside what the comparison found."""
    seeds, labels = study.seeds, [label for label in study.samplers if label not in comparison.unread]
    with claimed(out, _depends_on(comparison, study)):
        seen: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
        for place, (seed, label) in enumerate([(seed, label) for seed in seeds for label in labels], 1):
            seen[label].append(_look(comparison, study, out, label, seed))
            say(f"scouted {place} of {len(seeds) * len(labels)}: {label} at seed {seed}")
    if not comparison.lines:
        say(f"{comparison.folder}: no results.jsonl yet, so no student counts as trained; run this again when there is")
    rows = {label: _row(comparison, study, seen[label], label) for label in labels}
    trained = [label for label, row in rows.items() if row["student"] is None]
    for seed in seeds:
        preferred = preferences(comparison, trained, seed)
        for label, row in rows.items():
            row["preference"].append(preferred.get(label))
    classes = comparison.spec.num_classes
    ordered = orders(rows, study.draws.rows, classes)
    for label, row in rows.items():
        row["score"] = ordered["score"].get(label)
    return {
        "comparison": str(comparison.folder),
        "teacher": comparison.digest,
        "seeds": list(seeds),
        "classes": classes,
        "draws": configuration.dump(study.draws),
        "samplers": rows,
        "unread": {label: comparison.unread[label] for label in study.samplers if label in comparison.unread},
        "correlations": correlations(rows, ordered),
        "misplaced": misplaced(rows, ordered["score"]),
    }


def _depends_on(comparison: Comparison, study: StudyConfig) -> dict[str, Any]:
    """What a look depends on but for its label and seed: a folder is of this alone."""
    plain = {name: comparison.plain[name] for name in ("student", "samplers")}
    return {"teacher": comparison.digest, **plain, "draws": configuration.dump(study.draws)}


def _look(comparison: Comparison, study: StudyConfig, out: Path, label: str, seed: int) -> dict[str, Any]:
    """What the scout sees of one sampler; it gets its score when all are seen."""
    file = out / "cells" / f"{label}-s{seed}.json"
    if not file.exists():
        config = comparison.config
        (found,) = scout(
            comparison.teacher,
            student_of(config.student, comparison.spec),
            {label: config.samplers[label]},
            spec=comparison.spec,
            settings=replace(study.draws, seed=seed),
            device=config.device,
        )
        replace_file(file, json.dumps(found.plain() | {"seed": seed}).encode())
    cell: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return cell


def _row(comparison: Comparison, study: StudyConfig, seen: list[dict[str, Any]], label: str) -> dict[str, Any]:
    """What there is of one sampler, a value for each seed; null where a seed has none.

    scout, student: why it has no score, or no agreement; null where it has at every seed.
    """
    sampler = comparison.config.samplers[label]
    agreement, missing = agreements(comparison, label, study.seeds)
    return {
        "data_free": is_data_free(sampler),
        "follows_student": any(part.uses_student for part in walk(sampler)),
        "scout": next((cell["reason"] for cell in seen if cell["reason"]), None),
        "student": missing,
        "diagnostics": [cell["values"] for cell in seen],
        "scout_seconds": [cell["seconds"] for cell in seen],
        "agreement": agreement,
        "preference": [],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with in_a_line("experiments.scout"):
        main(sys.argv[1:])
