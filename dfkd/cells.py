"""One run of a comparison: distil a student, keep what it leaves behind, score it beside the others of its seed.

A run's folder holds its student, its curve, its costs (student.json) and, once scored, its result lines and the per-row
values that paired tests need. What is there already is not done again.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfkd import models
from dfkd.engine import Budget, Optimiser
from dfkd.fidelity import columns, metrics
from dfkd.fidelity.columns import Column
from dfkd.fidelity.corruptions import corrupted_column, parse_corruption
from dfkd.fidelity.diagnostics import diagnose
from dfkd.fidelity.recalibrate import recalibrated
from dfkd.fidelity.worst_case import worst_case_column
from dfkd.files import make_folder, replace_file, replacing
from dfkd.interfaces import Sampler, StudentFactory, is_data_free
from dfkd.losses import KL, Objective, combine
from dfkd.naming import unknown
from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.results import Line, finite
from dfkd.rng import derive
from dfkd.schemes.offline import Distilled, distill, make_student
from dfkd.types import BatchNormMode, InputSpec, as_device, whole

if TYPE_CHECKING:
    from dfkd.data import Dataset

__all__ = [
    "COLUMNS",
    "Evaluation",
    "Settings",
    "check_choices",
    "check_plan",
    "reference_of",
    "run_folder",
    "score_seed",
    "train_cell",
]

COLUMNS = ("test", "corrupted", "uniform", "draws", "worst_case")


@dataclass(frozen=True)
class Evaluation:
    """On what the students are scored.

    columns: which of test, corrupted (the test set, damaged), uniform (noise), draws (of each sampler), worst_case.
    corruptions: `name@severity`, severity 1 to 5. epsilons: half width of the worst-case ball in 1/255 of the box;
    worst_case_steps and worst_case_restarts of its search; worst_case_around: `test` or a sampler's label. rows: how
    many rows of noise and of each sampler are drawn. worst_case_rows: how many rows are searched; None searches all.
    """

    columns: tuple[str, ...] = COLUMNS
    corruptions: tuple[str, ...] = ("noise@3", "blur@3", "contrast@3")
    epsilons: tuple[float, ...] = (2.0, 8.0)
    worst_case_steps: int = 10
    worst_case_restarts: int = 2
    worst_case_around: str = "test"
    worst_case_rows: int | None = 1000
    rows: int = 1000

    def __post_init__(self) -> None:
        for column in self.columns:
            if column not in COLUMNS:
                raise unknown("columns", column, COLUMNS)
        if not self.columns:
            raise ValueError(f"columns: expected at least one of {', '.join(COLUMNS)}, found none")
        for corruption in self.corruptions:
            parse_corruption(corruption)
        for name in ("rows", "worst_case_rows", "worst_case_steps", "worst_case_restarts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")
        if any(not 0.0 < epsilon < 255.0 for epsilon in self.epsilons):
            raise ValueError(f"epsilons: expected numbers between 0 and 255, found {self.epsilons!r}")


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "precision": (None, "float32", "bfloat16"),
    "student_train": ("train", "fixed"),
    "student_score": ("eval", "batch", "recalibrated"),
}


@dataclass(frozen=True)
class Settings:
    """All that a run of a comparison needs, in another process too."""

    teacher: nn.Module
    student: "str | StudentFactory | nn.Module"
    samplers: Mapping[str, Sampler]
    spec: InputSpec
    data: "Dataset | None" = None
    control_teacher: nn.Module | None = None
    control_seeds: int | None = None
    objective: Objective = field(default_factory=lambda: combine({"kl": (1.0, KL(temperature=4.0))}))
    budget: Budget = field(default_factory=lambda: Budget(steps=2000))
    optimiser: Optimiser = field(default_factory=Optimiser)
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluate: Evaluation = field(default_factory=Evaluation)
    device: str = "cpu"
    precision: str | None = None
    student_train: str = "train"
    student_score: str = "eval"

    def __post_init__(self) -> None:
        check_plan(self)

    @property
    def controlled(self) -> tuple[int, ...]:
        """The seeds at which a control student is trained too."""
        if self.control_teacher is None:
            return ()
        return self.seeds if self.control_seeds is None else self.seeds[: self.control_seeds]


def check_choices(settings: Any) -> None:
    """ValueError where a setting that has few legal values has another."""
    for name, legal in _CHOICES.items():
        value = getattr(settings, name, legal[0])
        if value not in legal:
            raise ValueError(f"{name}: expected one of {', '.join(filter(None, legal))}, found {value!r}")


def check_plan(settings: Any) -> None:
    """The same of what a comparison's settings must agree on, whether they came from a file or from Python."""
    check_choices(settings)
    if not settings.samplers:
        raise ValueError("samplers: expected at least one, found none")
    for label in settings.samplers:
        if len(label.encode()) > 100:
            short = label[:20]
            raise ValueError(
                f"samplers: {short + '...'!r} is longer than 100 bytes, too long for a file; give a `label`"
            )
        if not label or label.strip() != label or any(c in label for c in "/\\\0\n") or label.startswith("."):
            raise ValueError(f"samplers: expected a label that can name a folder, found {label!r}")
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        raise ValueError(f"seeds: expected different integers, found {list(settings.seeds)!r}")
    if settings.control_seeds is not None and settings.control_seeds < 1:
        raise ValueError(f"control_seeds: expected an integer >= 1 or null for all, found {settings.control_seeds!r}")
    around = settings.evaluate.worst_case_around
    if around != "test" and around not in settings.samplers:
        raise unknown("worst_case_around", around, ["test", *settings.samplers])


