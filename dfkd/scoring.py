"""Scoring the students of a comparison: all of one seed on the same inputs, beside their controls.

What is found stays in the run's folder: its result lines, and the values row by row that paired tests need.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dfkd import models
from dfkd.fidelity import columns, metrics
from dfkd.fidelity.columns import Column
from dfkd.fidelity.corruptions import corrupted_column, parse_corruption
from dfkd.fidelity.distances import distance_name, distances
from dfkd.fidelity.features import default_pairs, feature_scores, pair_name
from dfkd.fidelity.quality import Reference
from dfkd.fidelity.recalibrate import recalibrated
from dfkd.fidelity.worst_case import worst_case_column
from dfkd.files import replace_file, replacing
from dfkd.interfaces import is_data_free
from dfkd.losses.features import Pairs
from dfkd.losses.relations import Related
from dfkd.plan import Settings, bank_file, read_record, run_folder, some_rows
from dfkd.problem import Probe, Problem
from dfkd.results import Line, finite
from dfkd.schemes.offline import make_student
from dfkd.types import BatchNormMode, InputSpec, Outputs, as_device, whole

__all__ = ["feature_pairs", "score_seed", "try_losses"]

_FEW = 4  # images on which losses are tried: any that compares rows has a value


def score_seed(settings: Settings, folder: Path, seed: int) -> None:
    """Scores all students of a seed on the same inputs, each column asked of the teacher once, in mode `eval`."""
    waiting = [label for label in settings.samplers if not (run_folder(folder, label, seed) / "scores.jsonl").exists()]
    if not waiting:
        return
    teacher = Probe(settings.teacher, settings.spec, as_device(settings.device))
    layers = feature_pairs(settings, teacher)
    fixed = [(column, _asked(settings, teacher, column, layers)) for column in _fixed_columns(settings, folder, seed)]
    reference = _reference(settings, teacher)
    shared = teacher.counts["evaluate"]["forward"]
    for label in waiting:
        run = run_folder(folder, label, seed)
        record = read_record(run / "student.json")
        head = _head(settings, label, record)
        lines: list[Line] = [head]
        rows: dict[str, np.ndarray] = {}
        if record["status"] == "ok":
            before = teacher.counts["evaluate"]["forward"]
            lines, rows = _score_student(settings, folder, head, teacher, fixed, layers)
            lines += _quality(settings, folder, head, reference)
            asked = head.evaluate_forward + shared + teacher.counts["evaluate"]["forward"] - before
            for metric, value in record["diagnostics"].items():
                lines.append(replace(head, evaluation="own_draws", metric=metric, value=finite(value)))
            lines = [replace(line, evaluate_forward=asked) for line in lines]
        with replacing(run / "rows.npz") as draft, draft.open("wb") as file:
            np.savez_compressed(file, **rows)  # type: ignore[arg-type]  # keys are column names
        replace_file(run / "scores.jsonl", "".join(line.to_json() + "\n" for line in lines).encode())


def _reference(settings: Settings, teacher: Probe) -> Reference | None:
    """The data that draws are set beside, where there is any."""
    data, most = settings.data, settings.evaluate.quality_rows
    if data is None or not most:
        return None
    training, held_out = (
        x[some_rows(len(x), rows).to(x.device)] for x, rows in ((data.train.x, 10 * most), (data.test.x, most))
    )
    return Reference.of(teacher, settings.spec, training, held_out)


def _quality(settings: Settings, folder: Path, head: Line, reference: Reference | None) -> list[Line]:
    """The lines of a sampler's draws beside data; how many rows they are of is kept in the run's folder."""
    lines: list[Line] = []
    if reference is None:
        return lines
    for bank in _bank(folder, head.sampler, head.seed):
        found = reference.score(bank.x, some_rows, settings.evaluate.quality_rows)
        values = {name: value for name, value in found.values.items() if finite(value) is not None}
        lines += [replace(head, evaluation="own_draws", metric=name, value=value) for name, value in values.items()]
        about = {"n": found.n, "training_rows": found.training_rows, "k": found.k, "reasons": dict(found.reasons)}
        replace_file(run_folder(folder, head.sampler, head.seed) / "quality.json", json.dumps(about, indent=1).encode())
    return lines


def _score_student(
    settings: Settings, folder: Path, head: Line, teacher: Probe, fixed: list[tuple[Column, Outputs]], layers: Pairs
) -> tuple[list[Line], dict[str, np.ndarray]]:
    """The lines of one student and its values row by row. A column without a number is a line that says why."""
    saved, other = (_saved(settings, folder, head, name) for name in ("student", "control"))
    assert saved is not None  # its record says that it finished
    scored = _in_mode(settings, folder, head, saved, settings.student_score)
    if scored is None:
        return [replace(head, status="unsupported")], {}
    student, mode = scored
    control = None if other is None else _in_mode(settings, folder, head, other, settings.student_score)
    beside = {name: _in_mode(settings, folder, head, saved, name) for name in _modes_beside(settings, saved)}
    lines: list[Line] = []
    rows: dict[str, np.ndarray] = {}
    near = _near(settings, folder, head.seed)
    if not all("input_grad" in probe.capabilities for probe in (teacher, student)):
        names = [f"worst_case@{epsilon:g}" for _ in near for epsilon in settings.evaluate.epsilons]
        lines += [replace(head, evaluation=name, status="unsupported") for name in names]
        near = []
    worst = (
        (column, _asked(settings, teacher, column, layers))
        for column in _worst_cases(settings, near, head.seed, teacher, student)
    )
    for column, told in chain(fixed, worst):
        answered = _answers(settings, student, column, [ours for ours, _ in layers], mode)
        logits = answered.logits
        if not bool(logits.isfinite().all()):
            lines.append(replace(head, evaluation=column.name, status="diverged"))
            continue
        control_logits = None
        if control is not None and column.kind != "worst_case":  # searched against this student, easy for any other
            control_logits = columns.logits(control[0], column.x, settings.spec, mode)
            if not bool(control_logits.isfinite().all()):
                control_logits = None
        found = metrics.score(logits, told.logits, column.y, control_logits)
        for ours, theirs in layers:
            alike = feature_scores(answered.features[ours], told.features[theirs])
            found |= {pair_name(name, (ours, theirs)): value for name, value in alike.items()}
        if settings.evaluate.losses:
            some = some_rows(len(column), settings.evaluate.feature_rows)
            apart = distances(settings.evaluate.losses, student, teacher, column, some, settings.spec, mode)
            found |= {distance_name(label): value for label, value in apart.items()}
        lines += [replace(head, evaluation=column.name, metric=m, value=finite(v)) for m, v in found.items()]
        if column.kind != "worst_case":  # searched against this student with the statistics that it has stored
            lines += _beside(settings.spec, replace(head, evaluation=column.name), column, told.logits, beside)
        rowwise = metrics.rowwise(logits, told.logits, column.y)
        rows |= {f"{metric}|{column.name}": rowwise[metric].float().numpy() for metric in ("agreement", "kl")}
    return lines, rows


def _beside(
    spec: InputSpec, head: Line, column: Column, told: Tensor, beside: Mapping[str, tuple[Probe, BatchNormMode] | None]
) -> list[Line]:
    """The main scores once more for every other BatchNorm mode, as `agreement_eval`; None where it has no answers."""
    lines = []
    for name, student in beside.items():
        wanted = ("agreement", "kl") if column.y is None else ("agreement", "kl", "accuracy")
        values: dict[str, float | None] = dict.fromkeys(wanted)
        if student is not None:
            logits = columns.logits(student[0], column.x, spec, student[1])
            if bool(logits.isfinite().all()):
                rows = metrics.rowwise(logits, told, column.y)
                values = {metric: float(rows[metric].mean()) for metric in wanted}
        head = replace(head, student_batchnorm=name)
        lines += [replace(head, metric=f"{metric}_{name}", value=finite(v)) for metric, v in values.items()]
    return lines


def feature_pairs(settings: Settings, teacher: Probe) -> Pairs:
    """Whose likeness is measured: as named, each found in its model, or what both models have."""
    pairs = settings.evaluate.features
    student = Probe(make_student(settings.student, settings.spec, settings.seeds[0]), settings.spec, name="student")
    if pairs is None:
        return default_pairs(student, teacher)
    student.feature_shapes(*(ours for ours, _ in pairs))
    teacher.feature_shapes(*(theirs for _, theirs in pairs))
    return pairs


def try_losses(settings: Settings, teacher: Probe) -> None:
    """Measures a few images, uncounted, so that a loss that cannot be measured ends it before any work is done."""
    if not settings.evaluate.losses:
        return
    spec, most = settings.spec, settings.evaluate.feature_rows
    student = Probe(make_student(settings.student, spec, settings.seeds[0]), spec, name="student")
    few = min(_FEW, most)
    column = Column("few images", torch.zeros(few, *spec.shape, dtype=torch.uint8), None, whole(few, "eval"), "draws")
    for label, loss in settings.evaluate.losses.items():
        if isinstance(loss, type) or not callable(loss) or not hasattr(loss, "coupled"):
            raise ValueError(f"losses.{label}: expected a loss such as Jacobian(), found {loss!r}")
        try:
            with teacher.uncounted():
                distances({label: loss}, student, teacher, column, torch.arange(few), spec)
            if isinstance(loss, Related):  # which sees all rows at once: their memory
                loss.init(Problem(teacher, student, spec, student.device, batch=most), 0)
        except ValueError as error:
            raise ValueError(f"losses.{label}: {error}") from error


def _answers(settings: Settings, probe: Probe, column: Column, taps: Sequence[str], mode: BatchNormMode) -> Outputs:
    """Logits of all rows of a column, features of some."""
    some = some_rows(len(column), settings.evaluate.feature_rows)
    return columns.answers(probe, column.x, settings.spec, mode, taps=taps, kept=some)


def _asked(settings: Settings, teacher: Probe, column: Column, layers: Pairs) -> Outputs:
    """The teacher's answers; ValueError where there is nothing to compare a student with."""
    told = _answers(settings, teacher, column, [theirs for _, theirs in layers], "eval")
    if not bool(told.logits.isfinite().all()):
        raise ValueError(f"teacher: expected finite logits on the column {column.name!r}, found NaN or infinity")
    return told


