"""One run of a comparison: distil a student and keep what it leaves behind.

A run's folder holds its student, its curve and its costs (student.json). What is there already, and whole, is not done
again.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dfkd import models
from dfkd.fidelity import columns
from dfkd.fidelity.diagnostics import diagnose
from dfkd.files import alone_with, make_folder, replace_file, replacing
from dfkd.interfaces import is_data_free
from dfkd.plan import Settings, bank_file, read_record, reference_of, run_folder, some_rows
from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.schemes.offline import Distilled, distill
from dfkd.types import UnlabelledBatch

__all__ = ["train_cell"]


def _monitor(settings: Settings) -> Callable[[Problem], dict[str, float]] | None:
    """Agreement on the test set along the way: for the eye, never for a choice."""
    if settings.data is None:
        return None
    x = settings.data.test.x
    x = x[some_rows(len(x), 1000).to(x.device)]
    answers: list[Tensor] = []

    def watch(problem: Problem) -> dict[str, float]:
        if not answers:  # of a probe of its own: what is asked for the eye is no cost of the run
            teacher = Probe(problem.teacher.module, settings.spec, problem.device)
            answers.append(columns.logits(teacher, x, settings.spec).argmax(dim=1))
        student = columns.logits(problem.student, x, settings.spec).argmax(dim=1)
        return {"agreement": (student == answers[0]).double().mean().item()}  # sync

    return watch


def train_cell(settings: Settings, folder: Path, label: str, seed: int, control: bool) -> dict[str, Any]:
    """Distils one student and saves it, its curve, its bank of fresh draws and its costs. Done cells are left alone;
    one whose student is not there any more, or not whole, is done again.

    KeyboardInterrupt where SIGTERM came; the checkpoint stays.
    """
    run = run_folder(folder, label, seed)
    if (record := _done(run, control)) is not None:
        return record
    make_folder(run)
    # a process whose comparison was killed may be at work here for some seconds more, and may even come to its end
    with alone_with(run / f".{_name(control)}.lock", wait=True):
        if (record := _done(run, control)) is not None:
            return record
        _take_back(run, control)
        return _train(settings, folder, label, seed, control)


def _done(run: Path, control: bool) -> dict[str, Any] | None:
    """What a run wrote of itself; None where it is not done, or where its student is lost that is still to be scored.

    A student that is cut short is lost in any case: who comes to load it would have nothing.
    """
    file = run / f"{_name(control)}.json"
    if not file.exists():
        return None
    record = read_record(file)
    if record.get("status") == "unsupported":
        return record
    try:
        with safe_open(file.with_suffix(".safetensors"), framework="pt"):  # looks at its head and its length
            return record
    except FileNotFoundError:
        return record if (run / "scores.jsonl").exists() else None
    except SafetensorError:
        return None


def _take_back(run: Path, control: bool) -> None:
    """What is said of an earlier student goes: it is trained again, and scored again."""
    file = run / f"{_name(control)}.json"
    if file.exists():
        warnings.warn(f"{file.with_suffix('.safetensors')} is missing or cut short; it is trained again", stacklevel=2)
    (run / "scores.jsonl").unlink(missing_ok=True)
    file.unlink(missing_ok=True)  # last: were it the first to go, scores of another student could stay


def _name(control: bool) -> str:
    return "control" if control else "student"


def _train(settings: Settings, folder: Path, label: str, seed: int, control: bool) -> dict[str, Any]:
    run, name = run_folder(folder, label, seed), _name(control)
    sampler = settings.samplers[label]
    teacher = settings.control_teacher if control else settings.teacher
    assert teacher is not None  # control cells exist only where there is a control teacher
    record: dict[str, Any] = {"label": label, "seed": seed, "control": control}
    objective, optimiser, budget = settings.training(label)
    try:
        distilled = distill(
            teacher,
            settings.student,
            sampler,
            spec=settings.spec,
            objective=objective,
            budget=budget,
            optimiser=optimiser,
            seed=seed,
            device=settings.device,
            precision=settings.precision,
            student_batchnorm=settings.student_train,
            banks=folder / "banks" / "shared",
            checkpoint=run / f"{name}.checkpoint",
            identity=f"{label}-s{seed}-{name}",
            monitor=None if control else _monitor(settings),
            compile=settings.compile,
        )
    except (UnsupportedProblem, UnlabelledBatch) as error:
        record |= {"status": "unsupported", "reason": str(error)}
    else:
        record |= _keep(settings, folder, label, seed, control, distilled)
    if record["status"] == "interrupted":
        raise KeyboardInterrupt  # the runs that wait must not begin
    replace_file(run / f"{name}.json", json.dumps(record, indent=1).encode())
    (run / f"{name}.checkpoint").unlink(missing_ok=True)
    return record


def _keep(
    settings: Settings, folder: Path, label: str, seed: int, control: bool, distilled: Distilled
) -> dict[str, Any]:
    """Saves what a finished run leaves behind and returns its costs."""
    run, training, problem = run_folder(folder, label, seed), distilled.training, distilled.problem
    name = _name(control)
    sampler = settings.samplers[label]
    counts = training.counts
    record: dict[str, Any] = {
        "status": training.status,
        "costs": {
            "steps": training.steps,
            "teacher_images": sum(sum(counts[phase].values()) for phase in ("synthesise", "label")),
            "seconds": training.seconds,
            "synthesise_seconds": training.synthesise_seconds,
            "synthesise_forward": counts["synthesise"]["forward"],
            "synthesise_backward": counts["synthesise"]["backward"],
            "label_forward": counts["label"]["forward"],
            "label_backward": counts["label"]["backward"],
            "evaluate_forward": counts["evaluate"]["forward"],
        },
    }
    if training.status == "interrupted":
        return record
    reference, options = reference_of(settings.student)
    models.save(
        run / f"{name}.safetensors",
        distilled.student,
        reference=reference,
        spec=settings.spec,
        options=options,
        card={"sampler": label, "seed": seed, "steps": training.steps, "data_free": is_data_free(sampler)},
    )
    if control:
        return record
    replace_file(run / "curve.jsonl", "".join(json.dumps(point) + "\n" for point in training.curve).encode())
    if training.status != "ok":
        return record
    bank = columns.draws_column(label, sampler, training.sampler_state, problem, settings.evaluate.rows)
    file = bank_file(folder, label, seed)
    make_folder(file.parent)
    with replacing(file) as draft:
        save_file({"x": bank.x}, draft)
    diagnosis = diagnose(problem.teacher, bank.x, settings.spec, bank.labelling)
    record["costs"]["evaluate_forward"] = problem.teacher.counts["evaluate"]["forward"]  # with bank and diagnosis
    modes = {mode for _, mode in bank.labelling}
    record["labelling"] = modes.pop() if len(modes) == 1 else "mixed"
    record["diagnostics"] = dict(diagnosis.values)
    return record
