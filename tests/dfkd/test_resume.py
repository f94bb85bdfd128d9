"""Interrupted equals uninterrupted, bit for bit on the CPU: student, optimiser, sampler, counts, curve, budget."""

import importlib.util
import json
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

SCRIPT = Path(__file__).with_name("resume_run.py")


def _load() -> ModuleType:
    """The script beside this file as a module: tests are no package."""
    spec = importlib.util.spec_from_file_location("resume_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["resume_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


runs = _load()
TOYS = ["toy_generator", "toy_pool", "toy_adversary"]
NAMES = sorted(runs.RUNS)
Ended = tuple[Path, dict[str, tuple[int, int]]]


@cache
def uninterrupted(name: str) -> dict[str, Any]:
    """What the run leaves when nothing happens to it."""
    return summary(*runs.start(name, None))


def summary(training: Any, problem: Any) -> dict[str, Any]:
    return {
        "status": training.status,
        "steps": training.steps,
        "counts": training.counts,
        "curve": [{key: value for key, value in line.items() if key != "seconds"} for line in training.curve],
        "student": problem.student.module.state_dict(),
        "sampler": training.sampler_state.state_dict(),
        "probe_counts": problem.teacher.counts,
        "clock": (problem.progress, problem.horizon),
    }


def assert_identical(found: Any, expected: Any, where: str = "run") -> None:
    """Equal to the last bit, all the way down."""
    assert type(found) is type(expected), where
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_identical(found[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for position, value in enumerate(expected):
            assert_identical(found[position], value, f"{where}.{position}")
    else:
        assert found == expected, where


def saved(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["ranks"][0]
    return {key: value for key, value in state.items() if key not in ("seconds", "synthesise_seconds", "curve")}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The folder of the checkpoints that other processes left, how each process ended and in which draw."""
    folder = tmp_path_factory.mktemp("ended")
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, timeout=240)
    return folder, json.loads((folder / "exits.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_killed_in_the_middle_of_a_draw_and_continued(name: str, ended: Ended, tmp_path: Path) -> None:
    folder, exits = ended
    path, whole = folder / f"{name}.pt", tmp_path / "whole.pt"
    status, at = exits[name]
    assert status == -signal.SIGKILL
    assert saved(path)["steps"] == at - 1
    assert_identical(summary(*runs.start(name, path, student_seed=8)), uninterrupted(name))
    runs.start(name, whole, every=1e9)
    assert_identical(saved(path), saved(whole))  # optimiser, random states and all else that is kept


def test_killed_at_any_moment_from_outside(ended: Ended) -> None:
    """The file is whole whenever the process dies, in the middle of a save too."""
    path = ended[0] / "outside.pt"
    assert ended[1]["outside"][0] == -signal.SIGKILL
    assert 1 <= saved(path)["steps"] <= runs.STEPS
    assert_identical(summary(*runs.start("toy_generator", path, student_seed=8)), uninterrupted("toy_generator"))


def test_sigterm_ends_another_process_cleanly(ended: Ended) -> None:
    path = ended[0] / "asked.pt"
    assert ended[1]["asked"][0] == 0
    assert saved(path)["steps"] == 5
    assert_identical(summary(*runs.start("toy_pool", path, student_seed=8)), uninterrupted("toy_pool"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [7, runs.STEPS])
def test_sigterm_saves_and_ends_at_the_step_boundary(name: str, at: int, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    first, _ = runs.start(name, path, signal.SIGTERM, at, every=1e9)
    assert (first.status, first.steps) == ("ok" if at == runs.STEPS else "interrupted", at)
    assert saved(path)["steps"] == at
    assert_identical(summary(*runs.start(name, path, every=1e9, student_seed=8)), uninterrupted(name))


@pytest.mark.parametrize("name", TOYS)
def test_interrupted_again_and_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    for turn in range(runs.STEPS // 2):
        first, _ = runs.start(name, path, signal.SIGTERM, 2, every=1e9, student_seed=8 if turn else 2)
    assert (first.status, first.steps) == ("ok", runs.STEPS)
    assert_identical(summary(*runs.start(name, path)), uninterrupted(name))
