"""A comparison that `dfkd compare` keeps in a folder: its settings, its teacher, and how good its students are.

Nothing in the folder is written, and nothing is trained.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from dfkd import config as configuration
from dfkd import models, results
from dfkd.claim import what_is_read
from dfkd.config import CompareConfig
from dfkd.fidelity import columns
from dfkd.fidelity.recalibrate import recalibrated
from dfkd.naming import nearest
from dfkd.plan import bank_file, run_folder
from dfkd.problem import Probe
from dfkd.resolve import student_of, teacher_of, teacher_spec
from dfkd.results import Line, Summary
from dfkd.schemes.offline import make_student
from dfkd.selection import preference
from dfkd.types import BatchNormMode, InputSpec, as_device

__all__ = ["Comparison", "agreements", "opened", "preferences"]


@dataclass(frozen=True)
class Comparison:
    """plain: the settings as they are kept. unread: by label, why samplers of it can no longer be made from theirs.
    lines: of results.jsonl; none where it is still at work, as that is written at its end.
    """

    folder: Path
    config: CompareConfig
    plain: dict[str, Any]
    unread: dict[str, str]
    spec: InputSpec
    teacher: nn.Module
    digest: str
    lines: list[Line]


def opened(folder: Path) -> Comparison:
    """ValueError where the folder holds none, or one without test scores, or its teacher or data are no longer its."""
    config, plain, unread = _config(folder)
    if config.teacher.data is None or "test" not in config.evaluate.columns:
        asked = ", ".join(config.evaluate.columns)
        raise ValueError(f"{folder}: expected students scored on test, found {asked}, and data={config.teacher.data}")
    kept = folder / "teacher.safetensors"
    if config.teacher.weights is None and not kept.exists():
        raise ValueError(f"{kept}: expected the teacher of the comparison, found no such file; none is trained here")
    spec = teacher_spec(config.teacher, "teacher")
    teacher = teacher_of(config.teacher, kept, "teacher", config.device)
    digest = Probe(teacher, spec).digest
    _as_it_was(folder, digest, config)
    file = folder / "results.jsonl"
    lines = results.read(file) if file.exists() else []
    return Comparison(folder, config, plain, unread, spec, teacher, digest, lines)


def _as_it_was(folder: Path, digest: str, config: CompareConfig) -> None:
    """ValueError where the teacher, or what the samplers read, is not what the comparison began with."""
    file = folder / "manifest.json"
    there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if there and there["teacher"]["digest"] != digest:
        raise ValueError(f"{folder}: the teacher of that name is no longer the one that was compared")
    sources = (there.get("read") or {}).get("sources", {})
    for source, found in (what_is_read(config.samplers.values()) or {"sources": {}})["sources"].items():
        if sources.get(source, found) != found:
            raise ValueError(f"{folder}: {source} is no longer what the samplers read when they were compared")


def _config(folder: Path) -> tuple[CompareConfig, dict[str, Any], dict[str, str]]:
    """The settings; ValueError naming the nearest folder of a comparison where this is none."""
    try:
        return _read(folder)
    except ValueError as error:
        there = (folder / "config.yaml").exists()
        found = f"a config.yaml that is not one ({error})" if there else "no config.yaml"
        inside = [file.parent for file in sorted(folder.glob("*/config.yaml"))]
        beside = [folder.parent, *(file.parent for file in sorted(folder.parent.glob("*/config.yaml")))]
        choices = [[str(path) for path in some if _holds_one(path)] for some in (inside, beside)]
        close = next(iter(choices[0]), None) or nearest(str(folder), choices[1])
        hint = "make one with `dfkd compare FILE --out FOLDER`" if close is None else f"the nearest is {close}"
        raise ValueError(f"{folder}: expected a folder of `dfkd compare`, found {found}; {hint}") from error


def _read(folder: Path) -> tuple[CompareConfig, dict[str, Any], dict[str, str]]:
    """What was asked, as settings and as it is kept; and by label why samplers of it can no longer be made."""
    plain = configuration.read_settings([str(folder / "config.yaml")])
    legal, unread = [], {}
    for entry in plain.get("samplers") or []:
        try:
            configuration.sampler(entry, "its settings are of another version: samplers")
            legal.append(entry)
        except ValueError as error:
            name, options = next(iter(entry.items())) if isinstance(entry, dict) else (str(entry), {})
            unread[str((options or {}).get("label", name))] = str(error)
    return configuration.parse(CompareConfig, plain | {"samplers": legal}), plain, unread


def _holds_one(folder: Path) -> bool:
    try:
        _read(folder)
    except ValueError:
        return False
    return True


# -- students ----------------------------------------------------------------------------------------------------------


def agreements(comparison: Comparison, label: str, seeds: Sequence[int]) -> tuple[list[float | None], str | None]:
    """On the test set, by seed; and why a seed has none, None where all have one."""
    cell = Summary(comparison.lines).cell(label, "test", "agreement")
    values = dict(zip(cell.seeds, cell.values, strict=True))
    statuses = dict(zip(cell.seeds, cell.statuses, strict=True))
    missing = [seed for seed in seeds if values.get(seed) is None]
    reasons = {seed: statuses.get(seed, "no test score (yet)") for seed in missing}
    said = [
        f"{reason} at seed {', '.join(str(seed) for seed in missing if reasons[seed] == reason)}"
        for reason in dict.fromkeys(reasons.values())
    ]
    return [values.get(seed) for seed in seeds], "; ".join(said) or None


def preferences(comparison: Comparison, labels: Sequence[str], seed: int) -> dict[str, float]:
    """Of the students of these samplers at a seed: agreement on all their draws, weighted by what the scout says.

    Students are asked about the rows that the comparison drew when they were done. One without a file is left out.
    """
    folder, spec, device = comparison.folder, comparison.spec, as_device(comparison.config.device)
    own = [line for line in comparison.lines if (line.evaluation, line.seed) == ("own_draws", seed)]
    lines = [line for line in own if line.sampler in labels]
    teacher = Probe(comparison.teacher, spec, device)
    files = {label: bank_file(folder, label, seed) for label in labels}
    banks = {label: load_file(file)["x"] for label, file in files.items() if file.exists()}
    named = {label: columns.logits(teacher, x, spec).argmax(dim=1) for label, x in banks.items()}
    for head in {line.sampler: line for line in lines}.values():
        student = _student(comparison, head.sampler, seed)
        if student is None:
            continue
        mode: BatchNormMode = "batch" if comparison.config.student_score == "batch" else "eval"
        for label, x in banks.items():
            same = columns.logits(student, x, spec, mode).argmax(dim=1) == named[label]
            value = same.double().mean().item()  # sync
            lines.append(replace(head, evaluation=f"draws of {label}", metric="agreement", value=value))
    asked = any(line.evaluation != "own_draws" for line in lines)
    return preference(lines) if asked else {}


def _student(comparison: Comparison, label: str, seed: int) -> Probe | None:
    """In the BatchNorm mode that the comparison scored it in."""
    config, spec = comparison.config, comparison.spec
    file = run_folder(comparison.folder, label, seed) / "student.safetensors"
    if not file.exists():
        return None
    module = models.load(file, model=make_student(student_of(config.student, spec), spec, seed))
    bank = bank_file(comparison.folder, label, seed)
    if config.student_score == "recalibrated" and bank.exists():
        module = recalibrated(module, load_file(bank)["x"], spec)
    return Probe(module, spec, as_device(config.device), "student")
