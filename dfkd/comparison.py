"""The fidelity matrix: train one student per sampler and seed, then score all of them on the same inputs.

All students of a seed start from the same weights and get the same budget; the last step is what is scored. A folder
holds one comparison: the same settings into the same folder continue it, other settings are refused.
"""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfkd import results, runtime
from dfkd.about import paper
from dfkd.cells import train_cell
from dfkd.claim import claimed, keep_manifest, same_models, what_is_read
from dfkd.engine import Budget, Optimiser
from dfkd.fidelity import columns
from dfkd.files import replace_file
from dfkd.interfaces import Sampler, is_data_free, labelled, preset_of, sources
from dfkd.jobs import Job, run_all
from dfkd.losses import KL, Objective, combine
from dfkd.losses.parts import check_sources
from dfkd.plan import Evaluation, Settings, run_folder
from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.results import Line, Summary
from dfkd.rng import derive
from dfkd.schemes.from_teacher import FromTeacher
from dfkd.schemes.offline import Student, check_precision, make_problem, make_student, make_trained
from dfkd.schemes.together import Together
from dfkd.scoring import feature_pairs, score_seed, try_losses
from dfkd.types import InputSpec, as_device

if TYPE_CHECKING:
    from dfkd.data import Dataset

__all__ = ["Comparison", "Evaluation", "Settings", "about_sampler", "compare", "try_sampler"]


@dataclass
class Comparison:
    """What a comparison found, and the folder it is kept in. `to_frame()` needs pandas."""

    folder: Path
    lines: list[Line]

    @property
    def summary(self) -> Summary:
        return Summary(self.lines)

    def print(self) -> None:
        """The sorted table, on the terminal."""
        from dfkd.report.table import print_table

        print_table(self.folder)

    def to_frame(self) -> Any:
        """One row for each result line, as a pandas DataFrame."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame: needs pandas, which dfkd does not install; `lines` has the same") from error

        return pandas.DataFrame([asdict(line) for line in self.lines])

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the page; default: report.html in the comparison's folder."""
        from dfkd.report import write_report

        page = write_report(self.folder)
        return page if path is None else Path(shutil.copyfile(page, path))


