"""Ending a run by its own signals: when they are flat, what the rate does, and that a continued run does the same."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfkd.engine import Budget, Optimiser, Stop, Training, train
from dfkd.losses import KL, combine
from dfkd.problem import Probe, Problem
from dfkd.rng import initialised
from dfkd.types import InputSpec
from samplers import Uniform

SPEC = InputSpec((1, 4, 4), 3)
STEPS = 100  # so that a log point is 5 steps


def problem() -> Problem:
    def net(seed: int) -> nn.Module:
        with initialised(seed):
            return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))

    return Problem(Probe(net(1), SPEC), Probe(net(2), SPEC, name="student"), SPEC, torch.device("cpu"))


class Listener:
    """A signal that is read off a list, a value for each log point; the last one is repeated."""

    def __init__(self, *series: Sequence[float]) -> None:
        self.series, self.calls = series, 0

    def __call__(self, state: Any) -> dict[str, float]:
        assert state is not None
        self.calls += 1
        return {f"signal_{i}": s[min(self.calls, len(s)) - 1] for i, s in enumerate(self.series)}


def run(signal: Any, stop: Stop | None, p: Problem | None = None, **options: Any) -> tuple[Training, list[float]]:
    """The run, and the learning rate of each step."""
    rates: list[float] = []
    optimiser = options.pop("optimiser", Optimiser(learning_rate=0.1))
    original = Optimiser.build

    def build(self: Optimiser, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = original(self, parameters)
        made.register_step_pre_hook(lambda opt, *_: rates.append(opt.param_groups[0]["lr"]))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimiser, "build", build)
        training = train(
            p or problem(),
            Uniform(labelling="eval"),
            combine({"kl": (1.0, KL(4.0))}),
            Budget(batch=8, steps=options.pop("steps", STEPS)),
            optimiser,
            0,
            signal=signal,
            stop=stop,
            **options,
        )
    return training, rates


FALLING = [2.0 * 0.9**i for i in range(30)]


@pytest.mark.parametrize(
    ("signal", "flat"),
    [
        ([], False),
        ([1.0, 1.0], False),
        ([1.0, 1.0, 1.0], True),
        ([1.0, 0.89, 1.0], False),
        ([1.0, 0.9, 1.0], True),
        ([1.0, 0.95, 0.91], True),  # not lower by a tenth
        ([1.0, 2.0, 0.89], False),
        ([0.5, 1.0, 0.9, 0.46], True),  # against the best, not the one before
        ([0.0, 0.0, 0.0], True),
    ],
)
def test_flat_by_hand(signal: list[float], flat: bool) -> None:
    assert Stop(patience=2, tolerance=0.1).flat(signal) is flat


def test_a_flat_signal_ends_the_run_after_a_fall_to_zero() -> None:
    """Seven falling values and then none lower: flat at log point 10, step 50; the fall is a quarter of that."""
    training, rates = run(Listener([*FALLING[:7], 2.0]), Stop(patience=3))
    assert (training.status, training.flat_at) == ("ok", 50)
    assert training.steps == len(rates) == math.ceil(50 * 1.25)
    assert rates[:51] == [pytest.approx(0.1)] * 51
    for step in range(50, len(rates)):
        assert rates[step] == pytest.approx(0.05 * (1.0 + math.cos(math.pi * (step - 50) / 12.5)))
    assert rates[-1] < 0.002


def test_all_signals_must_be_flat() -> None:
    flat = [1.0] * 30
    assert run(Listener(flat), Stop())[0].flat_at == 20
    assert run(Listener(flat, FALLING), Stop())[0].flat_at is None


def test_a_signal_that_goes_on_falling_leaves_the_budget_as_it_is() -> None:
    """The fall is the last fifth, a quarter of what came before; what is flat in the fall does not count."""
    listener = Listener([*FALLING[:15], 9.0])
    training, rates = run(listener, Stop(patience=3, tolerance=0.0))
    assert (training.steps, training.flat_at, listener.calls) == (STEPS, None, 20)
    assert rates[:80] == [pytest.approx(0.1)] * 80
    for step in range(80, STEPS):
        assert rates[step] == pytest.approx(0.05 * (1.0 + math.cos(math.pi * (step - 80) / 20)))


def test_warm_up_comes_first_and_a_constant_rate_stops_at_once() -> None:
    flat = [1.0] * 30
    warm, rates = run(Listener(flat), Stop(), optimiser=Optimiser(learning_rate=0.1, warmup=0.2))
    assert rates[10] == pytest.approx(0.1 * (0.01 + 0.99 * 0.5))
    assert warm.flat_at == 35  # the points at steps 20, 25, 30 and 35; before them the rate was rising
    constant, rates = run(Listener(flat), Stop(), optimiser=Optimiser(learning_rate=0.1, schedule="constant"))
    assert (constant.flat_at, constant.steps) == (20, 20)
    assert rates == [pytest.approx(0.1)] * 20


def test_without_stop_a_signal_only_joins_the_curve() -> None:
    plain, heard = problem(), problem()
    first, rates = run(None, None, plain)
    second, same = run(Listener(FALLING), None, heard)
    assert rates == same
    assert [line["signal_0"] for line in second.curve] == FALLING[:20]
    assert first.counts == second.counts
    ours, theirs = plain.student.module.state_dict(), heard.student.module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("at", [7, 48, 52, 60])
def test_interrupted_and_continued_stops_at_the_same_step(at: int, tmp_path: Path) -> None:
    """Before the signal is flat, right around it, and in the fall."""
    series = [*FALLING[:7], 2.0]
    whole, once = problem(), problem()
    expected, _ = run(Listener(series), Stop(), whole)

    class Killer(Listener):
        """Listens as before, and counts where the other one ended."""

        def __init__(self, calls: int) -> None:
            super().__init__(series)
            self.calls = calls

    class Enough(Exception): ...

    def draw(self: Uniform, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > at:
            raise Enough
        return original(self, *arguments, **options)

    original: Callable[..., Any] = Uniform.draw
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Uniform, "draw", draw)
        with pytest.raises(Enough):
            run(Listener(series), Stop(), once, checkpoint=tmp_path / "c", checkpoint_seconds=0.0)
    fresh = problem()
    found, _ = run(Killer(at // 5), Stop(), fresh, checkpoint=tmp_path / "c")
    assert (found.steps, found.flat_at, found.counts) == (expected.steps, expected.flat_at, expected.counts)
    without = [[{k: v for k, v in line.items() if k != "seconds"} for line in t.curve] for t in (found, expected)]
    assert without[0] == without[1]
    ours, theirs = whole.student.module.state_dict(), fresh.student.module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    again, _ = run(Killer(99), Stop(), problem(), checkpoint=tmp_path / "c")
    assert (again.steps, again.flat_at) == (expected.steps, expected.flat_at)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stop(patience=0), "patience: expected an integer >= 1, found 0"),
        (lambda: Stop(tolerance=1.0), "tolerance: expected a number >= 0 and < 1, found 1.0"),
        (lambda: Stop(decay=0.0), "decay: expected a number > 0, found 0.0"),
        (lambda: Stop(decay=1.5), "decay: expected a number > 0 and <= 1, found 1.5"),
        (lambda: run(None, Stop()), "stop: expected a signal to look at, found none"),
        (
            lambda: run(Listener([1.0]), Stop(), optimiser=Optimiser(schedule="one_cycle")),
            "stop: expected the schedule cosine or constant, whose peak can be held, found 'one_cycle'",
        ),
    ],
)
def test_names_what_does_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
