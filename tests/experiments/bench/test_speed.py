"""What a step takes: its limit by hand, agreement after the same number of steps, and rows that fail alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.bench import speed
from experiments.bench.lent import LAUNCH_BOUND, Lent, problem_of
from experiments.bench.steps import Stepper, Switches, stepper
from experiments.bench.usage import Peak

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
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0


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

    def one(lent: Lent, teacher: str, student: str, precision: str, compile: bool, drawn: str) -> Any:
        if student == LAUNCH_BOUND[0][1] or compile:
            raise RuntimeError("CUDA error: out of memory")
        return original(lent, teacher, student, precision, compile, drawn)

    monkeypatch.setattr(speed, "_engine", one)
    rows = list(speed.engine(lent, 60.0))
    assert [row["result"] for row in rows] == ["failed", "failed", "ok", "failed"] * 3
    assert [row["sampler"] for row in rows[2::4]] == ["uniform", "composite", "uniform"]
    assert rows[0]["why"] == "RuntimeError: CUDA error: out of memory"
    assert rows[2]["seconds"] > 0
    assert rows[2]["to_limit"] > 0
    assert [row["result"] for row in speed.engine(lent, 0.0)] == ["no time"] * 12


def test_a_block_lies_between_two_log_points_and_has_its_peak(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first point, before which all is set up, ends no block; the peak is that of the engine's steps."""
    inside, told = list[bool](), list[int]()

    @contextmanager
    def peak(device: torch.device) -> Iterator[Peak]:
        del device
        found = Peak()
        inside.append(True)
        yield found
        inside.clear()
        told.append(100 + 10 * len(told))
        found.total = told[-1]

    def seconds_of(step: Any, steps: int, device: torch.device) -> float:
        del steps, device
        assert not inside
        step()
        return 0.25

    monkeypatch.setattr(speed, "peak", peak)
    monkeypatch.setattr(speed, "resident", lambda device: 30)
    monkeypatch.setattr(speed, "seconds_of", seconds_of)
    row = speed._engine(lent, *LAUNCH_BOUND[0], "float32", False, "uniform")
    assert told == [100, 110, 120, 130]  # of three blocks and of what comes after the last
    assert row["peak_bytes"] == 120 - 30
    assert row["plain_seconds"] == 0.25
    assert row["seconds"] > 0.0


def test_a_searched_draw_has_its_search_in_its_limit(lent: Lent) -> None:
    """By hand: two steps for half of the rows, each a forward pass and one for the slope of the images, of both models;
    the slope of the first layer is in it, as the images' is asked for."""
    problem, half = problem_of(lent, CPU, *LAUNCH_BOUND[0]), lent.batch // 2

    def ask() -> None:
        x = torch.rand(half, *lent.spec.shape, requires_grad=True)
        torch.autograd.grad((problem.teacher(x).logits * problem.student(x).logits).sum(), x)

    with problem.searching():
        operations = 2 * speed._operations(ask)
    rate = speed._multiplied(CPU, True, "tf32")
    assert speed._searched(lent, *LAUNCH_BOUND[0], "bfloat16") == pytest.approx(operations / rate)


def test_a_step_of_synthesis_is_what_a_longer_draw_takes_longer(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations are those of one more step, of inverted images a teacher's two passes; what a draw has beside is no
    part of it."""
    problem = problem_of(lent, CPU, *LAUNCH_BOUND[1])
    problem.teacher.module.eval()

    def ask() -> None:
        x = torch.rand(10, *lent.spec.shape, requires_grad=True)
        torch.autograd.grad(problem.teacher(x).logits.sum(), x)

    with problem.searching():
        operations = speed._operations(ask)
    times = iter([7.0, 4.0] * 3)
    monkeypatch.setattr(speed, "seconds_of", lambda *_: next(times))
    row = speed._search_step(lent, *LAUNCH_BOUND[1], speed.SYNTHESIS["deep_inversion"])
    assert (row["operations"], row["seconds"], row["batch"]) == (operations, 3.0, 10)


def test_every_synthesis_is_timed_beside_its_limit(lent: Lent) -> None:
    rows = list(speed.synthesis(lent, math.inf))
    assert [row.get("why") for row in rows] == [None] * 6
    assert [row["sampler"] for row in rows] == [*speed.SYNTHESIS] * 2
    for row in rows:
        assert row["operations"] > 0
        assert row["to_limit"] == row["seconds"] / row["limit_seconds"]
    dfq, inverted = (next(row for row in rows if row["sampler"] == name) for name in ("dfq", "deep_inversion"))
    assert dfq["operations"] > inverted["operations"]  # as it has a generator, and asks the student
    assert [row["result"] for row in speed.synthesis(lent, 0.0)] == ["no time"] * 6
