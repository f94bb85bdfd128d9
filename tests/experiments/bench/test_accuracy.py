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

from dfkd.models import build
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
    assert second[1]["seconds"] > points[-1]["seconds"]
    assert (second[-1]["ended"], second[-1]["steps"] > first[-1]["steps"]) == ("ok", True)
    assert len(second[-1]["curve"]) == len(points) + len(second) - 2  # with those before it was told to end
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


def test_compiles_on_a_gpu_and_says_where_it_cannot(tmp_path: Path) -> None:
    asked, rows = list[bool](), list[Row]()

    def once(compile: bool) -> Any:
        asked.append(compile)
        if compile:
            raise ValueError("compile: torch.compile cannot compile the teacher here")
        return "trained"

    compiled: Any = measured._compiled  # what is trained is of no matter here
    assert compiled(Lent(CPU, tmp_path), once, {}, rows.append) == ("trained", False)
    assert (asked, rows) == ([False], [])
    there = Lent(torch.device("cuda"), tmp_path)
    assert compiled(there, once, {"recipe": "x"}, rows.append) == ("trained", False)
    assert asked == [False, True, False]
    assert rows[0]["result"] == "uncompiled"
    assert rows[0]["why"].startswith("ValueError: compile: torch.compile cannot")
    assert compiled(there, lambda compile: compile, {}, rows.append) == (True, True)


def test_files_are_looked_at_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = InputSpec((3, 32, 32), 10)
    torch.save(build("resnet56", spec).state_dict(), tmp_path / "right.th")
    torch.save(build("resnet20", spec).state_dict(), tmp_path / "wrong.th")
    fine = Lent(CPU, tmp_path, file(tmp_path, 32), tmp_path / "right.th")
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
    assert (len(found.train), len(found.test), found.spec.shape) == (50, 20, (3, 32, 32))
