"""Images a second: what is timed is a draw that makes what it gives, of every sampler of the table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.problem import Problem
from dfkd.registry import SAMPLERS
from dfkd.types import Batch
from experiments.bench import __main__ as bench
from experiments.bench import throughput
from experiments.bench.bare import Draw
from experiments.bench.throughput import (
    BY_HAND,
    ENTRIES,
    HEAD,
    SIZES,
    Made,
    as_json,
    as_text,
    by_hand,
    measured,
    problem_of,
    require_same,
)
from samplers import Gaussian, Uniform
from samplers.state import State

READS_OTHER_DOMAINS = {"out_of_domain", "mosaic_kd"}
LONG = "diffusion, 1000 steps of ddpm"


class Ticks:
    """A clock of a quarter of a second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SIZES", {"digits": replace(SIZES["digits"], batch=12, steps=1)})
    monkeypatch.setattr(throughput, "ALL_STEPS", ())


def test_every_sampler_has_a_row() -> None:
    assert {entry.sampler for entry in ENTRIES.values()} == set(SAMPLERS) - READS_OTHER_DOMAINS


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", [name for name in ENTRIES if name != LONG])
def test_times_draws_alone(name: str, tmp_path: Path) -> None:
    problem = problem_of("digits", torch.device("cpu"))
    made = measured("digits", name, problem, 2, Ticks(), tmp_path, {})
    assert (made.why, made.draws) == ("", 1)
    assert (made.per_second, made.extremes, made.repetitions) == (48.0, (48.0, 48.0), 2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "name", [name for name, entry in ENTRIES.items() if entry.steps is not None and entry.saved is None]
)
def test_every_draw_of_a_search_makes_its_images(name: str, tmp_path: Path) -> None:
    """As many images go through the teacher in each of the draws, or a bank would be counted that is there already."""
    asked = []
    for repetitions in (1, 2, 3):
        problem = problem_of("digits", torch.device("cpu"))
        measured("digits", name, problem, repetitions, Ticks(), tmp_path, {})
        asked.append(problem.teacher.counts["synthesise"]["backward"])
    assert asked[0] > 0
    assert asked[2] - asked[1] == asked[1] - asked[0] > 0


def test_memory_and_a_picture(tmp_path: Path) -> None:
    """Memory is told where the system tells it; what failed has no bar."""
    problem = problem_of("digits", torch.device("cpu"))
    rows = [measured("digits", name, problem, 1, Ticks(), tmp_path, {}) for name in ("uniform", "deep_inversion")]
    if Path("/proc/self/clear_refs").exists():
        assert all(made.memory is not None and made.memory >= 0 for made in rows)
        assert json.loads(as_json(rows[1]))["peak_bytes"] == rows[1].memory
    file = tmp_path / "chart.png"
    throughput.chart([*rows, Made("32x32", "cmi", 8, why="none")], file)
    assert file.stat().st_size > 1000


def test_what_cannot_be_measured_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: str, *_: object) -> str:
        raise ImportError(f"no module for {kind}")

    monkeypatch.setattr(throughput, "saved_generators", missing)
    made = measured("digits", LONG, problem_of("digits", torch.device("cpu")), 1, Ticks(), tmp_path, {})
    assert made.why == "no module for diffusion"
    assert json.loads(as_json(made))["why"] == "no module for diffusion"
    assert as_text(made).endswith("no module for diffusion")


def test_a_sampler_that_fails_is_a_row_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("tried to allocate\n 9 TiB")

    monkeypatch.setattr(throughput, "SIZES", {"digits": replace(SIZES["digits"], batch=4)})
    monkeypatch.setattr(Gaussian, "draw", hungry)
    broken, fine = throughput.throughput(1, Ticks(), ["gaussian", "uniform"])
    assert broken.why == "OutOfMemoryError: tried to allocate 9 TiB"
    assert (fine.why, fine.per_second) == ("", 16.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BY_HAND)
