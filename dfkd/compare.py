"""The fidelity matrix: train one student per sampler and seed, then score all of them on the same inputs.

All students of a seed start from the same weights and get the same budget; the last step is what is scored. A folder
holds one comparison: the same settings into the same folder continue it, other settings are refused.
"""

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from dfkd import results, runtime
from dfkd.cells import Evaluation, Settings, run_folder, score_seed, train_cell
from dfkd.engine import Budget, Optimiser
from dfkd.fidelity import columns
from dfkd.files import make_folder, replace_file
from dfkd.interfaces import Sampler, StudentFactory, is_data_free, sources, walk
from dfkd.losses import KL, Objective, combine
from dfkd.problem import Probe
from dfkd.results import Line, Summary
from dfkd.schemes.offline import make_problem, make_student
from dfkd.types import InputSpec, as_device

if TYPE_CHECKING:
    from dfkd.data import Dataset

__all__ = ["Comparison", "Evaluation", "Settings", "claim", "compare", "default_label"]

Job = tuple[Callable[..., Any], tuple[Any, ...]]


def _work(payload: bytes, arguments: tuple[Any, ...]) -> Any:
    job, settings = pickle.loads(payload)  # our own bytes, made a moment ago by the parent process
    return job(settings, *arguments)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run_all(
    settings: Settings, jobs: Sequence[Job], workers: int, finished: Callable[[tuple[Any, ...]], None]
) -> list[Any]:
    """Runs jobs here (one worker) or in processes of their own, one thread each; in order of `jobs`."""
    if workers == 1:
        done = []
        for job, arguments in jobs:
            done.append(job(settings, *arguments))
            finished(arguments)
        return done
    try:
        payloads = {job: pickle.dumps((job, settings)) for job in dict.fromkeys(job for job, _ in jobs)}
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"workers: several processes need settings that can be pickled ({error}); use workers=1"
        ) from error
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        futures: dict[Future[Any], tuple[Any, ...]] = {
            pool.submit(_work, payloads[job], arguments): arguments for job, arguments in jobs
        }
        try:
            for future in as_completed(futures):
                future.result()
                finished(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def claim(folder: Path, config: Mapping[str, Any]) -> None:
    """The folder is this comparison's: empty, or begun with the same settings."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    file = folder / "config.yaml"
    if not file.exists():
        make_folder(folder)
        strangers = sorted(p.name for p in folder.iterdir() if p.name not in ("teacher.safetensors",))
        if strangers:
            raise ValueError(
                f"out: {folder} is not empty (it holds {strangers[0]}) and holds no comparison; name another"
            )
        replace_file(file, text.encode())
        return
    there = yaml.safe_load(file.read_text()) or {}
    if there != yaml.safe_load(text):
        keys = [key for key in {**there, **config} if there.get(key) != yaml.safe_load(text).get(key)]
        raise ValueError(f"out: {folder} holds another comparison (its {', '.join(keys)} differs); name another folder")


@dataclass
class Comparison:
    """What a comparison found, and the folder it is kept in. `to_frame()` needs pandas."""

    folder: Path
    lines: list[Line]
    _temporary: Any = field(default=None, repr=False)  # a temporary folder lives as long as this does

    @property
    def summary(self) -> Summary:
        return Summary(self.lines)

    def print(self) -> None:
        """The sorted table, on the terminal."""
        from dfkd.report.table import print_table

        print_table(self.folder)

    def to_frame(self) -> Any:
        """One row for each result line, as a pandas DataFrame."""
        import pandas  # an optional package

        return pandas.DataFrame([asdict(line) for line in self.lines])

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the page; default: report.html in the comparison's folder."""
        from dfkd.report import write_report

        page = write_report(self.folder)
        return page if path is None else Path(shutil.copyfile(page, path))


def compare(
    teacher: nn.Module,
    student: "str | StudentFactory | nn.Module",
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
    precision: str = "float32",
    student_train: str = "train",
    student_score: str = "eval",
    out: str | Path | None = None,
    workers: int = 1,
    config: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> Comparison:
    """Trains one student per sampler and seed and scores all of them on the same inputs: the fidelity matrix.

    teacher: takes (n, c, h, w) pixels, returns (n, k) logits; the same for all, and fixed. student: a registry name,
    `package.module:function`, a zero-argument factory, or a module to start from. samplers: a list, or a mapping from
    labels. data: a source for `dfkd.data.load` or a Dataset; without it spec is needed and nothing is a test score.
    control_teacher: an independently trained teacher; its students give the excess agreement. out: a folder; the same
    settings continue it. ValueError for anything that does not fit together.
    """
    from dfkd.data import load  # here, so that a data-free run never imports it

    dataset = load(data) if isinstance(data, str) else data
    spec = dataset.spec if dataset is not None and spec is None else spec
    if spec is None:
        raise ValueError("compare: expected data or spec, found neither")
    settings = Settings(
        teacher=teacher,
        student=student,
        samplers=_labelled(samplers),
        spec=spec,
        data=dataset,
        control_teacher=control_teacher,
        control_seeds=control_seeds,
        seeds=tuple(seeds),
        evaluate=evaluate or Evaluation(),
        device=str(as_device(device)),
        precision=precision,
        student_train=student_train,
        student_score=student_score,
        objective=objective or combine({"kl": (1.0, KL(temperature=4.0))}),
        budget=budget or Budget(steps=2000),
        optimiser=optimiser or Optimiser(),
    )
    temporary = tempfile.TemporaryDirectory(prefix="dfkd-") if out is None else None
    folder = Path(temporary.name) if temporary is not None else Path(str(out))
    make_problem(teacher, make_student(student, spec, 0), spec, device="cpu")  # a misfit is found before any work
    claim(folder, describe(settings) if config is None else config)
    write_manifest(settings, folder)
    run(settings, folder, workers, show_progress)
    return Comparison(folder, results.read(folder / "results.jsonl"), temporary)


def _labelled(samplers: "Sequence[Sampler] | Mapping[str, Sampler]") -> dict[str, Sampler]:
    """Samplers by label; a list gets the names, which must differ."""
    if isinstance(samplers, Mapping):
        return dict(samplers)
    labelled = {default_label(sampler): sampler for sampler in samplers}
    if len(labelled) != len(samplers):
        raise ValueError("samplers: two of them have the same label; give a mapping from labels of your own")
    return labelled


def default_label(sampler: Sampler) -> str:
    """Its name and the names of its parts: adversarial-pooled-deep_inversion."""
    return "-".join(part.name for part in walk(sampler))


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, to tell whether a folder holds the same comparison."""
    plain = {name: getattr(settings, name) for name in ("control_seeds", "precision", "student_train", "student_score")}
    teachers = {
        name: None if module is None else Probe(module, settings.spec, name=name).digest
        for name, module in (("teacher", settings.teacher), ("control_teacher", settings.control_teacher))
    }
    return {
        **teachers,
        "student": settings.student if isinstance(settings.student, str) else type(settings.student).__name__,
        "samplers": {label: repr(sampler) for label, sampler in settings.samplers.items()},
        "data": None if settings.data is None else f"{settings.data.name} {settings.data.digest}",
        **{name: repr(getattr(settings, name)) for name in ("spec", "objective", "budget", "optimiser", "evaluate")},
        "seeds": list(settings.seeds),
        **plain,
    }


def run(settings: Settings, folder: Path, workers: int = 1, show_progress: bool = False) -> None:
    """Trains what is not trained yet, scores what is not scored yet, and writes results.jsonl and the report."""
    # the main students of all samplers first: pools that several of them share are filled by the first that asks
    cells = [(label, seed, False) for seed in settings.seeds for label in settings.samplers]
    cells += [(label, seed, True) for seed in settings.controlled for label in settings.samplers]
    bar, done, all_jobs = runtime.Bar("runs", show_progress), 0, len(cells) + len(settings.seeds)

    def advance(arguments: tuple[Any, ...]) -> None:
        nonlocal done
        done += 1
        bar.update(done / all_jobs, f"{done} of {all_jobs}: {' '.join(map(str, arguments[1:3]))}")

    try:
        trained = _run_all(settings, [(train_cell, (folder, *cell)) for cell in cells], workers, advance)
        if any(record["status"] == "interrupted" for record in trained):
            raise KeyboardInterrupt
        _run_all(settings, [(score_seed, (folder, seed)) for seed in settings.seeds], workers, advance)
    finally:
        bar.close()
    files = [run_folder(folder, label, seed) / "scores.jsonl" for seed in settings.seeds for label in settings.samplers]
    replace_file(folder / "results.jsonl", b"".join(file.read_bytes() for file in files))
    from dfkd.report import write_report

    write_report(folder)


def write_manifest(settings: Settings, folder: Path) -> None:
    """What it took to make the numbers: versions, hardware, hashes, sources."""
    data = settings.data
    manifest: dict[str, Any] = {
        **runtime.describe(),
        "seeds": list(settings.seeds),
        "control_seeds": list(settings.controlled),
        "device": settings.device,
        "teacher": {"digest": Probe(settings.teacher, settings.spec).digest, "accuracy": None},
        "control": settings.control_teacher is not None,
        "samplers": {
            label: {
                "kind": sampler.name,
                "data_free": is_data_free(sampler),
                "sources": sources(sampler),
                "settings": repr(sampler),
            }
            for label, sampler in settings.samplers.items()
        },
    }
    if data is not None:
        manifest["data"] = {
            "name": data.name,
            "digest": data.digest,
            "train_rows": len(data.train),
            "test_rows": len(data.test),
        }
        manifest["resolution"] = 1.0 / len(data.test)
        teacher = Probe(settings.teacher, settings.spec, as_device(settings.device))
        logits = columns.logits(teacher, data.test.x, settings.spec)
        if data.test.y is not None:
            accuracy = (logits.argmax(dim=1) == data.test.y).double().mean().item()  # sync
            manifest["teacher"]["accuracy"] = accuracy
    replace_file(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False).encode())