def _fixed_columns(settings: Settings, folder: Path, seed: int) -> Iterator[Column]:
    """The columns that are the same inputs for every student of a seed."""
    wanted, data = settings.evaluate.columns, settings.data
    if data is not None:
        test = columns.test_column(data.test.x, data.test.y)
        if "test" in wanted:
            yield test
        if "corrupted" in wanted:
            for corruption in settings.evaluate.corruptions:
                yield corrupted_column(test, *parse_corruption(corruption), seed=0)
    if "uniform" in wanted:
        yield columns.uniform_column(settings.spec, settings.evaluate.rows, seed=0)
    if "draws" in wanted:
        for label in settings.samplers:
            yield from _bank(folder, label, seed)


def _near(settings: Settings, folder: Path, seed: int) -> list[Column]:
    """The images that worst cases are searched around: of the test set, or of a sampler; none or one column."""
    evaluate, data = settings.evaluate, settings.data
    if "worst_case" not in evaluate.columns:
        return []
    if evaluate.worst_case_around != "test":
        starts = list(_bank(folder, evaluate.worst_case_around, seed))
    else:
        starts = [] if data is None else [columns.test_column(data.test.x, data.test.y)]
    near = []
    for start in starts:
        few = some_rows(len(start), evaluate.worst_case_rows).to(start.x.device)
        near.append(columns.test_column(start.x[few], None if start.y is None else start.y[few]))
    return near


