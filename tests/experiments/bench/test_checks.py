"""The checks find numbers, compiled models and graphs that are wrong; and one that fails is a row."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd import problem as problems
from dfkd.losses import combine
from dfkd.registry import LOSSES
from dfkd.rng import Stream
from experiments.bench import checks, steps
from experiments.bench.lent import Lent, problem_of
from experiments.bench.steps import Switches

from ...stand_in import DEVICE, stand_in

CPU = torch.device("cpu")


@pytest.fixture
def lent(tmp_path: Path) -> Lent:
    return Lent(CPU, tmp_path, small=True)


def other_second(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Any]) -> None:
    """A device that computes badly: the student of every second problem has other weights."""
    original, asked = problem_of, list[None]()

    def other(*given: Any) -> Any:
        problem = original(*given)
        asked.append(None)
        if len(asked) % 2 == 0:
            with torch.no_grad():
                change(next(problem.student.module.parameters()))
        return problem

    monkeypatch.setattr(checks, "problem_of", other)


def test_says_where_numbers_are_not_the_cpus(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LOSSES", {name: LOSSES[name] for name in ("kl", "attention")})
    assert [row["result"] for row in checks.losses(lent, 1.0)] == ["close", "close"]
    other_second(monkeypatch, lambda weight: weight.mul_(1.1))
    assert [row["result"] for row in checks.losses(lent, 1.0)] == ["apart", "apart"]


def test_losses_that_are_not_finite_on_the_device_are_rows(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends there before it has a point; the next loss is asked all the same."""
    monkeypatch.setattr(checks, "LOSSES", {name: LOSSES[name] for name in ("kl", "attention")})
    other_second(monkeypatch, lambda weight: weight.fill_(float("nan")))
    rows = list(checks.losses(lent, 1.0))
    assert [row["result"] for row in rows] == ["diverged", "diverged"]
    assert [row["there"] for row in rows] == [None, None]
    assert all(isinstance(row["cpu"], float) and row["ended"] == ["ok", "diverged"] for row in rows)