# -- one run -----------------------------------------------------------------------------------------------------------


def run_folder(folder: Path, label: str, seed: int) -> Path:
    return folder / "runs" / f"{label}-s{seed}"


def _monitor(settings: Settings) -> Callable[[Problem], dict[str, float]] | None:
    """Agreement on the test set along the way: for the eye, never for a choice."""
    if settings.data is None:
        return None
    x = settings.data.test.x
    x = x[_some_rows(len(x), 1000).to(x.device)]
    answers: list[Tensor] = []

    def watch(problem: Problem) -> dict[str, float]:
        if not answers:  # of a probe of its own: what is asked for the eye is no cost of the run
            teacher = Probe(problem.teacher.module, settings.spec, problem.device)
            answers.append(columns.logits(teacher, x, settings.spec).argmax(dim=1))
        student = columns.logits(problem.student, x, settings.spec).argmax(dim=1)
        return {"agreement": (student == answers[0]).double().mean().item()}  # sync

    return watch


def _some_rows(n: int, most: int | None) -> Tensor:
    """Which of n rows are taken where `most` are enough: any, but always the same; data may be sorted by class."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(0, "some_rows", n)))
    return order[:most].sort().values


def train_cell(settings: Settings, folder: Path, label: str, seed: int, control: bool) -> dict[str, Any]:
    """Distils one student and saves it, its curve, its bank of fresh draws and its costs. Done cells are left alone.

    KeyboardInterrupt where SIGTERM came; the checkpoint stays.
    """
    run = run_folder(folder, label, seed)
    name = "control" if control else "student"
    record_file = run / f"{name}.json"
    if record_file.exists():
        return _record(record_file)
    make_folder(run)
    sampler = settings.samplers[label]
    teacher = settings.control_teacher if control else settings.teacher
    assert teacher is not None  # control cells exist only where there is a control teacher
    record: dict[str, Any] = {"label": label, "seed": seed, "control": control}
    try:
        distilled = distill(
            teacher,
            settings.student,
            sampler,
            spec=settings.spec,
            objective=settings.objective,
            budget=settings.budget,
            optimiser=settings.optimiser,
            seed=seed,
            device=settings.device,
            precision=settings.precision,
            student_batchnorm=settings.student_train,
            banks=folder / "banks" / "shared",
            checkpoint=run / f"{name}.checkpoint",
            identity=f"{label}-s{seed}-{name}",
            monitor=None if control else _monitor(settings),
        )
    except UnsupportedProblem as error:
        record |= {"status": "unsupported", "reason": str(error)}
    else:
        record |= _keep(settings, folder, label, seed, control, distilled)
    if record["status"] == "interrupted":
        raise KeyboardInterrupt  # the runs that wait must not begin
    replace_file(record_file, json.dumps(record, indent=1).encode())
    (run / f"{name}.checkpoint").unlink(missing_ok=True)
    return record


def _keep(
    settings: Settings, folder: Path, label: str, seed: int, control: bool, distilled: Distilled
) -> dict[str, Any]:
    """Saves what a finished run leaves behind and returns its costs."""
    run, training, problem = run_folder(folder, label, seed), distilled.training, distilled.problem
    name = "control" if control else "student"
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
    file = _bank_file(folder, label, seed)
    make_folder(file.parent)
    with replacing(file) as draft:
        save_file({"x": bank.x}, draft)
    diagnosis = diagnose(problem.teacher, bank.x, settings.spec, bank.labelling)
    record["costs"]["evaluate_forward"] = problem.teacher.counts["evaluate"]["forward"]  # with bank and diagnosis
    modes = {mode for _, mode in bank.labelling}
    record["labelling"] = modes.pop() if len(modes) == 1 else "mixed"
    record["diagnostics"] = dict(diagnosis.values)
    return record


def reference_of(student: "str | StudentFactory | nn.Module") -> tuple[str | None, dict[str, Any]]:
    """How `dfkd.load` builds a student again, and its options; (None, {}) where it needs `model=`."""
    if isinstance(student, str):
        return student, {}
    if isinstance(student, partial) and student.func in (models.build, models.load_teacher):
        own = {key: value for key, value in student.keywords.items() if key not in ("weights", "normalise")}
        return str(student.args[0]), own
    return (None, {}) if isinstance(student, nn.Module) else (models.reference_of(student), {})


def _record(file: Path) -> dict[str, Any]:
    """What a run wrote of itself when it was done."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); delete it to train this run again") from error


# -- scoring -----------------------------------------------------------------------------------------------------------


