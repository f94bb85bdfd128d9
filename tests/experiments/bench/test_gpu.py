"""The protocol for a GPU as a whole: its order, its shares, its command; and that it needs little installed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.bench import __main__ as bench
from experiments.bench import accuracy, gpu, served
from experiments.bench.gpu import Lent, parts, stamp, where
from experiments.bench.protocol import Part, here

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def full(tmp_path: Path) -> Lent:
    """With names of files, of which nothing but the number of labels is looked at before a part begins."""
    for name, rows in (("cifar10", 1000), ("other", 5000), ("few", 999)):
        np.savez(tmp_path / f"{name}.npz", y_train=np.zeros(rows, np.uint8))
    np.savez(tmp_path / "test.npz", y_test=np.zeros(9, np.uint8))
    return Lent(CPU, tmp_path, str(tmp_path / "cifar10.npz"), tmp_path / "resnet56.th")


def test_the_most_telling_comes_first(full: Lent) -> None:
    names = [one.name for one in parts(full)]
    order = ["no waits in a step", "losses and an engine step", "a recorded step, as the plain one"]
    order += ["compiled students, as eager ones", "no waits in a compiled step", "speed of the engine"]
    order += ["accuracy, resnet56 to resnet20, composite", "rates of copies", "speed of a step, resnet20"]
    order += [
        "synthesis steps",
        "four students stacked",
        "four runs in several processes",
        "speed of a compiled step, wrn-16-1",
    ]
    order += ["accuracy, resnet56 to resnet20, fast_dfkd", "a teacher, wrn-40-2", "accuracy, wrn-40-2 to wrn-16-1"]
    order += [
        "a teacher, resnet34",
        "accuracy, resnet34 to resnet18",
        "accuracy, resnet56 to resnet20, composite, seed 1",
    ]
    places = [next(place for place, name in enumerate(names) if name.startswith(one)) for one in order]
    assert places == sorted(places)
    assert len(set(names)) == len(names)
    recipes = {name.split(", ")[2] for name in names if name.startswith("accuracy")}
    assert recipes == set(gpu.RECIPES)


def test_half_of_ten_minutes_has_the_most_telling_half(full: Lent) -> None:
    """Where every part takes all that it may, accuracy has begun before half is over; and no part may take all."""
    left = 600.0
    for part in parts(full):
        assert 0.0 < part.share <= 0.6
        if part.name.startswith("accuracy"):
            break
        left -= part.limit(left)
    assert left > 300.0
    assert part.limit(left) >= full.run_seconds + 60.0
    assert all(one.limit(600.0) <= 0.2 * 600.0 for one in parts(full) if not one.name.startswith(("acc", "a teach")))


def test_what_lacks_a_file_is_left_out(full: Lent) -> None:
    def accuracies(lent: Lent) -> set[str]:
        return {part.name.split(", ")[1] for part in parts(lent) if part.name.startswith(("accuracy", "a teacher"))}

    assert accuracies(replace(full, data=None)) == set()
    assert accuracies(replace(full, teacher=None)) == accuracies(full) - {"resnet56 to resnet20"}
    for data in ("few.npz", "test.npz"):
        assert accuracies(replace(full, data=str(full.folder / data))) == {"resnet56 to resnet20"}


def test_runs_of_other_settings_are_other_parts(full: Lent) -> None:
    def settings(lent: Lent) -> list[Any]:
        return [part.settings for part in parts(lent) if part.name.startswith("accuracy")]

    for other in (replace(full, run_seconds=60.0), replace(full, data=str(full.folder / "other.npz"))):
        assert all(a != b for a, b in zip(settings(full), settings(other), strict=True))


def test_files_in_another_folder_are_the_same(full: Lent, tmp_path: Path) -> None:
    """What was begun goes on where the machine has its files elsewhere."""
    (tmp_path / "there").mkdir()
    data = (tmp_path / "cifar10.npz").rename(tmp_path / "there" / "cifar10.npz")
    moved = replace(full, data=str(data), teacher=tmp_path / "there" / "resnet56.th")
    (tmp_path / "cifar10.npz").symlink_to(data)
    assert [part.settings for part in parts(moved)] == [part.settings for part in parts(full)]
    assert accuracy._file(moved, "teacher", ".ckpt") == accuracy._file(full, "teacher", ".ckpt")


def test_another_process_has_the_same_parts(full: Lent) -> None:
    there = gpu.served(json.loads(json.dumps(full.as_plain())))
    assert [part.name for part in there] == [part.name for part in parts(full)]
    assert Lent.of(full.as_plain()) == full.resolved()


def test_marks_tell_devices_sizes_and_commits_apart() -> None:
    found = [where(CPU, small, commit) for small in (True, False) for commit in ("abc", "abc+")]
    assert len({stamp(marks) for marks in found}) == 4
    assert {marks["size"] for marks in found} == {"small", "full"}


def test_without_a_commit_the_files_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = where(CPU, False, "unknown")["commit"]
    assert found == where(CPU, True, "unknown")["commit"]
    (tmp_path / "one.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "one.py"))
    assert where(CPU, False, "unknown")["commit"] not in (found, "unknown")


@pytest.mark.parametrize(("name", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_a_process_is_on_the_device_that_is_meant(
    full: Lent, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    set_to = list[Any]()
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    gpu.served(replace(full, device=torch.device(name)).as_plain())
    assert set_to == [number]


class Quick:
    """In place of processes: a few parts are asked here, the others are said to have ended well."""

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, part: Part, seconds: float, write: Any) -> dict[str, Any]:
        if part.name in ("other precisions, as float32", "accuracy, wrn-40-2 to wrn-16-1, dfq"):
            return here(part, seconds, write)
        return {"status": "ok"}

    def close(self, patience: float = 0.0) -> None: ...


def test_the_command_ends_as_its_parts_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(served, "Served", Quick)
    out = tmp_path / "rows.jsonl"
    given = ["gpu", "--small", "--device", "cpu", "--out", str(out)]
    assert bench.main(given) == 0
    shown = capsys.readouterr()
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == ["data", "teacher"]
    assert "other precisions, as float32: ok" in shown.out
    ended = [row["part"] for row in map(json.loads, out.read_text(encoding="utf-8").splitlines()) if "status" in row]
    assert ended == [part.name for part in parts(Lent(CPU, tmp_path, small=True))]
    monkeypatch.setattr(Quick, "__call__", lambda *_: {"status": "failed", "error": "no"})
    assert bench.main(given) == 0  # all was done
    assert bench.main([*given, "--run-seconds", "1"]) == 0  # no run is a part here
    assert bench.main([*given[:-1], str(tmp_path / "other.jsonl"), "--json"]) == 1


def test_runs_with_little_installed() -> None:
    """Torch, numpy, scipy and safetensors are there; what is blocked here is not."""
    code = (
        "import sys\n"
        "for name in ('diffusers', 'pydantic', 'typer', 'yaml', 'rich', 'jinja2', 'matplotlib', 'sklearn',\n"
        "             'transformers', 'pandas', 'faiss'):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from pathlib import Path\n"
        "from experiments.bench import __main__, curve, gpu, rows, served, several, throughput\n"
        "found = gpu.parts(gpu.Lent(torch.device('cpu'), Path('nowhere'), small=True))\n"
        "lines = []\n"
        "found[0].measure(1.0, lines.append)\n"
        "print(len(lines), curve.table(lines) != '', rows.about('wall')['threads'] > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "2 True True", done.stderr


@pytest.mark.parametrize(("option", "name"), [("--minutes", "minutes"), ("--run-seconds", "run_seconds")])
def test_needs_minutes(capsys: pytest.CaptureFixture[str], option: str, name: str) -> None:
    assert bench.main(["gpu", "--device", "cpu", option, "0"]) == 2
    assert capsys.readouterr().err == f"error: {name}: expected a number > 0, found 0.0\n"
