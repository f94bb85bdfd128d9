"""Several students at a time: stacked they learn what they learn alone; processes begin together and are counted."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.models import build
from dfkd.types import InputSpec
from experiments.bench import several
from experiments.bench.checks import apart, state_of
from experiments.bench.lent import Lent
from experiments.bench.several import Together
from experiments.bench.steps import Switches, stepper, take

SPEC = InputSpec((3, 8, 8), 10)


@pytest.mark.usefixtures("doubles")
def test_students_together_are_each_as_alone() -> None:
    """Against the plain step, one student at a time: losses, parameters and BatchNorm's statistics."""
    teacher, students = build("wrn-10-1", SPEC).eval(), [build("wrn-10-1", SPEC) for _ in range(3)]
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = [stepper(teacher, student, x, Switches()) for student in students]
    losses = torch.tensor([take(step, 4) for step in alone]).sum(dim=0)
    for stacked in (False, True):
        together = Together(teacher, students, x, stacked)
        torch.testing.assert_close(torch.tensor(take(together, 4)), losses, rtol=1e-9, atol=0.0)
        for student, step, state in zip(students, alone, together.states(), strict=True):
            assert apart(state_of(student), state_of(step.student), state) < 1e-9
    assert apart(state_of(students[0]), state_of(alone[0].student), state_of(alone[1].student)) > 0.1


def test_rows_of_stacked_students(tmp_path: Path) -> None:
    rows = list(several.stacked(Lent(torch.device("cpu"), tmp_path, small=True), 60.0))
    assert [row["result"] for row in rows] == ["left out", "left out", "close", "close"]
    assert rows[0]["why"] == rows[1]["why"] == "needs a GPU"
    assert rows[3]["seconds_each"] == rows[3]["seconds"] / several.RUNS


def test_kinds_take_turns_and_are_paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower from block to block slows all kinds alike: the ratios say so, the medians do not."""
    clock, asked = iter([9.0, 9.0, 1.0, 0.5, 2.0, 1.0, 40.0, 20.0]), list[Any]()

    def seconds_of(step: Any, *_: Any) -> float:
        asked.append(step)
        return next(clock)

    monkeypatch.setattr(several, "seconds_of", seconds_of)
    rows = list(several.stacked(Lent(torch.device("cpu"), tmp_path, small=True), 60.0))[2:]
    assert asked[0] != asked[1]
    assert asked == asked[:2] * 4
    assert [row["seconds"] for row in rows] == [2.0, 1.0]
    assert [[row[name] for name in ("speedup", "speedup_min", "speedup_max")] for row in rows] == [[1.0] * 3, [2.0] * 3]


def test_steps_are_shared_out_among_processes_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = Lent(torch.device("cpu"), tmp_path, small=True)
    monkeypatch.setattr(several, "_processes", lambda *_: nullcontext([]))
    monkeypatch.setattr(several, "_turns", lambda *_: {1: [2.0, 2.0, 8.0], 2: [2.0, 4.0, 4.0], 4: [16.0, 8.0, 8.0]})
    rows = list(several.shared(lent, 60.0))
    assert [row["steps_per_second"] for row in rows] == [2.0, 2.0, 2.0]  # four steps each
    assert [row["to_one_process"] for row in rows] == [1.0, 2.0, 1.0]
    assert (rows[2]["least"], rows[2]["most"], rows[2]["repeats"]) == (0.5, 4.0, 3)
    monkeypatch.setattr(several, "_turns", lambda *_: {1: [], 2: [], 4: []})
    assert [row["result"] for row in several.shared(lent, 60.0)] == ["no time"] * 3


def test_processes_wait_take_turns_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "RUNS", 2)
    began = list[Any]()
    with several._processes(Lent(torch.device("cpu"), tmp_path, small=True), 2) as begun:
        began += begun
        found = several._turns(begun, math.inf)
        assert [process.poll() for process in begun] == [None, None]
    assert {count: len(own) for count, own in found.items()} == {1: several.REPEATS, 2: several.REPEATS}
    assert all(0.0 < took < 60.0 for own in found.values() for took in own)
    assert all(process.poll() is not None for process in began)


def test_a_process_that_ends_too_soon_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "RUNS", 1)
    (row,) = several.shared(Lent(torch.device("cuda:99"), tmp_path, small=True), 1.0)
    assert row["result"] == "failed"
    assert row["why"].startswith("RuntimeError: process: expected ready, found that it ended")
