"""The protocol for a GPU: its order, its budget, what fails, what is continued; and that it needs little installed."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfkd.models import build
from dfkd.registry import LOSSES
from dfkd.types import InputSpec
from experiments.bench import __main__ as bench
from experiments.bench import gpu
from experiments.bench.gpu import Lent, parts
from experiments.bench.protocol import Part, Row, run
from experiments.bench.steps import SWITCHES, Switches, stepper

CPU = torch.device("cpu")


class Watch:
    """A clock that only goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def part(name: str, watch: Watch, takes: float, told: list[float], **options: Any) -> Part:
    def measure(seconds: float) -> Iterator[Row]:
        told.append(seconds)
        watch.now += takes
        yield {"value": takes}

    return Part(name, options.pop("least", 1.0), measure, **options)


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ends(path: Path) -> list[tuple[str, str]]:
    return [(row["part"], row["status"]) for row in lines(path) if "status" in row]


def silent(text: str) -> None:
    del text


def test_the_most_telling_comes_first(tmp_path: Path) -> None:
    names = [one.name for one in parts(Lent(CPU, tmp_path))]
    assert names[:3] == ["losses and an engine step, as on a CPU", "samplers on the device", "no waits in a step"]
    order = ["speed of a step, wrn-16-1", "speed of a step, resnet20", "speed of the engine", "rates of copies"]
    order += ["speed of a compiled step, wrn-16-1", "accuracy, resnet56 to resnet20", "accuracy, wrn-40-2 to wrn-16-1"]
    order += ["a teacher, resnet34", "accuracy, resnet34 to resnet18"]
    places = [next(place for place, name in enumerate(names) if name.startswith(one)) for one in order]
    assert places == sorted(places)
    assert len(set(names)) == len(names)
    assert {name.rpartition(", ")[2] for name in names if "accuracy" in name} == set(gpu.RECIPES)


def test_the_work_of_a_step_is_that_of_its_layers(tmp_path: Path) -> None:
    """Against a count by hand: two operations for each weight that meets a pixel, once in the teacher and three times
    in the student, whose first layer has no slope to hand on."""
    lent = Lent(CPU, tmp_path, small=True)
    problem = gpu.problem_of(lent, CPU, "resnet56", "resnet20")

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
    assert gpu.work_of(lent, "resnet56", "resnet20") == (operations * lent.batch, moved * lent.batch)


def test_ends_before_its_minutes_are_up_and_goes_on_another_time(tmp_path: Path) -> None:
    """Three parts of 40 s within 100 s: the third does not begin; next time it is all that is left."""
    watch, told, out = Watch(), list[float](), tmp_path / "new" / "rows.jsonl"
    plan = [part(name, watch, 40.0, told, least=30.0) for name in "abc"]
    run(plan, 100.0, out, {"device": "none"}, watch, silent)
    assert ends(out) == [("a", "ok"), ("b", "ok"), ("c", "no time")]
    assert told == [100.0, 60.0]
    assert watch.now - 100.0 <= 100.0
    run(plan, 100.0, out, {}, watch, silent)
    assert ends(out)[3:] == [("c", "ok")]
    run(plan, 100.0, out, {}, watch, silent)
    assert len(ends(out)) == 4
    assert lines(out)[0] == {"part": "about", "device": "none"}
    assert [row["value"] for row in lines(out) if "value" in row] == [40.0] * 3


def test_a_share_is_of_what_is_left(tmp_path: Path) -> None:
    watch, told = Watch(), list[float]()
    plan = [part("a", watch, 20.0, told, share=0.5), part("b", watch, 1.0, told, share=0.5, least=70.0)]
    run(plan, 100.0, tmp_path / "rows.jsonl", {}, watch, silent)
    assert told == [50.0, 70.0]  # half of 100; half of 80 would be less than it needs


def test_a_part_that_fails_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    watch, told, out, broken = Watch(), list[float](), tmp_path / "rows.jsonl", [True]

    def measure(seconds: float) -> Iterator[Row]:
        del seconds
        yield {"value": 1}
        if broken[0]:
            raise RuntimeError("out of memory\n  at all")

    plan = [Part("a", 1.0, measure), part("b", watch, 1.0, told)]
    run(plan, 100.0, out, {}, watch, silent)
    assert ends(out) == [("a", "failed"), ("b", "ok")]
    assert {"part": "a", "value": 1} in lines(out)
    assert next(row for row in lines(out) if row.get("status") == "failed")["error"] == (
        "RuntimeError: out of memory at all"
    )
    broken[0] = False
    run(plan, 100.0, out, {}, watch, silent)
    assert ends(out)[2:] == [("a", "ok")]


