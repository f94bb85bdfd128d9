"""The bench: the bare loops do what the engine does, and what is printed can be read by a program."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.bench import __main__ as bench
from experiments.bench import overhead
from experiments.bench.bare import ChannelsLast, bare_step
from experiments.bench.overhead import SAME_LAYOUT
from experiments.bench.rows import coverage, interval


@pytest.fixture
def digits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "NETS", {"digits_cnn": (overhead.NETS["digits_cnn"][0], 32, 12)})


@pytest.mark.usefixtures("digits_alone")
@pytest.mark.parametrize("source", overhead.SOURCES)
def test_the_bare_loop_ends_with_the_engines_student(source: str) -> None:
    ratios = overhead.measure("digits_cnn", source, 1)
    assert list(ratios) == [""]  # the engine has small images channels first, as the bare loop
    assert len(ratios[""]) == 1
    assert ratios[""][0] > 0


@pytest.mark.parametrize("source", overhead.SOURCES)
def test_so_does_the_larger_net(source: str) -> None:
    """In both layouts."""
    overhead.require_equal("wrn_16_1", source, *overhead.CHECKED["wrn_16_1"])


class Layout:
    """Whether the convolutions of a network were given images channels last."""

    def __init__(self, network: nn.Module) -> None:
        self.seen: list[bool] = []
        for part in network.modules():
            if isinstance(part, nn.Conv2d) and part.in_channels > 1:
                part.register_forward_pre_hook(self.look)

    def look(self, part: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        del part
        self.seen.append(args[0].is_contiguous(memory_format=torch.channels_last))


def test_the_second_bare_loop_has_the_engines_layout() -> None:
    pair = overhead._pair("wrn_16_1", "real", 1)
    assert list(pair.loops) == ["", SAME_LAYOUT]
    engine = Layout(pair.problem.student.module)
    loops = {layout: Layout(loop.student) for layout, loop in pair.loops.items()}
    pair.train()
    for loop in pair.loops.values():
        loop.step()
    assert engine.seen
    assert all(engine.seen)
    assert loops[SAME_LAYOUT].seen == engine.seen
    assert not any(loops[""].seen)


def test_both_bare_loops_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the first bare loop moves by one second a step, the second by four, the engine by two."""
    now = [0.0]

    def made(seconds: float, student: nn.Module) -> overhead._Loop:
        def step() -> None:
            now[0] += seconds

        return overhead._Loop(step, student)

    class Pair:
        def __init__(self) -> None:
            self.loops = {"": made(1.0, nn.Identity()), SAME_LAYOUT: made(4.0, nn.Identity())}

        def train(self, monitor: Callable[[], Any], log_points: int) -> None:
            for _ in range(log_points):
                now[0] += 2.0 * overhead.NETS["wrn_16_1"][2]
                monitor()

    monkeypatch.setattr(overhead, "require_equal", lambda *_: None)
    monkeypatch.setattr(overhead, "_pair", lambda *_: Pair())
    assert overhead.measure("wrn_16_1", "real", 3, lambda: now[0]) == {"": [2.0] * 3, SAME_LAYOUT: [0.5] * 3}


def test_a_second_loop_that_differs_gives_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(ChannelsLast):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3.0 * super().forward(x)

    monkeypatch.setattr(overhead, "ChannelsLast", Scaled)
    with pytest.raises(ValueError, match=r"^wrn_16_1, real_same_layout: expected equal students"):
        overhead.require_equal("wrn_16_1", "real", 2, 2)


