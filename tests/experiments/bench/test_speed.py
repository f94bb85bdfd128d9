"""What a step takes: its limit by hand, agreement after the same number of steps, and rows that fail alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.bench import speed
from experiments.bench.lent import LAUNCH_BOUND, Lent, problem_of
from experiments.bench.steps import Stepper, Switches, stepper

CPU = torch.device("cpu")


@pytest.fixture
def lent(tmp_path: Path) -> Lent:
    return Lent(CPU, tmp_path, small=True)


def test_the_work_of_a_step_is_that_of_its_layers(lent: Lent) -> None:
    """Against a count by hand: two operations for each weight that meets a pixel, once in the teacher and three times
    in the student, whose first layer has no slope to hand on."""
    problem = problem_of(lent, CPU, "resnet56", "resnet20")

    def count(net: nn.Module) -> list[tuple[int, int]]:
        """Operations and values of each layer, of one image."""
        found: list[tuple[int, int]] = []

        def note(part: nn.Module, _: tuple[Any, ...], out: torch.Tensor) -> None:
            weight = part.weight
            assert isinstance(weight, torch.Tensor)
            found.append((2 * out[0].numel() * weight[0].numel(), out[0].numel()))

        handles = [p.register_forward_hook(note) for p in net.modules() if isinstance(p, (nn.Conv2d, nn.Linear))]
        with torch.no_grad():
            net.eval()(torch.rand(1, *lent.spec.shape))
        for handle in handles:
            handle.remove()
        return found

    teacher, student = count(problem.teacher.module), count(problem.student.module)
    operations = sum(o for o, _ in teacher) + 3 * sum(o for o, _ in student) - student[0][0]
    moved = 2 * sum(v for _, v in teacher) + 5 * sum(v for _, v in student)
    assert speed.work_of(lent, "resnet56", "resnet20") == (operations * lent.batch, moved * lent.batch)


def test_a_time_is_set_beside_its_limit(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 6e9 operations at 2e9 a second, 1e9 numbers of 4 or 2 bytes at 1e9 bytes a second."""
    monkeypatch.setattr(speed, "work_of", lambda *_: (6_000_000_000, 1_000_000_000))
    monkeypatch.setattr(speed, "_multiplied", lambda *_: 2e9)
    monkeypatch.setattr(speed, "_copied", lambda *_: 1e9)
    assert speed.limit_of(lent, "a", "b", "float32") == 4.0
    assert speed.limit_of(lent, "a", "b", "bfloat16") == 3.0
    rows = list(speed.steps(lent, *LAUNCH_BOUND[0], ["plain", "bf16"], 60.0))
    for row, limit in zip(rows, (4.0, 3.0), strict=True):
        assert row["limit_seconds"] == limit
        assert row["to_limit"] == row["seconds"] / limit


def test_losses_are_compared_after_as_many_steps(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plain step and of itself, before anything is timed; one that is a step ahead is found."""
    monkeypatch.setattr(speed, "LOSSES", {"float32": 1e-4})
    original = stepper

    def ahead(teacher: Any, student: Any, x: Any, switches: Switches) -> Stepper:
        made = original(teacher, student, x, switches)
        if switches.channels_last:
            made()
        return made

    names = ["plain", "channels_last"]
    for found, result in ((original, "close"), (ahead, "apart")):
        monkeypatch.setattr(speed, "stepper", found)
        rows = list(speed.steps(lent, *LAUNCH_BOUND[0], names, 60.0))
        assert [row["result"] for row in rows] == ["close", result]
        assert {row["steps"] for row in rows} == {speed.COMPARED}
        assert rows[0]["loss"] == rows[0]["plain_loss"] == rows[1]["plain_loss"]


def test_a_pair_that_fails_is_a_row_and_the_next_is_timed(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    original = speed._engine

    def one(lent: Lent, teacher: str, student: str, precision: str, compile: bool) -> Any:
        if student == LAUNCH_BOUND[0][1] or compile:
            raise RuntimeError("CUDA error: out of memory")
        return original(lent, teacher, student, precision, compile)

    monkeypatch.setattr(speed, "_engine", one)
    rows = list(speed.engine(lent, 60.0))
    assert [row["result"] for row in rows] == ["failed", "failed", "ok", "failed"] * 2
    assert rows[0]["why"] == "RuntimeError: CUDA error: out of memory"
    assert rows[2]["seconds"] > 0
    assert rows[2]["to_limit"] > 0
    assert [row["result"] for row in speed.engine(lent, 0.0)] == ["no time"] * 8