def test_what_does_not_look_at_its_clock_is_broken_off(tmp_path: Path) -> None:
    def endless(seconds: float) -> Iterator[Row]:
        yield {"told": seconds}
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # what torch's compiler might do with an error
                continue

    out = tmp_path / "rows.jsonl"
    began = time.monotonic()
    after = Part("after", 0.0, lambda seconds: iter([{"value": 1}]))
    run([Part("endless", 0.1, endless, 0.1, cut=True), after], 5.0, out, {}, show=silent)
    assert ends(out) == [("endless", "no time"), ("after", "ok")]
    assert time.monotonic() - began < 4.0
    run([Part("other", 0.1, endless)], 0.3, out, {}, show=silent)  # not cut, but all time is up
    assert ends(out)[2:] == [("other", "no time")]
    began = time.monotonic()
    run([Part("long", 0.1, endless, 0.02), replace(after, name="last")], 10.0, out, {}, show=silent)
    assert ends(out)[3:] == [("long", "no time"), ("last", "ok")]
    assert time.monotonic() - began < 5.0  # twice its share, not all the time there is


def test_a_torn_line_is_not_read_and_not_added_to(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text('{"part": "a", "status": "ok"}\n{"part": "b", "sta', encoding="utf-8")
    watch, told = Watch(), list[float]()
    run([part("a", watch, 1.0, told), part("b", watch, 1.0, told)], 9.0, out, {}, watch, silent)
    texts = out.read_text(encoding="utf-8").splitlines()
    assert texts[1] == '{"part": "b", "sta'
    assert [json.loads(text)["part"] for text in texts[2:]] == ["about", "b", "b"]


# -- what the parts measure --------------------------------------------------------------------------------------------


def nets() -> tuple[nn.Module, nn.Module]:
    spec = InputSpec((3, 8, 8), 10)
    return build("wrn-10-1", spec).eval(), build("wrn-10-1", spec)


@pytest.mark.parametrize("name", [n for n, s in SWITCHES.items() if not s.possible(CPU) and not s.compiled])
def test_a_step_with_switches_is_the_plain_step_up_to_rounding(name: str) -> None:
    teacher, student = nets()
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, switched = (stepper(teacher, student, x, s, 1e-2) for s in (Switches(), SWITCHES[name]))
    losses = [[float(step()) for _ in range(4)] for step in (plain, switched)]
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05 if "bf16" in name else 1e-3)


def test_a_step_leaves_both_models_as_they_were() -> None:
    teacher, student = nets()
    before = [p.clone() for model in (teacher, student) for p in model.state_dict().values()]
    stepper(teacher, student, torch.rand(4, 3, 8, 8), Switches())()
    after = [p for model in (teacher, student) for p in model.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_says_where_numbers_are_not_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LOSSES", {name: LOSSES[name] for name in ("kl", "attention")})
    lent, asked = Lent(CPU, tmp_path, small=True), list[None]()
    assert [row["close"] for row in gpu._losses(lent, 1.0)] == [True, True]
    original = gpu.problem_of

    def other(*given: Any) -> Any:
        """A device that rounds badly: every second problem has other weights."""
        problem = original(*given)
        asked.append(None)
        if len(asked) % 2 == 0:
            with torch.no_grad():
                next(problem.student.module.parameters()).mul_(1.1)
        return problem

    monkeypatch.setattr(gpu, "problem_of", other)
    assert [row["close"] for row in gpu._losses(lent, 1.0)] == [False, False]


def test_rehearses_accuracy_on_a_cpu_with_a_teacher_trained_on_the_spot(tmp_path: Path) -> None:
    from experiments.bench.overhead import _noise_file

    lent = Lent(CPU, tmp_path / "teachers", _noise_file(InputSpec((3, 8, 8), 10)), small=True)
    with pytest.raises(ValueError, match=r"teacher: expected .*wrn-10-1.safetensors, which an earlier part writes"):
        next(gpu._accuracy(lent, "dfq", "wrn-40-2", "wrn-16-1", True, 1.5))
    assert [row["ended"] for row in gpu._teacher(lent, "wrn-40-2", 1.0)] == ["ok"]
    for recipe in ("composite", "dfq"):
        first, *_, last = gpu._accuracy(lent, recipe, "wrn-40-2", "wrn-16-1", True, 1.5)
        assert first["rows"] == 64
        assert 0.0 <= first["teacher_accuracy"] <= 1.0
        assert last["ended"] == "ok"
        assert 0.0 <= last["accuracy"] <= 1.0
        assert last["seconds"] < 10.0


def test_runs_with_little_installed() -> None:
    """Torch, numpy, scipy and safetensors are there; what is blocked here is not."""
    code = (
        "import sys\n"
        "for name in ('diffusers', 'pydantic', 'typer', 'yaml', 'rich', 'jinja2', 'matplotlib', 'sklearn',\n"
        "             'transformers', 'pandas', 'faiss'):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from pathlib import Path\n"
        "from experiments.bench import __main__, gpu, rows, throughput, scaling\n"
        "found = gpu.parts(gpu.Lent(torch.device('cpu'), Path('nowhere'), small=True))\n"
        "print(len(list(found[2].measure(1.0))), rows.about('wall')['threads'] > 0)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "2 True", done.stderr


def test_needs_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["gpu", "--device", "cpu", "--minutes", "0"]) == 2
    assert capsys.readouterr().err == "error: minutes: expected a number > 0, found 0.0\n"
