"""Accuracy against minutes out of the protocol's lines."""

from pathlib import Path
from typing import Any

import pytest

from experiments.bench.curve import PUBLISHED, chart, runs
from experiments.bench.gpu import PAIRS


def lines(part: str, *points: tuple[float, float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"part": part, "recipe": "x", "teacher_accuracy": 0.9, "rows": 10}]
    rows += [{"part": part, "step": 1, "seconds": seconds, "accuracy": right} for seconds, right in points]
    return [*rows, {"part": part, "ended": "ok", "accuracy": 0.5}, {"part": part, "status": "ok", "took": 3.0}]


ROWS: list[dict[str, Any]] = [
    {"part": "about", "device": "none"},
    {"part": "speed of a step, resnet20", "seconds": 1.0},
    *lines("accuracy, resnet34 to resnet18, composite", (30.0, 0.5), (60.0, 0.75)),
    *lines("accuracy, resnet34 to resnet18, cmi"),
    *lines("accuracy, resnet56 to resnet20, dfq", (90.0, 0.25)),
    *lines("accuracy, resnet56 to resnet20, dfq", (120.0, 0.375)),
]


def test_minutes_and_percent_of_the_last_try() -> None:
    assert runs(ROWS) == {
        "resnet34 to resnet18": {"composite": [(0.5, 50.0), (1.0, 75.0)]},
        "resnet56 to resnet20": {"dfq": [(2.0, 37.5)]},
    }


def test_a_picture_of_it(tmp_path: Path) -> None:
    chart(ROWS, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"^chart: expected accuracies in the lines, found none"):
        chart(ROWS[:2], tmp_path / "none.png")


def test_published_lines_are_of_pairs_that_run() -> None:
    assert set(PUBLISHED) <= {f"{teacher} to {student}" for teacher, student, *_ in PAIRS}
