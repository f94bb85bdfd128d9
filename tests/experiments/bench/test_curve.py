"""The protocol's lines as a table and as accuracy against minutes."""

from pathlib import Path
from typing import Any

import pytest

from experiments.bench.curve import PUBLISHED, chart, runs, table, there
from experiments.bench.gpu import PAIRS

Point = tuple[float, float]
MARKS = {"on": "a card", "size": "full", "commit": "abc"}


def lines(pair: str, recipe: str, *points: Point, continued: bool = False, ended: bool = False) -> list[dict[str, Any]]:
    about: dict[str, Any] = {"part": f"accuracy, {pair}, {recipe}", "pair": pair, "recipe": recipe, "seed": 0, **MARKS}
    rows = [{**about, "teacher_accuracy": 0.9, "rows": 10, "continued": continued}]
    rows += [{**about, "queued_seconds": seconds + 1.5 * ended, "accuracy": right} for seconds, right in points]
    if ended:
        rows.append(
            {**about, "ended": "ok", "accuracy": 0.5, "steps": 7, "seconds": 9.0, "curve": [list(p) for p in points]}
        )
    return [*rows, {"part": about["part"], "status": "ok" if ended else "no time", "took": 3.0, **MARKS}]


ROWS: list[dict[str, Any]] = [
    {"part": "about", "device": "none", **MARKS},
    *lines("resnet34 to resnet18", "composite", (30.0, 0.5), (60.0, 0.75), ended=True),
    *lines("resnet34 to resnet18", "cmi"),
    *lines("resnet56 to resnet20", "dfq", (90.0, 0.25)),
    *lines("resnet56 to resnet20", "dfq", (120.0, 0.375)),
]


def test_minutes_and_percent_of_the_last_try() -> None:
    assert runs(ROWS) == {
        "resnet34 to resnet18": {("composite", 0): [(0.5, 50.0), (1.0, 75.0)]},
        "resnet56 to resnet20": {("dfq", 0): [(2.0, 37.5)]},
    }


def test_a_run_that_went_on_has_each_point_once() -> None:
    """Killed after 90 s, its checkpoint is of before 60 s: what was redone replaces what was done."""
    pair = "resnet56 to resnet20"
    rows = lines(pair, "dfq", (30.0, 0.1), (60.0, 0.2), (90.0, 0.3))
    rows += lines(pair, "dfq", (60.0, 0.25), (120.0, 0.5), continued=True)
    assert runs(rows)[pair]["dfq", 0] == [(0.5, 10.0), (1.0, 25.0), (2.0, 50.0)]


@pytest.mark.parametrize("mark", [{"on": "a CPU"}, {"size": "small"}])
def test_rows_of_elsewhere_are_not_shown(mark: dict[str, str]) -> None:
    """Of another device or size; other commits are shown, the last try of each part."""
    other = [{**row, **mark} for row in ROWS]
    assert there(other + ROWS, MARKS) == ROWS
    assert there(other, MARKS) == []
    assert there(ROWS, {**MARKS, "commit": "later"}) == ROWS


def test_a_picture_of_it(tmp_path: Path) -> None:
    chart(ROWS, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"^chart: expected accuracies in the lines, found none"):
        chart(ROWS[:1], tmp_path / "none.png")


def test_published_lines_are_of_pairs_that_run() -> None:
    assert set(PUBLISHED) <= {f"{teacher} to {student}" for teacher, student, *_ in PAIRS}


def test_the_table_has_times_findings_and_how_parts_ended() -> None:
    part = {"part": "speed", **MARKS}
    rows: list[dict[str, Any]] = [
        {**part, "student": "resnet20", "switches": "bf16", "seconds": 9.9, "result": "close"},
        {**part, "status": "no time", "took": 5.0},
        {
            **part,
            "student": "resnet20",
            "switches": "bf16",
            "loss": 0.5,
            "seconds": 0.25,
            "speedup": 1.5,
            "to_limit": 7.04,
        }
        | {"result": "apart"},
        {**part, "student": "resnet20", "switches": "graph", "result": "failed", "why": "RuntimeError: no"},
        {**part, "status": "failed", "error": "rows: 1 failed", "took": 7.2},
        {"part": "checks", "loss": "kl", "result": "close"},
        {"part": "checks", "loss": "dist", "result": "diverged"},
        {"part": "checks", "check": "recorded as plain", "gap": 0.2, "tolerance": 0.003, "result": "apart"},
        {"part": "checks", "precision": "float32", "compile": True, "result": "waits", "waits": "RuntimeError: item"},
        {"part": "checks", "status": "ok", "took": 1.0},
        *ROWS,
    ]
    found = table(rows).splitlines()
    said = [" ".join(text.split()) for text in found]
    assert said[0] == "seconds to plain to limit"
    assert said[1:9] == [
        "speed: failed, 7 s: rows: 1 failed",
        "resnet20, bf16 0.25000 1.50 7.0 apart",
        "resnet20, graph failed: RuntimeError: no",
        "checks: ok, 1 s",
        "1 as they should be",
        "dist diverged",
        "recorded as plain apart, gap 0.2 of 0.003",
        "float32, compile True waits: waits: RuntimeError: item",
    ]
    assert "composite, seed 0 9.00000 ok, 50.00 %, 7 steps" in said


def test_the_table_has_memory_what_was_not_recorded_and_budgets_that_were_spent_at_once() -> None:
    last = ROWS[4] | {"result": "budget spent before the first draw", "compile_seconds": 61.0}
    assert "curve" in last
    check = {"part": "checks", "check": "compiled", "result": "close", "graph_breaks": 0, "cudagraph_skips": 0}
    rows: list[dict[str, Any]] = [
        {"part": "speed", "sampler": "dfq", "seconds": 0.5, "to_limit": 2.0, "peak_bytes": 3 * 2**20, "result": "ok"},
        {"part": "speed", "status": "ok", "took": 1.0},
        check,
        check | {"result": "not recorded", "cudagraph_skips": 2},
        {"part": "checks", "status": "ok", "took": 1.0},
        last,
    ]
    said = [" ".join(text.split()) for text in table(rows).splitlines()]
    assert "dfq 0.50000 2.0 3 MiB" in said
    assert [text for text in said if text.startswith("compiled")] == ["compiled not recorded, 2 graphs skipped"]
    assert any("budget spent before the first draw, ok, 50.00 %, 7 steps, 61 s to compile" in text for text in said)