def compare(
    teacher: nn.Module,
    student: Student,
    samplers: "Sequence[Sampler] | Mapping[str, Sampler]",
    *,
    data: "str | Dataset | None" = None,
    spec: InputSpec | None = None,
    control_teacher: nn.Module | None = None,
    control_seeds: int | None = None,
    objective: Objective | None = None,
    budget: Budget | None = None,
    optimiser: Optimiser | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    evaluate: Evaluation | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    compile: bool = False,
    student_train: str = "train",
    student_score: str = "eval",
    preset: bool = False,
    out: str | Path | None = None,
    workers: int = 1,
    config: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> Comparison:
    """Trains one student per sampler and seed and scores all of them on the same inputs: the fidelity matrix.

    teacher: takes (n, c, h, w) pixels, returns (n, k) logits; the same for all, and fixed. student: a registry name,
    `package.module:function`, a zero-argument factory, or a module to start from; or one of them that starts
    `FromTeacher`, in part; or `Together` with a scheme. samplers: a list, or a mapping from labels. data: a source for
    `dfkd.data.load` or a Dataset; without it spec is needed and nothing is a test score. control_teacher: an
    independently trained teacher; its students give the excess agreement. preset: whether recipes that say how their
    authors trained the student have it trained so: objective, optimiser and batch. out: a folder; the same settings
    continue it. ValueError for anything that does not fit together.
    """
    dataset = _dataset(data)
    spec = dataset.spec if dataset is not None and spec is None else spec
    if spec is None:
        raise ValueError("compare: expected data or spec, found neither")
    settings = Settings(
        teacher=teacher,
        student=student,
        samplers=labelled(samplers),
        spec=spec,
        data=dataset,
        control_teacher=control_teacher,
        control_seeds=control_seeds,
        seeds=tuple(seeds),
        evaluate=evaluate or Evaluation(),
        device=str(as_device(device)),
        precision=precision,
        compile=compile,
        student_train=student_train,
        student_score=student_score,
        preset=preset,
        objective=objective or combine({"kl": (1.0, KL(temperature=4.0))}),
        budget=budget or Budget(steps=2000),
        optimiser=optimiser or Optimiser(),
    )
    try_settings(settings)
    folder = Path(tempfile.mkdtemp(prefix="dfkd-")) if out is None else Path(out)
    with claimed(folder, _describe(settings) if config is None else config):
        manifest = _manifest(settings)
        same_models(folder, manifest)
        keep_manifest(folder, manifest)
        run(settings, folder, workers, show_progress)
    comparison = Comparison(folder, results.read(folder / "results.jsonl"))
    if out is None:  # a temporary folder lives as long as what it was made for
        weakref.finalize(comparison, shutil.rmtree, folder, True)
    return comparison


def _dataset(data: "str | Path | Dataset | None") -> "Dataset | None":
    if isinstance(data, (str, Path)):
        from dfkd.data import load  # here, so that a data-free run never imports it

        return load(str(data))
    return data


def try_settings(settings: Settings) -> None:
    """Finds what does not fit together before any work is done."""
    spec, data = settings.spec, settings.data
    if data is not None and (data.spec.shape, data.spec.num_classes) != (spec.shape, spec.num_classes):
        raise ValueError(
            f"spec: expected images {data.spec.shape} of {data.spec.num_classes} classes, as in {data.name}, "
            f"found {spec.shape} of {spec.num_classes}"
        )
    if data is not None:
        data.require_test("data")
    student = make_trained(settings.student, spec, 0, settings.teacher)
    check_precision(settings.precision, torch.device(settings.device))
    problem = make_problem(settings.teacher, student, spec, device="cpu")
    if settings.control_teacher is not None:
        Probe(settings.control_teacher, spec, name="control teacher").check()
    feature_pairs(settings, problem.teacher)
    try_losses(settings, problem.teacher)
    scheme = settings.student.scheme if isinstance(settings.student, Together) else None
    tried: list[tuple[Objective, int]] = []
    for label, sampler in settings.samplers.items():
        objective, _, budget = settings.training(label)
        check_sources(objective.terms, sampler)
        if (objective, budget.batch) not in tried:  # else a tap that is not there would end it later
            tried.append((objective, budget.batch))
            problem.batch = budget.batch
            (objective if scheme is None else scheme.objective(objective)).init(problem, 0)
        try:
            try_sampler(sampler, problem)
        except UnsupportedProblem:
            continue  # becomes a line of the results


def try_sampler(sampler: Sampler, problem: Problem) -> None:
    """ValueError where its settings do not fit the problem: data that is missing, images of another shape."""
    counts = {phase: dict(count) for phase, count in problem.teacher.counts.items()}
    sampler.init(problem, derive(0, "try"))
    problem.teacher.counts = counts


def _describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, to tell whether a folder holds the same comparison."""
    plain = {
        name: getattr(settings, name)
        for name in ("control_seeds", "precision", "student_train", "student_score", "preset")
    }
    if settings.compile:  # not written where it is off: folders that were begun before it was a setting go on
        plain["compile"] = True
    return {
        "teacher": type(settings.teacher).__name__,
        "control_teacher": None if settings.control_teacher is None else type(settings.control_teacher).__name__,
        "student": _called(settings.student),
        "samplers": {label: repr(sampler) for label, sampler in settings.samplers.items()},
        "data": None if settings.data is None else settings.data.name,
        **{name: repr(getattr(settings, name)) for name in ("spec", "objective", "budget", "optimiser", "evaluate")},
        "seeds": list(settings.seeds),
        **plain,
    }


def _called(student: Any) -> str:
    if isinstance(student, Together):
        return f"{_called(student.student)}, {student.scheme!r}"
    if isinstance(student, FromTeacher):
        return f"{_called(student.student)}, {student.share} of the teacher"
    return student if isinstance(student, str) else "an object"


def run(settings: Settings, folder: Path, workers: int = 1, show_progress: bool = False) -> None:
    """Trains what is not trained yet, scores what is not scored yet, and writes results.jsonl and the report."""
    # the main students of all samplers first: pools that several of them share are filled by the first that asks
    cells = [(label, seed, False) for seed in settings.seeds for label in settings.samplers]
    cells += [(label, seed, True) for seed in settings.controlled for label in settings.samplers]
    jobs: list[Job] = [(train_cell, (folder, *cell)) for cell in cells]
    jobs += [(score_seed, (folder, seed)) for seed in settings.seeds]
    # a seed is scored as soon as its students are there, in the processes that train the others
    after = {
        place: [other for other, (_, own, _) in enumerate(cells) if own == seed]
        for place, seed in enumerate(settings.seeds, start=len(cells))
    }
    bar, done, all_jobs = runtime.Bar("runs", show_progress), 0, len(jobs)

    def advance(arguments: tuple[Any, ...]) -> None:
        nonlocal done
        done += 1
        bar.update(done / all_jobs, f"{done} of {all_jobs}: {' '.join(map(str, arguments[1:3]))}")

    try:
        run_all(settings, jobs, workers, advance, after)
    finally:
        bar.close()
    # all lines in one order, however many processes wrote them
    files = [run_folder(folder, label, seed) / "scores.jsonl" for seed in settings.seeds for label in settings.samplers]
    replace_file(folder / "results.jsonl", b"".join(file.read_bytes() for file in files))
    from dfkd.report import write_report

    write_report(folder)


def _manifest(settings: Settings) -> dict[str, Any]:
    """What it took to make the numbers: versions, hardware, hashes, sources."""
    data, spec = settings.data, settings.spec
    control = settings.control_teacher
    manifest: dict[str, Any] = {
        **runtime.describe(),
        "seeds": list(settings.seeds),
        "control_seeds": list(settings.controlled),
        "device": settings.device,
        "teacher": {"digest": Probe(settings.teacher, spec).digest, "accuracy": None},
        "control_teacher": None if control is None else {"digest": Probe(control, spec).digest, "accuracy": None},
        # of the first seed's weights before training: a factory has no name that tells two apart
        "student": {
            "digest": Probe(make_student(settings.student, spec, settings.seeds[0], settings.teacher), spec).digest
        },
        "control": bool(settings.controlled),
        "read": what_is_read(settings.samplers.values()),
        "samplers": {
            label: about_sampler(sampler) | _about_training(settings, label)
            for label, sampler in settings.samplers.items()
        },
    }
    if data is not None:
        manifest["data"] = {
            "name": data.name,
            "digest": data.digest,
            "train_rows": len(data.train),
            "test_rows": len(data.test),
            "classes": None if spec.class_names is None else list(spec.class_names),
        }
        manifest["resolution"] = 1.0 / len(data.test)
        for name, module in (("teacher", settings.teacher), ("control_teacher", control)):
            if module is not None and data.test.y is not None:
                probe = Probe(module, spec, as_device(settings.device))
                right = columns.logits(probe, data.test.x, spec).argmax(dim=1) == data.test.y.cpu()  # sync
                manifest[name]["accuracy"] = right.double().mean().item()  # sync
    return manifest


def _about_training(settings: Settings, label: str) -> dict[str, Any]:
    """How its student was trained, where that was not as all were."""
    if not settings.preset or preset_of(settings.samplers[label]) is None:
        return {}
    objective, optimiser, budget = settings.training(label)
    losses = " + ".join(f"{weight:g} {loss!r}" for weight, loss in objective.terms.values())
    return {"preset": f"{losses}, {optimiser!r}, batch {budget.batch}"}


def about_sampler(sampler: Sampler) -> dict[str, Any]:
    """What a manifest says of a sampler."""
    return {
        "kind": sampler.name,
        "paper": paper(type(sampler)),
        "data_free": is_data_free(sampler),
        "sources": sources(sampler),
        "settings": repr(sampler),
    }
