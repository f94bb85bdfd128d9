"""Accuracy over time: rows as they come, runs that go on where they were, and what is asked of the files."""

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfkd.engine import Training
from dfkd.models import build
from dfkd.schemes.offline import distill
from dfkd.types import InputSpec
from experiments.bench import __main__ as bench
from experiments.bench import accuracy as measured
from experiments.bench.accuracy import check
from experiments.bench.lent import Lent
from experiments.bench.protocol import Row, Unfinished

CPU = torch.device("cpu")


def file(folder: Path, side: int = 8, classes: int = 10) -> str:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, n in (("train", 64), ("test", 32)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(n) % classes
    path = folder / f"{side}-{classes}.npz"
    np.savez(path, classes=np.array([str(k) for k in range(classes)]), **arrays)
    return str(path)


@pytest.fixture
def lent(tmp_path: Path) -> Lent:
    return Lent(CPU, tmp_path / "files", file(tmp_path), small=True, run_seconds=1.0)


class _Begun(Exception):
    """Enough was seen."""


def accuracy(
    lent: Lent, rows: list[Row], recipe: str = "dfq", here: bool = False, stop: bool = False, begin: bool = False
) -> None:
    def write(row: Row) -> None:
        rows.append(row)
        if begin:
            raise _Begun
        if stop and "accuracy" in row and "ended" not in row:
            os.kill(os.getpid(), signal.SIGTERM)

    with suppress(_Begun):
        measured.accuracy(lent, recipe, "wrn-40-2", "wrn-16-1", here, 0, 60.0, write)


def test_a_run_that_is_told_to_end_has_its_rows_and_goes_on(lent: Lent) -> None:
    lent = replace(lent, run_seconds=6.0)  # of which a step takes less than all, on a busy machine too
    first, second, third = list[Row](), list[Row](), list[Row]()
    with pytest.raises(Unfinished):
        accuracy(lent, first, stop=True)
    assert [row["continued"] for row in first if "continued" in row] == [False]
    points = [row for row in first if "accuracy" in row and "ended" not in row]
    assert 1 <= len(points) <= 2  # it ends with the next step
    assert first[-1]["ended"] == "interrupted"
    accuracy(lent, second)
    assert second[0]["continued"]
    assert second[1]["queued_seconds"] > points[-1]["queued_seconds"]
    assert (second[-1]["ended"], second[-1]["steps"] > first[-1]["steps"]) == ("ok", True)
    assert len(second[-1]["curve"]) == len(points) + len(second) - 2  # with those before it was told to end
    come = [row["queued_seconds"] for row in [*points, *second] if "queued_seconds" in row]
    assert all(done >= queued for queued, (done, _) in zip(come[:-1], second[-1]["curve"], strict=False))
    accuracy(lent, third, begin=True)
    assert not third[0]["continued"]  # what is through is not gone on with


def test_rows_come_while_it_runs(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that breaks in the middle leaves those before it."""
    lent = replace(lent, run_seconds=60.0)  # it breaks long before
    rows, original = list[Row](), measured._right

    def right(*given: Any) -> float:
        if len(rows) == 3:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return original(*given)

    monkeypatch.setattr(measured, "_right", right)
    with pytest.raises(RuntimeError, match="unspecified"):
        accuracy(lent, rows)
    assert ["accuracy" in row for row in rows] == [False, True, True]


def test_rehearses_with_a_teacher_trained_on_the_spot(lent: Lent) -> None:
    rows = list[Row]()
    with pytest.raises(ValueError, match=r"teacher: expected .*safetensors, which an earlier part writes"):
        accuracy(lent, rows, here=True)
    measured.teacher(lent, "wrn-40-2", 60.0, rows.append)
    assert rows[-1]["ended"] == "ok"
    for recipe in ("composite", "dfq"):
        rows.clear()
        accuracy(lent, rows, recipe, here=True)
        assert rows[0]["rows"] == 32
        assert 0.0 <= rows[0]["teacher_accuracy"] <= 1.0
        assert rows[-1]["ended"] == "ok"
        assert 0.0 <= rows[-1]["accuracy"] <= 1.0
        assert rows[-1]["seconds"] < 10.0


def test_compiles_on_a_gpu_ahead_and_says_where_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, rows = list[tuple[bool, int | None]](), list[Row]()

    def once(compile: bool, steps: int | None) -> Any:
        asked.append((compile, steps))
        if compile:
            raise ValueError("compile: torch.compile cannot compile the teacher here")
        return "trained"

    compiled: Any = measured._compiled  # what is trained is of no matter here
    assert compiled(Lent(CPU, tmp_path), once, {}, rows.append) == ("trained", {"compiled": False})
    assert (asked, rows) == ([(False, None)], [])
    there = Lent(torch.device("cuda"), tmp_path)
    assert compiled(there, once, {"recipe": "x"}, rows.append) == ("trained", {"compiled": False})
    assert asked[1:] == [(True, measured.AHEAD), (False, None)]
    assert rows[0]["result"] == "uncompiled"
    assert rows[0]["why"].startswith("ValueError: compile: torch.compile cannot")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    asked.clear()

    def fine(compile: bool, steps: int | None) -> Any:
        asked.append((compile, steps))
        return Training("ok", steps or 9, 1.0, 0.5, [], None, {})

    training, how = compiled(there, fine, {}, rows.append)
    assert (training.steps, how["compiled"]) == (9, True)
    assert 0.0 <= how["compile_seconds"] < 60.0
    assert asked == [(True, measured.AHEAD), (True, None)]
    with pytest.raises(Unfinished):
        compiled(there, lambda *_: Training("interrupted", 1, 1.0, 0.5, [], None, {}), {}, rows.append)


def test_steps_ahead_leave_the_run_as_it_is(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """They save nothing, write nothing, and draw batches like the run's."""
    lent = replace(lent, run_seconds=3.0)
    rows, asked, drawn = list[Row](), list[Any](), list[tuple[Any, ...]]()
    seen = list[Any]()

    def watched(*given: Any, **options: Any) -> Any:
        asked.append(options)
        result = distill(*given, **options)
        sampler = given[2]
        batch = sampler.draw(result.training.sampler_state, result.problem, options["budget"].batch)
        told = sorted(batch.info.keys() - {"generator_loss"})  # of draws at which a generator learns, not of all
        drawn.append((*batch.x.shape, batch.labelling, batch.y is None, batch.target is None, told))
        seen.append(len(list(lent.folder.glob("*.ckpt"))) if lent.folder.exists() else 0)
        return result

    def ahead(*given: Any) -> Any:
        once = given[1]
        assert once(False, measured.AHEAD).steps == measured.AHEAD
        assert rows[1:] == []
        return once(False, None), {"compiled": False}

    monkeypatch.setattr(measured, "distill", watched)
    monkeypatch.setattr(measured, "_compiled", ahead)
    for recipe in ("composite", "fast_dfkd", "nayer", "dfq"):  # cmi's 200 steps take long, and its batches are nayer's
        for found in (rows, asked, drawn, seen):
            found.clear()
        accuracy(lent, rows, recipe)
        brief, run = asked
        assert (brief["checkpoint"], brief["monitor"], brief["budget"].seconds) == (None, None, None)
        assert (brief["objective"], brief["optimiser"]) == (run["objective"], run["optimiser"])
        assert run["budget"].seconds == lent.run_seconds
        assert drawn[0] == drawn[1]
        assert seen[0] == 0


def test_warm_ups_are_as_long_as_the_run_allows() -> None:
    """nayer's published one is 200 rounds of 40 steps: minutes, of a run of 90 seconds."""

    def before(recipe: str, seconds: float) -> int:
        """Steps of synthesis before the first draw."""
        made: Any = measured.RECIPES[recipe](False, seconds)
        if recipe == "composite":
            return int(made.base.base.warmup * made.base.base.base.steps)
        bank = getattr(made, "bank", None)
        return 1 if bank is None else int(bank.base.warmup * getattr(made, "rounds", 1) * made.steps)

    assert before("nayer", 7200.0) == (20 * 10 + 2) * 40
    assert before("nayer", 90.0) == (2 * 2 + 2) * 40
    assert {recipe: before(recipe, 90.0) for recipe in measured.RECIPES if before(recipe, 90.0) > 250} == {}
    assert all(before(recipe, 0.0) <= 5 for recipe in measured.RECIPES)


def test_a_budget_that_the_first_draw_takes_whole_is_a_result(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list[Row]()

    def spent(*_: Any, **options: Any) -> Any:
        point = {"step": 1, "seconds": 99.0, "loss": 1.0, "accuracy": 0.1}
        training = Training("ok", options.get("steps", taken[0]), 99.0, 98.0, [point], None, {})
        return type("Distilled", (), {"training": training})

    monkeypatch.setattr(measured, "distill", spent)
    taken = [1]
    accuracy(lent, rows, "nayer")
    assert rows[-1]["result"] == measured.SPENT
    assert rows[-1]["curve"] == [[99.0, 0.1]]  # the engine's own seconds
    assert rows[0]["made_by"] == repr(measured.RECIPES["nayer"](True, 1.0))
    assert "warmup_rounds=2" in rows[0]["made_by"]
    taken = [2]
    accuracy(lent, rows, "nayer")
    assert "result" not in rows[-1]


def test_test_images_alone_do_where_there_is_a_teacher(tmp_path: Path) -> None:
    spec = InputSpec((3, 32, 32), 10)
    torch.save(build("resnet56", spec).state_dict(), tmp_path / "teacher.th")
    with np.load(file(tmp_path, 32)) as whole:
        arrays = dict(whole)
    np.savez(tmp_path / "test.npz", **{name: arrays[name] for name in ("x_test", "y_test", "classes")})
    alone = Lent(CPU, tmp_path, str(tmp_path / "test.npz"), tmp_path / "teacher.th")
    left_out = "wrn-40-2 to wrn-16-1 and resnet34 to resnet18, whose teachers are trained, are left out of accuracy"
    assert check(alone) == [f"data: no rows to train on, so {left_out}"]
    assert check(replace(alone, data=file(tmp_path, 32))) == [f"data: 64 rows to train on, so {left_out}"]
    with pytest.raises(
        ValueError, match=r"^data: expected images to train teachers on in .*, or --teacher, found neith"
    ):
        check(replace(alone, teacher=None))
    rows = list[Row]()
    accuracy(replace(alone, small=True, run_seconds=1.0), rows)
    assert (rows[0]["rows"], rows[-1]["ended"]) == (32, "ok")


def test_files_are_looked_at_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = InputSpec((3, 32, 32), 10)
    torch.save(build("resnet56", spec).state_dict(), tmp_path / "right.th")
    torch.save(build("resnet20", spec).state_dict(), tmp_path / "wrong.th")
    fine = Lent(CPU, tmp_path, file(tmp_path, 32), tmp_path / "right.th")
    assert [text[:24] for text in check(fine)] == ["data: 64 rows to train o"]
    monkeypatch.setattr(measured, "LEAST_TO_TRAIN", 64)
    assert check(fine) == []
    assert [text.partition(":")[0] for text in check(Lent(CPU, tmp_path))] == ["data", "teacher"]
    given = ["gpu", "--device", "cpu", "--out", str(tmp_path / "rows.jsonl")]
    for option, value, said in (
        ("--data", tmp_path / "none.npz", "data: expected an .npz file, found nothing at"),
        ("--data", tmp_path / "wrong.th", "data: expected an .npz file"),
        ("--data", file(tmp_path, 8), "data: expected images (3, 32, 32) of 10 classes, found (3, 8, 8) and 10"),
        ("--data", file(tmp_path, 32, 4), "data: expected images (3, 32, 32) of 10 classes, found (3, 32, 32) and 4"),
        ("--teacher", tmp_path / "none.th", "weights: expected a file, found nothing at"),
        ("--teacher", tmp_path / "wrong.th", "weights: "),
    ):
        assert bench.main([*given, option, str(value)]) == 2
        err = capsys.readouterr().err.splitlines()
        assert len([text for text in err if text.startswith("error: ")]) == 1
        assert err[-1].startswith(f"error: {said}")
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_lines_that_make_the_file_make_one_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the README, on a set that is like torchvision's."""
    readme = Path(measured.__file__).with_name("README.md").read_text(encoding="utf-8")
    (code,) = (block for block in readme.split("```python\n")[1:] if "CIFAR10" in block)
    lines = code.partition("```")[0]
    assert len(lines.strip().splitlines()) <= 6

    class Fake:
        classes = tuple(str(k) for k in range(10))

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (root, download) == ("data", True)
            n = 50 if train else 20
            self.data, self.targets = np.zeros((n, 32, 32, 3), np.uint8), [k % 10 for k in range(n)]

    datasets = type("datasets", (), {"CIFAR10": Fake})
    monkeypatch.setitem(__import__("sys").modules, "torchvision", type("torchvision", (), {"datasets": datasets}))
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", datasets)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    found = measured._read(Lent(CPU, tmp_path, "cifar10.npz"))
    assert (len(found.x_train), len(found.x_test), measured._spec(found).shape) == (50, 20, (3, 32, 32))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, as it traces
def test_what_a_run_compiles_is_compiled_ahead(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another student, other batches of the same kind: torch makes no graph anew. Nothing is compiled to code here."""
    from torch._dynamo.utils import counters

    original, made = torch.compile, list[int]()
    monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, backend="eager", dynamic=options["dynamic"]))

    def ahead(*given: Any) -> Any:
        once, before = given[1], counters["stats"]["unique_graphs"]
        once(True, measured.AHEAD)
        made.append(counters["stats"]["unique_graphs"] - before)
        training = once(True, None)
        made.append(counters["stats"]["unique_graphs"] - before)
        return training, {"compiled": True}

    monkeypatch.setattr(measured, "_compiled", ahead)
    accuracy(lent, [], "composite")
    assert made == [3, 3]  # teacher, student and objective
