"""The cells of the study: a teacher, a scout of all samplers per seed, a student per sampler and seed, and the scores.

Each cell is kept in the folder when it is done and a student's run is continued where it was stopped; a sampler that
the registry gained since is a new cell beside the old ones.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dfkd import config as configuration
from dfkd import models
from dfkd.candidates import candidates
from dfkd.cells import train_cell
from dfkd.claim import claimed
from dfkd.data import load
from dfkd.engine import Budget, Optimiser
from dfkd.fidelity import columns
from dfkd.files import replace_file
from dfkd.interfaces import Sampler, is_data_free, walk
from dfkd.jobs import Job, run_all
from dfkd.plan import Evaluation, Settings, bank_file, run_folder
from dfkd.problem import Probe
from dfkd.resolve import say, student_of, teacher_of, teacher_spec
from dfkd.results import Line
from dfkd.schemes.offline import make_student
from dfkd.scout import Settings as ScoutSettings
from dfkd.scout import scout
from dfkd.selection import preference
from dfkd.types import as_device

__all__ = ["StudyConfig", "run"]


@dataclass(frozen=True)
class StudyConfig:
    """As for `dfkd compare`; samplers: none named, all that the scout looks at. rows: in the bank of each sampler."""

    teacher: configuration.TeacherConfig
    student: configuration.StudentConfig
    samplers: dict[str, Sampler] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=lambda: {"kl": {"temperature": 4.0}})
    budget: Budget = Budget(steps=2000)
    optimiser: Optimiser = Optimiser()
    seeds: tuple[int, ...] = (0, 1, 2)
    draws: ScoutSettings = ScoutSettings()
    rows: int = 1000
    device: str | None = None


def run(study: StudyConfig, folder: Path, workers: int) -> dict[str, Any]:
    """Everything that is not there yet, and what was found, by sampler."""
    spec = teacher_spec(study.teacher, "teacher")
    samplers, left = study.samplers, dict[str, str]()
    if not samplers:
        samplers, left = candidates(study.teacher.data, study.teacher.size)
    with claimed(folder, configuration.dump(replace(study, samplers={}))):
        _same_samplers(folder / "samplers.json", samplers)
        teacher = teacher_of(study.teacher, folder / "teacher.safetensors", "teacher", study.device)
        settings = Settings(
            teacher=teacher,
            student=student_of(study.student, spec),
            samplers=samplers,
            spec=spec,
            data=load(study.teacher.data or "digits", size=study.teacher.size),
            objective=configuration.objective(study.objective),
            budget=study.budget,
            optimiser=study.optimiser,
            seeds=study.seeds,
            evaluate=Evaluation(columns=("test", "draws"), rows=study.rows),
            device=str(as_device(study.device)),
        )
        looks: list[Job] = [(_scout_cell, (folder, study, label, seed)) for seed in study.seeds for label in samplers]
        scouted = _by_label(run_all(settings, looks, 1, _advance("scouted", len(looks))))
        usable = [label for label in samplers if all(one["reason"] is None for one in scouted[label].values())]
        jobs: list[Job] = [(_student_cell, (folder, label, seed)) for seed in study.seeds for label in usable]
        trained = _by_label(run_all(settings, jobs, workers, _advance("trained", len(jobs))))
        by_seed = {seed: _scores(settings, folder, usable, trained, seed) for seed in study.seeds}
    rows = {label: _row(settings, scouted, trained, by_seed, label) for label in samplers}
    return {"samplers": rows, "left": left, "seeds": list(study.seeds), "classes": spec.num_classes}


def _advance(what: str, total: int) -> Any:
    done = iter(range(1, total + 1))
    return lambda arguments: say(f"{what} {next(done)} of {total}: {arguments[-2]} at seed {arguments[-1]}")


def _by_label(cells: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for cell in cells:
        found[cell["label"]][cell["seed"]] = cell
    return found


def _same_samplers(file: Path, samplers: Mapping[str, Sampler]) -> None:
    """ValueError where a label stood for something else when this folder was begun; new labels join it."""
    there = json.loads(file.read_text()) if file.exists() else {}
    for label, sampler in samplers.items():
        if there.get(label, repr(sampler)) != repr(sampler):
            raise ValueError(f"{file.parent}: {label!r} was {there[label]} there; name another folder")
    replace_file(file, json.dumps(there | {k: repr(v) for k, v in samplers.items()}, indent=1).encode())


# -- cells -------------------------------------------------------------------------------------------------------------


def _scout_cell(settings: Settings, folder: Path, study: StudyConfig, label: str, seed: int) -> dict[str, Any]:
    """What the scout sees of one sampler; the score comes when all are seen."""
    file = run_folder(folder, label, seed) / "scout.json"
    if not file.exists():
        (found,) = scout(
            settings.teacher,
            settings.student,
            {label: settings.samplers[label]},
            spec=settings.spec,
            settings=replace(study.draws, seed=seed),
            device=settings.device,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(found.plain() | {"seed": seed}).encode())
    cell: dict[str, Any] = json.loads(file.read_text())
    return cell


def _student_cell(settings: Settings, folder: Path, label: str, seed: int) -> dict[str, Any]:
    """A trained student; what goes wrong on the way is said in its row and tried again next time."""
    try:
        return train_cell(settings, folder, label, seed, False)
    except ValueError as error:
        return {"label": label, "seed": seed, "status": "failed", "reason": " ".join(str(error).split())}


# -- scores ------------------------------------------------------------------------------------------------------------


def _scores(
    settings: Settings, folder: Path, labels: list[str], trained: Mapping[str, Any], seed: int
) -> dict[str, dict[str, float]]:
    """By label: agreement on the test set, and the preference that needs none; of the students that were trained."""
    assert settings.data is not None
    spec, device = settings.spec, as_device(settings.device)
    done = [label for label in labels if trained[label][seed]["status"] == "ok"]
    teacher = Probe(settings.teacher, spec, device)
    asked = {"test": settings.data.test.x}
    asked |= {f"draws of {label}": load_file(bank_file(folder, label, seed))["x"] for label in done}
    named = {where: columns.logits(teacher, x, spec).argmax(dim=1) for where, x in asked.items()}
    lines, test = [], {}
    for label in done:
        head = Line(label, True, seed, "own_draws", "none", None, 0, 0, 0.0)
        own = trained[label][seed]["diagnostics"]
        lines += [replace(head, metric=name, value=value) for name, value in own.items()]
        file, fresh = (
            run_folder(folder, label, seed) / "student.safetensors",
            make_student(settings.student, spec, seed),
        )
        student = Probe(models.load(file, model=fresh), spec, device, "student")
        for where, x in asked.items():
            same = (columns.logits(student, x, spec).argmax(dim=1) == named[where]).double().mean().item()  # sync
            if where == "test":
                test[label] = same
            else:
                lines.append(replace(head, evaluation=where, metric="agreement", value=same))
    preferred = preference(lines) if done else {}
    return {label: {"agreement": test[label], "preference": preferred[label]} for label in preferred}


def _row(
    settings: Settings, scouted: Mapping[str, Any], trained: Mapping[str, Any], by_seed: Mapping[int, Any], label: str
) -> dict[str, Any]:
    """What there is of one sampler, a value for each seed; null where a seed has none."""
    sampler, seeds = settings.samplers[label], list(settings.seeds)
    seen = [scouted[label][seed] for seed in seeds]
    runs = [trained[label][seed] for seed in seeds] if label in trained else []
    values = [by_seed[seed].get(label, {}) for seed in seeds]
    return {
        "data_free": is_data_free(sampler),
        "follows_student": any(part.uses_student for part in walk(sampler)),
        "reason": next((cell["reason"] for cell in [*seen, *runs] if cell.get("reason")), None),
        "status": [cell["status"] for cell in runs] or ["unsupported"] * len(seeds),
        "diagnostics": [cell["values"] for cell in seen],
        "scout_seconds": [cell["seconds"] for cell in seen],
        "agreement": [value.get("agreement") for value in values],
        "preference": [value.get("preference") for value in values],
        "costs": [cell.get("costs") for cell in runs],
    }