def _worst_cases(settings: Settings, near: list[Column], seed: int, teacher: Probe, student: Probe) -> Iterator[Column]:
    """Inputs near the given ones on which this student disagrees most."""
    evaluate = settings.evaluate
    for start in near:
        for epsilon in evaluate.epsilons:
            yield worst_case_column(
                teacher, student, start, epsilon, seed, evaluate.worst_case_steps, evaluate.worst_case_restarts
            )


def _bank(folder: Path, label: str, seed: int) -> Iterator[Column]:
    """What a sampler drew when its run was done; nothing where the run did not finish."""
    file = bank_file(folder, label, seed)
    if file.exists():
        try:
            x = load_file(file)["x"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{file}: cannot be read as a bank of images ({error})") from error
        yield Column(f"draws of {label}", x, None, whole(len(x), "eval"), "draws")


def _head(settings: Settings, label: str, record: Mapping[str, Any]) -> Line:
    """What every result line of a run says of it; alone, that there is no number."""
    return Line(
        sampler=label,
        kind=settings.samplers[label].name,
        data_free=is_data_free(settings.samplers[label]),
        seed=record["seed"],
        evaluation="test" if settings.data is not None else f"draws of {label}",  # without data nothing is a test
        metric="agreement",
        value=None,
        status=record["status"],
        labelling=record.get("labelling", "eval"),
        student_train=settings.student_train,
        student_batchnorm=settings.student_score,
        **record.get("costs", {"steps": 0, "teacher_images": 0, "seconds": 0.0}),
    )


def _saved(settings: Settings, folder: Path, head: Line, name: str) -> Probe | None:
    """A student as it was saved; None where there is none that finished."""
    run = run_folder(folder, head.sampler, head.seed)
    record = run / f"{name}.json"
    if not record.exists() or read_record(record)["status"] != "ok":
        return None
    module = models.load(run / f"{name}.safetensors", model=make_student(settings.student, settings.spec, head.seed))
    return Probe(module, settings.spec, as_device(settings.device), name)


def _modes_beside(settings: Settings, student: Probe) -> tuple[str, ...]:
    """The BatchNorm modes to score it in beside the one it is compared in: by default `eval` where that is another."""
    if settings.evaluate.beside is None:
        beside: tuple[str, ...] = ("eval",) if "batchnorm" in student.capabilities else ()
    else:
        beside = settings.evaluate.beside
    return tuple(mode for mode in beside if mode != settings.student_score)


def _in_mode(
    settings: Settings, folder: Path, head: Line, student: Probe, scoring: str
) -> tuple[Probe, BatchNormMode] | None:
    """Whom to ask and how; None where it is to be recalibrated on the draws of a sampler whose run left none."""
    if scoring != "recalibrated":
        return student, "batch" if scoring == "batch" else "eval"
    for bank in _bank(folder, settings.evaluate.recalibrate_on or head.sampler, head.seed):
        module = recalibrated(student.module, bank.x, settings.spec)
        return Probe(module, settings.spec, student.device, student.name), "eval"
    return None