def test_a_row_that_fails_is_not_the_last(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LOSSES", {name: LOSSES[name] for name in ("kl", "attention")})
    original = combine

    def fails(terms: Any) -> Any:
        if "Attention" in repr(terms):
            raise IndexError("no such thing")
        return original(terms)

    monkeypatch.setattr(checks, "combine", fails)
    rows = list(checks.losses(lent, 1.0))
    assert [row["result"] for row in rows] == ["failed", "close"]
    assert rows[0]["why"] == "IndexError: no such thing"


def test_random_numbers_of_another_device_make_no_loss_look_wrong(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss, where what is drawn for the second problem is other than for the first, as on a GPU."""
    original, advance, asked = problem_of, Stream.advance, list[None]()

    def counted(*given: Any) -> Any:
        asked.append(None)
        return original(*given)

    def other(self: Stream) -> torch.Generator:
        rng = advance(self)
        return rng if len(asked) % 2 else rng.manual_seed(rng.initial_seed() + 1)

    monkeypatch.setattr(checks, "problem_of", counted)
    monkeypatch.setattr(Stream, "advance", other)
    results = {row["loss"]: (row["result"], row.get("why", "")) for row in checks.losses(lent, 1.0)}
    assert set(results) == set(LOSSES) - {"peers"}
    assert results["sampled_label"] == ("left out", checks.DRAWN["sampled_label"])
    assert {name for name, (result, _) in results.items() if result not in ("close", "left out")} == set()
    monkeypatch.setattr(checks, "LOSSES", {name: LOSSES[name] for name in ("jacobian", "sampled_label")})
    monkeypatch.setattr(checks, "OPTIONS", {})
    monkeypatch.setattr(checks, "DRAWN", {})
    assert [row["result"] for row in checks.losses(lent, 1.0)] == ["apart", "apart"]  # what they are to be spared


def fake(change: float) -> Any:
    """What stands in for dfkd's compiler: the module, its answers times `change`."""

    def compiled(function: Any, device: torch.device, name: str, **how: bool) -> Any:
        del device, how
        if not isinstance(function, nn.Module) or name != "student":
            return function
        return lambda x: function(x) * change

    return compiled


def test_finds_a_compiled_student_that_learns_something_else(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, result in ((1.0, "close"), (1.05, "apart")):
        monkeypatch.setattr(problems, "compiled", fake(change))
        monkeypatch.setattr("dfkd.engine.compiled", fake(change))
        rows = {row["precision"]: row for row in checks.compiled(lent, 1.0)}
        assert rows["float32"]["result"] == result
        assert rows["tf32"]["result"] == "left out"
        assert rows["float32"]["steps"] == checks.STEPS
    monkeypatch.setattr(problems, "compiled", lambda *_, **__: 1 / 0)
    assert [row["result"] for row in checks.compiled(lent, 1.0)] == ["failed", "failed", "left out"]


def test_a_graph_that_is_not_recorded_is_a_finding(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts what it skips and where it breaks off; what was counted before does not matter."""
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters["inductor"], "cudagraph_skips", 5)
    breaks, original = counters["graph_break"], fake(1.0)
    monkeypatch.setattr("dfkd.engine.compiled", original)
    for skips, broken, result in ((0, 0, "close"), (2, 0, "not recorded"), (0, 1, "not recorded")):

        def counting(*given: Any, skips: int = skips, broken: int = broken, **how: bool) -> Any:
            del how
            counters["inductor"]["cudagraph_skips"] += skips
            breaks["a print"] += broken
            return original(*given)

        monkeypatch.setattr(problems, "compiled", counting)
        rows = [row for row in checks.compiled(lent, 1.0) if row["result"] != "left out"]
        assert [row["result"] for row in rows] == [result] * 2
        assert {(row["cudagraph_skips"], row["graph_breaks"]) for row in rows} == {(2 * skips, 2 * broken)}
    del breaks["a print"]


def test_a_precision_that_cannot_be_compiled_is_left_out(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of one layer says so before; nothing of the part fails."""

    def refuses(layer: Any) -> Any:
        del layer
        if torch.backends.cuda.matmul.fp32_precision == "tf32":
            raise RuntimeError("torch is set by a mix of\nthe legacy and new APIs")
        return lambda x: x * torch.ones((), requires_grad=True)

    monkeypatch.setattr(torch, "compile", refuses)
    told = {precision: checks._refused(CPU, precision) for precision in ("float32", "tf32", "bfloat16")}
    said = "torch.compile cannot in tf32: RuntimeError: torch is set by a mix of the legacy and new APIs"
    assert told == {"float32": "", "tf32": said, "bfloat16": ""}
    assert checks.uncompilable(CPU, "tf32") == ""
    monkeypatch.setattr(checks, "uncompilable", lambda device, precision: told["tf32"])
    assert {row["why"] for row in checks.compiled(lent, 1.0)} == {"needs a GPU", said}
    assert [(row["result"], row["why"]) for row in checks.waits(lent, True, 1.0)] == [("left out", said)] * 2


def test_an_error_after_which_the_device_is_silent_ends_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows would fail too, for no fault of its own."""
    error = RuntimeError("CUDA error: an illegal memory access")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert checks.failure(error)["result"] == "failed"
    monkeypatch.setattr(torch.cuda, "synchronize", raises("CUDA error: the same"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        checks.failure(error)
    assert checks.failure(problems.UnsupportedProblem("no BatchNorm"))["result"] == "left out"


def test_bfloat16_is_close_to_float32_but_not_the_same(lent: Lent) -> None:
    rows = {row["precision"]: row for row in checks.precisions(lent, 1.0)}
    assert rows["tf32"]["why"] == "needs a GPU"
    assert rows["bfloat16"]["result"] == "close"
    assert rows["bfloat16"]["gap"] > 1e-4


@pytest.mark.parametrize(("taken_back", "result"), [(True, "close"), (False, "apart")])
def test_finds_a_graph_that_is_other_steps(
    lent: Lent, monkeypatch: pytest.MonkeyPatch, taken_back: bool, result: str
) -> None:
    """Steps before recording count where they are not taken back: the same calls are more steps then."""

    def recorded(step: Any, tensors: Any, optimiser: Any, device: Any) -> Any:
        del device
        if taken_back:
            steps.warm(step, tensors, optimiser)
        else:
            steps.take(step, 3)
        return step

    monkeypatch.setattr(steps, "recorded", recorded)
    monkeypatch.setattr(Switches, "possible", lambda self, device: "")
    assert [row["result"] for row in checks.recorded(lent, 1.0)] == [result, result]


def test_steps_are_watched_once_they_are_warm(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait in the first steps, where a compiler works, is none; later it is a row of its own word."""
    drawn, inside = list[int](), list[int]()
    original = checks._Watched.draw

    def draw(self: Any, state: Any, *given: Any) -> Any:
        drawn.append(state.draws)
        batch = original(self, state, *given)
        if state.watching is not None and state.draws < self.last:
            inside.append(state.draws)
        return batch

    monkeypatch.setattr(checks._Watched, "draw", draw)
    monkeypatch.setattr(problems, "compiled", fake(1.0))
    monkeypatch.setattr("dfkd.engine.compiled", fake(1.0))
    assert [row["result"] for row in checks.waits(lent, True, 1.0)] == ["none", "none"]
    assert inside == [9, 10, 11] * 2
    assert len(drawn) == 24
    monkeypatch.setattr(checks, "steps_alone", raises("called a synchronizing CUDA operation"))
    assert [row["result"] for row in checks.waits(lent, True, 1.0)] == ["waits", "waits"]
    monkeypatch.setattr(checks, "steps_alone", raises("CUDA error: an illegal memory access"))
    assert [row["result"] for row in checks.waits(lent, True, 1.0)] == ["failed", "failed"]


def raises(text: str) -> Callable[..., None]:
    def function(*_: Any) -> None:
        raise RuntimeError(text)

    return function


def test_nothing_is_left_on_the_wrong_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LOSSES", {name: LOSSES[name] for name in ("kl", "attention")})
    with stand_in():
        there = Lent(DEVICE, tmp_path, small=True)
        found = [*checks.losses(there, 1.0), *checks.precisions(there, 1.0)]
    assert [(row["result"], row.get("why")) for row in found if row["result"] != "close"] == [
        ("left out", "needs a GPU")
    ]


def test_apart_is_in_parts_of_the_way() -> None:
    start = {"weight": torch.zeros(4), "running_mean": torch.zeros(2), "num_batches_tracked": torch.tensor(0.0)}
    one = {"weight": torch.ones(4), "running_mean": torch.ones(2), "num_batches_tracked": torch.tensor(5.0)}
    other = copy.deepcopy(one)
    assert checks.apart(start, one, other) == 0.0
    other["running_mean"] += 0.5
    assert checks.apart(start, one, other) == pytest.approx(0.5)
    other["weight"][0] = float("nan")
    assert not checks.apart(start, one, other) <= 1.0  # and so it is not close
