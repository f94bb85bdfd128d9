"""Several students at a time: stacked they learn what they learn alone; processes begin together and are counted."""

from pathlib import Path

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


def test_students_together_are_each_as_alone() -> None:
    """Against the plain step, one student at a time: losses, parameters and BatchNorm's statistics."""
    teacher, students = build("wrn-10-1", SPEC).eval(), [build("wrn-10-1", SPEC) for _ in range(3)]
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = [stepper(teacher, student, x, Switches()) for student in students]
    losses = torch.tensor([take(step, 4) for step in alone]).sum(dim=0)
    for stacked in (False, True):
        together = Together(teacher, students, x, stacked)
        torch.testing.assert_close(torch.tensor(take(together, 4)), losses, rtol=1e-4, atol=1e-5)
        for student, step, state in zip(students, alone, together.states(), strict=True):
            assert apart(state_of(student), state_of(step.student), state) < 1e-3
    assert apart(state_of(students[0]), state_of(alone[0].student), state_of(alone[1].student)) > 0.1


def test_rows_of_stacked_students(tmp_path: Path) -> None:
    rows = list(several.stacked(Lent(torch.device("cpu"), tmp_path, small=True), 60.0))
    assert [row["result"] for row in rows] == ["close", "close", "left out", "left out"]
    assert rows[1]["seconds_each"] == rows[1]["seconds"] / several.RUNS


def test_runs_are_shared_out_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = Lent(torch.device("cpu"), tmp_path, small=True)
    took = {1: 8.0, 2: 4.0, 4: 16.0}
    monkeypatch.setattr(several, "_side_by_side", lambda lent, processes, steps: took[processes])
    rows = list(several.shared(lent, 60.0))
    assert [row["steps_per_second"] for row in rows] == [2.0, 4.0, 1.0]  # four runs of four steps
    assert [row["to_one_process"] for row in rows] == [1.0, 2.0, 0.5]


def test_processes_begin_together_and_end(tmp_path: Path) -> None:
    lent = Lent(torch.device("cpu"), tmp_path, small=True)
    assert 0.0 < several._side_by_side(lent, 2, 2) < 60.0
    with pytest.raises(RuntimeError, match=r"^process: expected ready, found that it ended"):
        several._side_by_side(Lent(torch.device("cuda:99"), tmp_path, small=True), 1, 2)