def test_a_draw_by_hand_gives_the_samplers_images(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    about = replace(SIZES[size], teacher="digits_cnn", student="digits_cnn")  # which none of these asks
    monkeypatch.setattr(throughput, "SIZES", {size: about})
    problem = problem_of(size, torch.device("cpu"))
    sampler = throughput._sampler(ENTRIES[name], about, None, {})
    require_same(name, sampler, problem, about.batch)

    def other(*given: Any) -> Draw:
        draw = by_hand(*given)
        return lambda n: (draw(n)[0].flip(0), None)

    monkeypatch.setattr(throughput, "by_hand", other)
    with pytest.raises(ValueError, match=rf"^{name}: expected the same images by hand"):
        require_same(name, sampler, problem, about.batch)


def test_a_ratio_is_of_as_many_draws_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a draw of the sampler moves by 3 ms, one by hand by 2; a block lasts 20 ms or more."""
    now, order = [0.0], list[str]()

    class Slow(Uniform):
        def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
            now[0] += 0.003
            order.append("ours")
            return super().draw(state, problem, n, learn)

    def by_hand(*_: object) -> Draw:
        def draw(n: int) -> tuple[torch.Tensor, None]:
            now[0] += 0.002
            order.append("bare")
            return torch.zeros(n, 1, 8, 8), None

        return draw

    monkeypatch.setattr(throughput, "by_hand", by_hand)
    monkeypatch.setattr(throughput, "require_same", lambda *_: None)
    monkeypatch.setattr(throughput, "_sampler", lambda *_: Slow())
    problem = problem_of("digits", torch.device("cpu"))
    made = measured("digits", "uniform", problem, 2, lambda: now[0], Path("none"), {})
    assert made.draws >= 7
    assert made.ratio == pytest.approx((1.5, 1.5, 1.5))
    assert made.per_second == pytest.approx(64 / 0.003)
    assert order[-4 * made.draws :] == ([*["ours"] * made.draws, *["bare"] * made.draws] * 2)
    line = json.loads(as_json(made))
    assert (line["ratio"], line["ratio_min"], line["ratio_max"], line["draws"]) == (1.5, 1.5, 1.5, made.draws)


def test_a_bank_is_full_before_it_is_timed() -> None:
    """Or each draw of a block would cost more than the one before."""
    for name in ("pooled", "prioritised"):
        sampler: Any = throughput._sampler(ENTRIES[name], SIZES["digits"], None, {})
        assert sampler.capacity == 4 * SIZES["digits"].batch


def test_diffusion_is_compared_at_all_of_its_steps() -> None:
    for name, steps in ((LONG, 1000), ("diffusion, 20 steps of dpm_solver", 20)):
        assert throughput._steps(ENTRIES[name], name, SIZES["digits"]) == steps
    assert throughput._steps(ENTRIES["cmi"], "cmi", SIZES["digits"]) == 20
    assert ENTRIES["cmi"].steps == 200


def test_rows_can_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["throughput", "--only", "cm"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: sampler: unknown 'cm'; the nearest is 'cmi'"
    row = Made("digits", "cmi", 64, 50.0, (40.0, 60.0), 3 * 2**20, 20, 200, 5, 2, (1.25, 1.0, 1.5))
    monkeypatch.setattr(throughput, "throughput", lambda *_: iter([row]))
    assert bench.main(["throughput", "--json"]) == 0
    about, line = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    assert {"commit", "processor", "threads"} <= set(about)
    assert (line["images_per_second"], line["images_per_second_at_published_steps"]) == (50.0, 5.0)
    assert bench.main(["throughput"]) == 0
    _, head, text = capsys.readouterr().out.splitlines()
    assert head == HEAD
    assert text.split() == ["digits", "cmi", "64", "50", "40", "to", "60", "1.250", "3.0", "20", "of", "200", "5"]