@pytest.mark.usefixtures("digits_alone")
@pytest.mark.parametrize("source", overhead.SOURCES)
def test_another_loop_gives_no_ratio(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def hotter(*given: Any) -> Any:
        changed: list[Any] = [*given[:-1], 3.0]
        return bare_step(*changed)

    monkeypatch.setattr(overhead, "bare_step", hotter)
    with pytest.raises(ValueError, match="expected equal students"):
        overhead.measure("digits_cnn", source, 1)


def test_the_interval_is_that_of_order_statistics() -> None:
    """For 21 values the 6th and the 16th: P(fewer than 6 heads of 21) = 0.0133 <= 0.025 < P(fewer than 7)."""
    low, median, high = interval([float(v) for v in range(21, 0, -1)])
    assert (low, median, high) == (6.0, 11.0, 16.0)
    tails = [sum(math.comb(21, k) for k in range(edge)) / 2**21 for edge in (6, 7)]
    assert tails[0] <= 0.025 < tails[1]
    assert interval([1.0, 3.0, 2.0]) == (1.0, 2.0, 3.0)
    assert coverage(21) == pytest.approx(1.0 - 2.0 * tails[0])


def test_an_interval_says_how_often_it_holds_the_median() -> None:
    """By counting, for each n, on which side of the median as many values fall; 95 % is not had of fewer than six."""
    for n, covers in ((1, 0.0), (2, 0.5), (3, 0.75), (5, 0.9375), (6, 0.96875), (9, 0.9609375)):
        assert coverage(n) == pytest.approx(covers)
        low, _, high = interval([float(v) for v in range(n)])
        sides = [[(word >> place) & 1 for place in range(n)] for word in range(2**n)]
        held = sum(low < sum(side) <= high for side in sides)  # so many values lie below the true median
        assert held / 2**n == pytest.approx(covers)
    assert all(coverage(n) >= 0.95 for n in range(6, 60))


def test_prints_one_line_of_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(net: str, *_: object) -> dict[str, list[float]]:
        return {"": [1.0, 1.02, 1.04]} | ({SAME_LAYOUT: [1.1, 1.2, 1.3]} if net == "wrn_16_1" else {})

    monkeypatch.setattr(overhead, "measure", measure)
    assert bench.main(["overhead", "--json", "--blocks", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    about = found.pop("about")
    assert {"commit", "clock", "processor", "versions", "threads"} <= set(about)
    assert (about["blocks"], about["covers"]) == (3, 0.75)
    assert about["process_peak_bytes"] is None or about["process_peak_bytes"] > 10**7
    sources = ("real", "pooled", "generative")
    names = [f"{net}_{source}" for net in ("wrn_16_1", "digits_cnn") for source in sources]
    names += [f"wrn_16_1_{source}_same_layout" for source in sources]
    assert set(found) == {f"{name}{end}" for name in names for end in ("", "_low", "_high")}
    assert (found["digits_cnn_real_low"], found["digits_cnn_real"], found["digits_cnn_real_high"]) == (1.0, 1.02, 1.04)
    assert found["wrn_16_1_real_same_layout"] == 1.2
    assert bench.main(["overhead", "--blocks", "3"]) == 0
    on, head, *rows = capsys.readouterr().out.splitlines()
    assert json.loads(on)["commit"] == about["commit"]
    assert head.endswith("interval that covers 75.0 %")
    assert ["digits_cnn_pooled", "1.020", "1.000", "to", "1.040"] in [row.split() for row in rows]
    assert ["wrn_16_1_real_same_layout", "1.200", "1.100", "to", "1.300"] in [row.split() for row in rows]


@pytest.mark.usefixtures("digits_alone")
def test_a_signal_ends_it_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a run of the engine, which listens itself, and outside of one; what listened before does afterwards."""
    before, pair = signal.getsignal(signal.SIGTERM), overhead._pair

    def told(*given: Any) -> Any:
        made = pair(*given)
        step, train = made.loops[""].step, made.train

        def stop() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            step()

        def wrapped(**options: Any) -> None:
            object.__setattr__(made.loops[""], "step", stop if options else step)
            train(**options)

        object.__setattr__(made, "train", wrapped)
        return made

    monkeypatch.setattr(overhead, "_pair", told)
    assert bench.main(["overhead", "--blocks", "1"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
    monkeypatch.setattr(overhead, "overhead", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert bench.main(["overhead", "--blocks", "1"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("overhead --device cuda", "device: expected none with overhead, found cuda"),
        ("overhead --chart x.png", "chart: expected none with overhead, found x.png"),
        ("overhead --only cmi nayer", "only: expected none with overhead, found cmi nayer"),
        ("overhead --minutes 25", "minutes: expected none with overhead, found 25.0"),
        ("synthesis --device cpu", "device: expected none with synthesis, found cpu"),
        ("synthesis --chart x.png", "chart: expected none with synthesis, found x.png"),
        ("throughput --most 8", "most: expected none with throughput, found 8"),
        ("throughput --small", "small: expected none with throughput, found True"),
        ("gpu --blocks 3", "blocks: expected none with gpu, found 3"),
        ("scaling --only bank --steps 9", "steps: expected none with --only, which leaves memory out, found 9"),
        ("scaling --most 9 --only classes", "most: expected at least 10, the smallest of classes, found 9"),
        ("scaling --device foo", "device: expected cpu, cuda or cuda:N, found 'foo'"),
        ("throughput --device foo", "device: expected cpu, cuda or cuda:N, found 'foo'"),
        ("throughput --chart x.gif", "chart: expected a name that ends in .png or .svg, found 'x.gif'"),
        ("scaling --chart none/x.png", "chart: expected a file in a folder that is there, found 'none/x.png'"),
        ("throughput --only cm", "sampler: unknown 'cm'; the nearest is 'cmi'"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench.main(words.split()) == 2
    assert capsys.readouterr() == ("", f"error: {said}\n")


@pytest.mark.parametrize("name", ["throughput", "scaling"])
def test_a_machine_without_a_gpu_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert bench.main([name, "--device", "cuda"]) == 2
    assert capsys.readouterr() == ("", "error: device: found 'cuda', but this machine has 0 such devices\n")


def test_names_the_nearest_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["overhed"]) == 2
    assert capsys.readouterr().err == "error: bench: unknown 'overhed'; the nearest is 'overhead'\n"
    assert bench.main(["overhead", "--blocks", "0"]) == 2
