"""The bench: the bare loops do what the engine does, and what is printed can be read by a program."""

import json
import math
from typing import Any

import pytest

from experiments.bench import __main__ as bench
from experiments.bench import overhead
from experiments.bench.bare import bare_step


@pytest.fixture
def digits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "NETS", {"digits_cnn": (overhead.NETS["digits_cnn"][0], 32, 12)})


@pytest.mark.usefixtures("digits_alone")
@pytest.mark.parametrize("source", overhead.SOURCES)
def test_the_bare_loop_ends_with_the_engines_student(source: str) -> None:
    ratios = overhead.measure("digits_cnn", source, 1)
    assert len(ratios) == 1
    assert ratios[0] > 0


@pytest.mark.parametrize("source", overhead.SOURCES)
def test_so_does_the_larger_net(source: str) -> None:
    overhead.require_equal("wrn_16_1", source, *overhead.CHECKED["wrn_16_1"])


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
    low, median, high = overhead.interval([float(v) for v in range(21, 0, -1)])
    assert (low, median, high) == (6.0, 11.0, 16.0)
    tails = [sum(math.comb(21, k) for k in range(edge)) / 2**21 for edge in (6, 7)]
    assert tails[0] <= 0.025 < tails[1]
    assert overhead.interval([1.0, 3.0, 2.0]) == (1.0, 2.0, 3.0)


def test_prints_one_flat_line_of_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(overhead, "measure", lambda *_: [1.0, 1.02, 1.04])
    assert bench.main(["overhead", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    names = [f"{net}_{source}" for net in ("wrn_16_1", "digits_cnn") for source in ("real", "pooled", "generative")]
    assert set(found) == {f"{name}{end}" for name in names for end in ("", "_low", "_high")}
    assert (found["digits_cnn_real_low"], found["digits_cnn_real"], found["digits_cnn_real_high"]) == (1.0, 1.02, 1.04)
    assert bench.main(["overhead"]) == 0
    assert "digits_cnn_pooled       1.020  1.000 to 1.040" in capsys.readouterr().out


def test_names_the_nearest_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["overhed"]) == 2
    assert capsys.readouterr().err == "error: bench: unknown 'overhed'; the nearest is 'overhead'\n"
    assert bench.main(["overhead", "--blocks", "0"]) == 2
