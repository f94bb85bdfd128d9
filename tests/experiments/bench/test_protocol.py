"""The protocol's order, its budget, what fails, and what is continued from a file."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.bench.protocol import Part, Row, Unfinished, Write, each, run

MARKS = {"on": "a card", "size": "full", "commit": "abc"}


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

    return Part(name, options.pop("least", 1.0), each(measure), **options)


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ends(path: Path) -> list[tuple[str, str]]:
    return [(row["part"], row["status"]) for row in lines(path) if "status" in row]


def silent(text: str) -> None:
    del text


def test_ends_before_its_minutes_are_up_and_goes_on_another_time(tmp_path: Path) -> None:
    """Three parts of 40 s within 100 s: the third does not begin; next time it is all that is left."""
    watch, told, out = Watch(), list[float](), tmp_path / "new" / "rows.jsonl"
    plan = [part(name, watch, 40.0, told, least=30.0) for name in "abc"]
    run(plan, 100.0, out, {"device": "none"}, MARKS, clock=watch, show=silent)
    assert ends(out) == [("a", "ok"), ("b", "ok"), ("c", "no time")]
    assert told == [100.0, 60.0]
    assert watch.now - 100.0 <= 100.0
    run(plan, 100.0, out, {}, MARKS, clock=watch, show=silent)
    assert ends(out)[3:] == [("c", "ok")]
    run(plan, 100.0, out, {}, MARKS, clock=watch, show=silent)
    assert len(ends(out)) == 4
    assert lines(out)[0] == {"part": "about", "device": "none", **MARKS}
    assert [row["value"] for row in lines(out) if "value" in row] == [40.0] * 3


@pytest.mark.parametrize("mark", [{"on": "a CPU"}, {"size": "small"}, {"commit": "abc+"}, {"settings": {"seconds": 9}}])
def test_what_was_done_elsewhere_is_not_done_here(tmp_path: Path, mark: dict[str, Any]) -> None:
    watch, told, out = Watch(), list[float](), tmp_path / "rows.jsonl"
    settings = {"seconds": 60}
    run([part("a", watch, 1.0, told, settings=settings)], 9.0, out, {}, MARKS, clock=watch, show=silent)
    other = part("a", watch, 1.0, told, settings=mark.get("settings", settings))
    marks = MARKS | {key: value for key, value in mark.items() if key != "settings"}
    for _ in range(2):
        run([other], 9.0, out, {}, marks, clock=watch, show=silent)
    assert len(told) == 2  # once here, once there
    assert {row["on"] for row in lines(out)} == {MARKS["on"], marks["on"]}


def test_a_share_is_of_what_is_left(tmp_path: Path) -> None:
    watch, told = Watch(), list[float]()
    plan = [part("a", watch, 20.0, told, share=0.5), part("b", watch, 1.0, told, share=0.5, least=70.0)]
    plan.append(part("c", watch, 1.0, told, most=5.0))
    run(plan, 100.0, tmp_path / "rows.jsonl", {}, MARKS, clock=watch, show=silent)
    assert told == [50.0, 70.0, 5.0]  # half of 100; half of 80 would be less than it needs; no more than it can use


def test_a_part_that_fails_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    watch, told, out, broken = Watch(), list[float](), tmp_path / "rows.jsonl", [True]

    def measure(seconds: float) -> Iterator[Row]:
        del seconds
        yield {"value": 1}
        if broken[0]:
            raise RuntimeError("out of memory\n  at all")

    plan = [Part("a", 1.0, each(measure)), part("b", watch, 1.0, told)]
    run(plan, 100.0, out, {}, MARKS, clock=watch, show=silent)
    assert ends(out) == [("a", "failed"), ("b", "ok")]
    assert {"part": "a", "value": 1, **MARKS} in lines(out)
    assert next(row for row in lines(out) if row.get("status") == "failed")["error"] == (
        "RuntimeError: out of memory at all"
    )
    broken[0] = False
    run(plan, 100.0, out, {}, MARKS, clock=watch, show=silent)
    assert ends(out)[2:] == [("a", "ok")]


def test_a_row_that_failed_and_a_run_that_is_to_go_on_are_not_done(tmp_path: Path) -> None:
    def unfinished(seconds: float, write: Write) -> None:
        del seconds
        try:
            raise Unfinished("was told to end")
        except Exception:  # what makes a row of each error
            write({"result": "failed"})

    out = tmp_path / "rows.jsonl"
    found = [{"result": "failed", "why": "no"}, {"result": "close"}]
    rows = [Part("a", 0.0, each(lambda seconds: iter(found)))]
    cut = Part("c", 0.0, each(lambda seconds: iter([{"result": "no time"}, {"result": "close"}])))
    run([*rows, Part("b", 0.0, unfinished), cut], 9.0, out, {}, MARKS, show=silent)
    assert ends(out) == [("a", "failed"), ("b", "no time"), ("c", "no time")]
    assert [row["error"] for row in lines(out) if "error" in row] == ["rows: 1 failed"]


def test_numbers_that_json_has_not_got_do_not_end_a_part(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    found: list[Row] = [
        {"loss": math.nan, "curve": [[1.0, math.inf]]},
        {"result": "apart", "gap": math.nan},
        {"fine": 1.0},
    ]
    run([Part("a", 0.0, each(lambda seconds: iter(found)))], 9.0, out, {}, MARKS, show=silent)
    assert ends(out) == [("a", "ok")]
    first, second, third = (row for row in lines(out)[1:] if "status" not in row)
    assert (first["loss"], first["curve"], first["result"]) == (None, [[1.0, None]], "not finite")
    assert (second["gap"], second["result"], second["not_finite"]) == (None, "apart", ["gap: nan"])
    assert "not_finite" not in third


def test_a_torn_line_is_not_read_and_not_added_to(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    whole = json.dumps({"part": "a", "status": "ok", "settings": {}, **MARKS})
    out.write_text(whole + '\n{"part": "b", "sta', encoding="utf-8")
    watch, told = Watch(), list[float]()
    plan = [part("a", watch, 1.0, told), part("b", watch, 1.0, told)]
    run(plan, 9.0, out, {}, MARKS, clock=watch, show=silent)
    texts = out.read_text(encoding="utf-8").splitlines()
    assert texts[1] == '{"part": "b", "sta'
    assert [json.loads(text)["part"] for text in texts[2:]] == ["about", "b", "b"]
