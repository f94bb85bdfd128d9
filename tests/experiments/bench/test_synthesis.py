"""The bench of steps: what is timed is what is said, the goals are those of the times, and the lines can be read."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dfkd.problem import Problem
from dfkd.types import InputSpec
from experiments.bench import __main__ as bench
from experiments.bench import synthesis
from experiments.bench.bare import bare_synthesis
from experiments.bench.goals import BARE, EXISTING, goal
from experiments.bench.rows import HEAD, Row, as_json, as_text
from experiments.bench.usage import resident


class Ticks:
    """A clock of one second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "NETS", ("digits_cnn", "digits_cnn"))
    monkeypatch.setattr(synthesis, "SPEC", InputSpec((1, 8, 8), 10))
    monkeypatch.setattr(synthesis, "BATCH", 10)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", synthesis.PARTS)
def test_times_as_many_steps_of_every_recipe_as_it_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = synthesis.PARTS[name]
    monkeypatch.setitem(synthesis.PARTS, name, synthesis.Part(part.make, part.asks, min(part.remembered, 7)))
    # one second between two looks at the clock: nothing else is between a step's begin and its end
    assert synthesis.student_steps(name, 2, Ticks()) == [(1.0, 1.0)] * 2
    assert synthesis.synthesis_steps(name, 2, Ticks())[-1][1:] == (1.0, 1.0)
    assert len(synthesis.synthesis_steps(name, 3, Ticks())) == 3


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", synthesis.PARTS)
def test_a_step_asks_the_teacher_as_often_as_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthesis step goes forward and backward once or twice; a student step makes nothing."""
    part, make = synthesis.PARTS[name], synthesis._problem
    problems: list[Problem] = []

    def kept(precision: str = "float32") -> Problem:
        problems.append(make(precision))
        return problems[-1]

    monkeypatch.setattr(synthesis, "_problem", kept)
    spent = []
    for steps in (2, 5):
        problem = synthesis._problem()
        sampler = part.make(steps, 1)
        state = sampler.init(problem, 0)
        for _ in range(steps if name == "dfq" else 1):
            sampler.draw(state, problem, 1)
        spent.append(problem.teacher.counts["synthesise"])
    images = 10 * part.asks
    assert [(spent[1][way] - spent[0][way]) / 3 for way in ("forward", "backward")] == [images, images]
    synthesis.student_steps(name, 1)
    once = dict(problems[-1].teacher.counts["synthesise"])
    synthesis.student_steps(name, 6)
    assert problems[-1].teacher.counts["synthesise"] == once


@pytest.mark.usefixtures("small")
def test_a_rounded_student_is_timed_beside_a_bare_step_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = [], synthesis._problem

    def kept(precision: str = "float32") -> Problem:
        made.append(make(precision))
        return made[-1]

    monkeypatch.setattr(synthesis, "_problem", kept)
    rows = list(synthesis.synthesis(1, Ticks(), ["fast_dfkd"], "bfloat16"))
    assert [row.step for row in rows] == ["student"]  # synthesis is never rounded
    assert [(problem.teacher.precision, problem.student.precision) for problem in made] == [("bfloat16", "bfloat16")]
    assert [row.step for row in synthesis.synthesis(1, Ticks(), ["fast_dfkd"])] == ["student", "synthesis"]
    assert {problem.student.precision for problem in made[1:]} == {"float32"}


@pytest.mark.usefixtures("small")
def test_a_compiled_student_is_timed_beside_a_bare_step_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[object]()

    def compile(function: Callable[..., object], **_: object) -> Callable[..., object]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    (row,) = synthesis.synthesis(1, Ticks(), ["fast_dfkd"], compile=True)
    assert row.step == "student"
    assert len(compiled) == 3  # both models and the objective
    assert [row.step for row in synthesis.synthesis(1, Ticks(), ["fast_dfkd"])] == ["student", "synthesis"]
    assert len(compiled) == 3


def test_the_bare_step_moves_its_images_down_its_loss_and_nothing_else() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(144, 10),
        ).eval()
        with torch.no_grad():  # stored: the statistics of darker images than it begins with
            hidden = teacher[0](0.2 * torch.rand(64, 1, 8, 8))
            teacher[1].running_var, teacher[1].running_mean = torch.var_mean(hidden, dim=(0, 2, 3), correction=0)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    losses, gaps = [], []

    def watch(_: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        hidden, out = teacher[0](args[0]).detach(), out.detach()
        mean, var = hidden.mean(dim=(0, 2, 3)), hidden.var(dim=(0, 2, 3), correction=0)
        gaps.append(float((mean - teacher[1].running_mean).norm() + (var - teacher[1].running_var).norm()))
        losses.append(float(torch.nn.functional.cross_entropy(out, torch.arange(6) % 10)))

    handle = teacher.register_forward_hook(watch)
    step = bare_synthesis(teacher, (6, 1, 8, 8))
    for _ in range(30):
        step()
    handle.remove()
    assert losses[-1] < 0.1 * losses[0]
    assert gaps[-1] < 0.8 * gaps[0]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher[1]._forward_pre_hooks


def test_goals_are_shares_of_existing_times_over_the_bare_loops() -> None:
    """By hand: 0.5 * 0.81 / 0.40 and 0.5 * 0.94 / 0.40; 0.5 * 4.6 / 1.66; 0.7 * 1.66 / 1.66."""
    wanted = {("dfq", "student"): (1.0125, 1.175), ("cmi", "synthesis"): (1.3855, 1.3855)}
    wanted[("deep_inversion", "synthesis")] = (0.7, 0.7)
    for (name, step), most in wanted.items():
        found = goal(name, "student" if step == "student" else "synthesis")
        assert found is not None
        assert found.most == pytest.approx(most, abs=1e-4)
    dfq = goal("dfq", "student")
    assert dfq is not None
    assert [dfq.met(ratio) for ratio in (1.01, 1.1, 1.2)] == ["yes", "partly", "no"]
    assert goal("nayer", "student") is None
    # a synthesis step is longer than a student step, whoever makes it
    assert BARE["synthesis"] > BARE["student"]
    assert all(times["synthesis"][0] > times["student"][1] for times in EXISTING.values())


ROWS = [
    Row("cmi", "synthesis", 1.2, (1.1, 1.3), (1.0, 1.4), 0.9, 0.75, 1.5, 9, goal("cmi", "synthesis"), 7 * 2**20),
    Row("nayer", "student", 0.9, (0.85, 0.95), (0.8, 1.0), 0.27, 0.3, None, 9, None),
]


def test_prints_a_line_for_each_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(*_: object) -> Iterator[Row]:
        return iter(ROWS)

    monkeypatch.setattr(synthesis, "synthesis", measured)
    assert bench.main(["synthesis", "--json"]) == 0
    about, first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {"commit", "processor", "versions", "threads"} <= set(about)
    assert (first["ratio"], first["ratio_to_frozen"], first["met"]) == (1.2, 1.5, "yes")
    assert (first["covers"], first["process_peak_bytes"]) == (0.9609, 7 * 2**20)
    assert "met" not in second
    assert bench.main(["synthesis"]) == 0
    about_line, head, *lines = capsys.readouterr().out.splitlines()
    assert json.loads(about_line)["commit"]
    assert head == HEAD
    assert lines == [as_text(row) for row in ROWS]
    assert re.search(
        r"cmi +synthesis +1\.200 +1\.100 to 1\.300 +96\.1 % +1\.000 to 1\.400 .* 2\.77 +<= 1\.39 +yes +1\.500 \(no\)$",
        lines[0],
    )
    assert json.loads(as_json(ROWS[1]))["pairs"] == 9


@pytest.mark.usefixtures("small")
def test_a_row_has_the_memory_of_its_process() -> None:
    (row, _) = synthesis.synthesis(1, Ticks(), ["fast_dfkd"])
    assert row.covers == 0.0  # one pair says nothing of how far others may lie
    if Path("/proc/self/clear_refs").exists():
        assert row.memory is not None
        assert row.memory >= resident(torch.device("cpu")) // 2


def test_names_the_nearest_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["synthesis", "--only", "fast_dfk"]) == 2
    assert capsys.readouterr().err == "error: sampler: unknown 'fast_dfk'; the nearest is 'fast_dfkd'\n"
    assert bench.main(["overhead", "--only", "cmi"]) == 2
