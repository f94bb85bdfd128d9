"""Cost against size: exponents are those of the times, sizes are what they say, memory that grows is seen to grow."""

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.problem import Problem
from dfkd.types import Batch
from experiments.bench import __main__ as bench
from experiments.bench import scaling
from experiments.bench.scaling import AXES, HEAD, Clock, Point, as_json, as_text, chart, memory, slope
from samplers import Uniform
from samplers.state import State


def test_exponents_are_slopes_of_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of n^2 and of a constant, by a clock that what is timed moves."""
    now = [0.0]

    def costs(axis: str, size: int, device: torch.device) -> object:
        del axis, device

        def square(repetitions: int, clock: Clock) -> list[float]:
            began = clock()
            now[0] += size**2
            return [clock() - began] * repetitions

        def flat(repetitions: int, clock: Clock) -> list[float]:
            del clock
            return [7.0] * repetitions

        return iter([("square", square), ("flat", flat)])

    monkeypatch.setattr(scaling, "_costs", costs)
    points = list(scaling.scaling(3, lambda: now[0], ["batch"], most=256))
    assert [point.size for point in points] == [16, 16, 64, 64, 256, 256]
    assert points[0].exponent is None
    assert [p.exponent for p in points if p.kind == "square"][1:] == pytest.approx([2.0, 2.0])
    assert {point.repetitions for point in points} == {3}
    assert [p.exponent for p in points if p.kind == "flat"][1:] == pytest.approx([0.0, 0.0])


def test_axes_go_as_far_as_is_said() -> None:
    assert (AXES["side"][0], AXES["side"][-1]) == (8, 224)
    assert (AXES["classes"][0], AXES["classes"][-1]) == (10, 1000)
    assert (AXES["bank"][0], AXES["bank"][-1]) == (1_000, 1_000_000)
    assert {"batch", "samplers", "seeds"} < set(AXES)
    assert AXES["workers"] == (1, 2)


@pytest.mark.parametrize("axis", AXES)
def test_the_smallest_of_every_axis_runs(axis: str) -> None:
    points = list(scaling.scaling(1, only=[axis], most=AXES[axis][0]))
    assert {point.size for point in points} == {AXES[axis][0]}
    assert all(point.seconds > 0 for point in points)
    if Path("/proc/self/clear_refs").exists():
        assert all((point.memory is None) == (point.kind == "comparison") for point in points)


@pytest.mark.parametrize(("axis", "students"), [("samplers", 2), ("seeds", 2), ("workers", 4)])
def test_comparisons_are_the_librarys(axis: str, students: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many samplers and seeds, in so many processes, each in a folder of its own; the first is not counted."""
    asked: list[tuple[int, int, int]] = []
    folders = set()

    def compare(teacher: object, student: object, samplers: dict[str, object], **options: Any) -> None:
        del teacher, student
        asked.append((len(samplers), len(options["seeds"]), options["workers"]))
        folders.add(options["out"])
        assert Path(options["out"]).is_dir()

    monkeypatch.setattr(scaling, "compare", compare)
    points = list(scaling.scaling(5, only=[axis], most=2))
    assert [point.repetitions for point in points] == [3, 3]
    assert [samplers * seeds for samplers, seeds, _ in asked[-4:]] == [students] * 4
    assert [workers for *_, workers in asked[::4]] == ([1, 2] if axis == "workers" else [1, 1])
    assert len(folders) == len(asked) == 8
    assert not any(Path(folder).exists() for folder in folders)


def test_making_the_networks_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that making them moves by a minute, and a draw by a second: four steps take four."""
    now, make, draw = [0.0], scaling.problem_of, Uniform.draw

    def slow(*given: Any) -> Problem:
        now[0] += 60.0
        return make(*given)

    def one(self: Uniform, *given: Any) -> Batch:
        now[0] += 1.0
        return draw(self, *given)

    monkeypatch.setattr(scaling, "problem_of", slow)
    monkeypatch.setattr(Uniform, "draw", one)
    point = next(iter(scaling.scaling(3, lambda: now[0], ["batch"], most=16)))
    assert (point.kind, point.seconds, point.repetitions) == ("step", 4.0, 3)


def test_a_bank_has_the_rows_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    places = torch.randperm

    def noted(n: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        sizes.append(n)
        return places(n, generator=generator, device=device)

    draw = scaling._bank_draw(1000, torch.device("cpu"))
    monkeypatch.setattr(torch, "randperm", noted)
    assert len(draw()) == 64
    assert sizes == [1000]


class Hoard(Uniform):
    """Keeps all that it ever drew, and more."""

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        fresh = mmap.mmap(-1, 1_000_000)  # not out of what earlier tests have given back to the allocator
        fresh.write(bytes(1_000_000))
        state.__dict__.setdefault("kept", []).append(fresh)
        return super().draw(state, problem, n, learn)


def test_memory_that_grows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = next(iter(memory(120, only=["adversarial"])))
    monkeypatch.setattr(scaling, "_bounded", lambda name: Hoard())
    grows = next(iter(memory(120, only=["adversarial"])))
    assert 0.5e6 < grows["grows"] < 2e6  # a megabyte a step
    assert flat["grows"] < 0.1e6


def test_the_slope_is_that_of_least_squares() -> None:
    assert slope([(0, 5), (10, 25), (20, 45)]) == pytest.approx(2.0)
    assert slope([(0, 5), (1, 5), (2, 5)]) == 0.0


POINTS = [Point("side", "step", 8, 0.01, 5), Point("side", "step", 16, 0.04, 5, 2.0, 3 * 2**20)]


def test_rows_can_be_read_and_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench.main(["scaling", "--only", "sides"]) == 2
    assert capsys.readouterr().err == "error: axis: unknown 'sides'; the nearest is 'side'\n"
    monkeypatch.setattr(scaling, "scaling", lambda *_: iter(POINTS))
    file = tmp_path / "chart.png"
    assert bench.main(["scaling", "--json", "--steps", "0", "--chart", str(file)]) == 0
    about, *rows = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    assert "commit" in about
    assert rows == [json.loads(as_json(point)) for point in POINTS]
    assert (rows[1]["exponent"], rows[1]["peak_bytes"]) == (2.0, 3 * 2**20)
    assert json.loads(as_json(Point("seeds", "comparison", 1, 2.0, 3)))["clock"] == "wall"
    assert as_text(POINTS[1]).split() == ["side", "step", "16", "0.040000", "3.0", "2.00"]
    assert file.read_bytes().startswith(b"\x89PNG")
    assert bench.main(["scaling", "--steps", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [HEAD, *map(as_text, POINTS)]
    chart(POINTS, tmp_path / "chart.svg")