def score_seed(settings: Settings, folder: Path, seed: int) -> None:
    """Scores all students of a seed on the same inputs, each column asked of the teacher once, in mode `eval`."""
    waiting = [label for label in settings.samplers if not (run_folder(folder, label, seed) / "scores.jsonl").exists()]
    if not waiting:
        return
    teacher = Probe(settings.teacher, settings.spec, as_device(settings.device))
    fixed = [(column, _answers(teacher, column)) for column in _fixed_columns(settings, folder, seed)]
    shared = teacher.counts["evaluate"]["forward"]
    for label in waiting:
        run = run_folder(folder, label, seed)
        record = _record(run / "student.json")
        head = _head(settings, label, record)
        lines: list[Line] = [head]
        rows: dict[str, np.ndarray] = {}
        if record["status"] == "ok":
            before = teacher.counts["evaluate"]["forward"]
            lines, rows = _score_student(settings, folder, head, teacher, fixed)
            asked = head.evaluate_forward + shared + teacher.counts["evaluate"]["forward"] - before
            for metric, value in record["diagnostics"].items():
                lines.append(replace(head, evaluation="own_draws", metric=metric, value=finite(value)))
            lines = [replace(line, evaluate_forward=asked) for line in lines]
        with replacing(run / "rows.npz") as draft, draft.open("wb") as file:
            np.savez_compressed(file, **rows)  # type: ignore[arg-type]  # keys are column names
        replace_file(run / "scores.jsonl", "".join(line.to_json() + "\n" for line in lines).encode())


def _score_student(
    settings: Settings, folder: Path, head: Line, teacher: Probe, fixed: list[tuple[Column, Tensor]]
) -> tuple[list[Line], dict[str, np.ndarray]]:
    """The lines of one student and its values row by row. A column without a number is a line that says why."""
    student, control = (_scored(settings, folder, head.sampler, head.seed, name) for name in ("student", "control"))
    assert student is not None  # its record says that it finished
    mode: BatchNormMode = "batch" if settings.student_score == "batch" else "eval"
    lines: list[Line] = []
    rows: dict[str, np.ndarray] = {}
    near = _near(settings, folder, head.seed)
    if not (_gives_input_gradients(teacher) and _gives_input_gradients(student)):
        names = [f"worst_case@{epsilon:g}" for _ in near for epsilon in settings.evaluate.epsilons]
        lines += [replace(head, evaluation=name, status="unsupported") for name in names]
        near = []
    worst = (
        (column, _answers(teacher, column)) for column in _worst_cases(settings, near, head.seed, teacher, student)
    )
    for column, teacher_logits in chain(fixed, worst):
        logits = columns.logits(student, column.x, settings.spec, mode)
        if not bool(logits.isfinite().all()):
            lines.append(replace(head, evaluation=column.name, status="diverged"))
            continue
        control_logits = None
        if control is not None and column.kind != "worst_case":  # searched against this student, easy for any other
            control_logits = columns.logits(control, column.x, settings.spec, mode)
            if not bool(control_logits.isfinite().all()):
                control_logits = None
        found = metrics.score(logits, teacher_logits, column.y, control_logits)
        lines += [replace(head, evaluation=column.name, metric=m, value=finite(v)) for m, v in found.items()]
        rowwise = metrics.rowwise(logits, teacher_logits, column.y)
        rows |= {f"{metric}|{column.name}": rowwise[metric].float().numpy() for metric in ("agreement", "kl")}
    return lines, rows


def _gives_input_gradients(probe: Probe) -> bool:
    with probe.frozen():  # else gradients of its parameters are taken for the input's
        return "input_grad" in probe.capabilities


def _answers(teacher: Probe, column: Column) -> Tensor:
    """The teacher's logits; ValueError where there is nothing to compare a student with."""
    logits = columns.logits(teacher, column.x, teacher.spec)
    if not bool(logits.isfinite().all()):
        raise ValueError(f"teacher: expected finite logits on the column {column.name!r}, found NaN or infinity")
    return logits


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
        few = _some_rows(len(start), evaluate.worst_case_rows).to(start.x.device)
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


def _bank_file(folder: Path, label: str, seed: int) -> Path:
    return folder / "banks" / f"{label}-s{seed}.safetensors"


def _bank(folder: Path, label: str, seed: int) -> Iterator[Column]:
    """What a sampler drew when its run was done; nothing where the run did not finish."""
    file = _bank_file(folder, label, seed)
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


def _scored(settings: Settings, folder: Path, label: str, seed: int, name: str) -> Probe | None:
    """A saved student, in the BatchNorm mode it is scored in; None where there is none that finished."""
    run = run_folder(folder, label, seed)
    record = run / f"{name}.json"
    if not record.exists() or _record(record)["status"] != "ok":
        return None
    module = models.load(run / f"{name}.safetensors", model=make_student(settings.student, settings.spec, seed))
    if settings.student_score == "recalibrated":
        for bank in _bank(folder, label, seed):
            module = recalibrated(module, bank.x, settings.spec)
    return Probe(module, settings.spec, as_device(settings.device), name)
