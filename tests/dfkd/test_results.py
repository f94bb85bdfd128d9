"""Result lines: what is written is what is read, what is broken is named, what failed is kept."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from dfkd.results import Cell, Line, Summary, append, finite, read

LINE = Line("real", False, 0, "test", "agreement", 0.991, 500, 51_000, 12.5, kind="real", labelling="eval")


def line(sampler: str = "real", seed: int = 0, value: float | None = 0.9, **changes: object) -> Line:
    return replace(LINE, sampler=sampler, seed=seed, value=value, **changes)  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [LINE, line('a\nb"\u2028д', value=None), line(value=None, status="diverged")]
    append(path, lines[:1])
    append(path, lines[1:])
    assert read(path) == lines
    assert len(path.read_text(encoding="utf-8").split("\n")) == 4  # no break inside a line


def test_reads_the_least_that_a_line_must_have(tmp_path: Path) -> None:
    keys = ("sampler", "data_free", "seed", "evaluation", "metric", "value", "steps", "teacher_images", "seconds")
    least = {key: getattr(LINE, key) for key in keys} | {"teacher_images": 51_000, "a_study_says": [1]}
    append(tmp_path / "r.jsonl", [least])
    assert read(tmp_path / "r.jsonl") == [replace(LINE, kind="", labelling="unknown")]


@pytest.mark.parametrize("torn", ['{"sampler": "re', LINE.to_json()[:-1], "\u00e9"])
def test_a_torn_last_line_is_ignored_and_cut_off_before_more_is_added(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [LINE])
    path.write_bytes(path.read_bytes() + torn.encode()[: -1 if torn == "\u00e9" else None])
    assert read(path) == [LINE]
    append(path, [line("mixup")])
    assert read(path) == [LINE, line("mixup")]


def test_a_whole_last_line_without_its_break_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(LINE.to_json())
    assert read(path) == [LINE]
    append(path, [line("mixup")])
    assert read(path) == [LINE, line("mixup")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        (json.dumps({"sampler": "a"}), "line 2: key 'data_free' is missing"),
        (LINE.to_json().replace('"value"', '"valeu"'), "line 2: key 'value' is missing; the nearest is 'valeu'"),
        (LINE.to_json().replace("0.991", "NaN"), "line 2: expected a finite number or null, found NaN"),
        (LINE.to_json().replace("0.991", "1e999"), "line 2: value: expected a finite number or None, found inf"),
        (LINE.to_json().replace("0.991", '"0.9"'), "line 2: value: expected a finite number or None"),
        (LINE.to_json().replace('"ok"', '"fine"'), "line 2: status: expected one of ok, diverged, unsupported"),
        (LINE.to_json().replace('"ok"', '"diverged"'), "line 2: value: expected None for a run that diverged"),
        (LINE.to_json().replace("500", "true"), "line 2: steps: expected a whole number, found True"),
        (LINE.to_json().replace("500", "-5"), "line 2: steps: expected a whole number >= 0, found -5"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{LINE.to_json()}\n{text}\n{LINE.to_json()}\n")
    with pytest.raises(ValueError) as caught:
        read(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused_and_has_a_word(value: float) -> None:
    assert finite(value) is None
    with pytest.raises(ValueError, match="value: expected a finite number or None"):
        line(value=value)


def test_mean_and_spread_over_seeds_in_their_order() -> None:
    summary = Summary([line(seed=seed, value=value) for seed, value in ((2, 0.7), (0, 0.9), (1, 0.8))])
    cell = summary.cell("real", "test", "agreement")
    assert (cell.seeds, cell.values, cell.n, cell.status) == ((0, 1, 2), (0.9, 0.8, 0.7), 3, "ok")
    assert cell.mean == pytest.approx(0.8)
    assert cell.spread == pytest.approx(statistics.stdev([0.9, 0.8, 0.7]))


def test_one_seed_has_no_spread() -> None:
    cell = Summary([line()]).cell("real", "test", "agreement")
    assert (cell.mean, cell.spread, cell.n) == (0.9, None, 1)


def test_a_failed_run_stands_in_all_cells_of_its_row() -> None:
    lines = [line(seed=0), line(seed=0, evaluation="uniform"), line(seed=1, value=None, status="diverged")]
    summary = Summary([*lines, line("inversion", value=None, status="unsupported")])
    for evaluation in ("test", "uniform"):
        cell = summary.cell("real", evaluation, "agreement")
        assert (cell.statuses, cell.mean, cell.failures) == (("ok", "diverged"), 0.9, ("diverged",))
        assert summary.cell("inversion", evaluation, "agreement").status == "unsupported"
    assert summary.ranked() == ["real", "inversion"]
    assert summary.failed == {"real": {1: "diverged"}, "inversion": {0: "unsupported"}}


def test_an_undefined_value_is_no_failure() -> None:
    cell = Summary([line(value=None), line(evaluation="uniform")]).cell("real", "test", "agreement")
    assert (cell.status, cell.mean) == ("ok", None)


def test_a_line_written_again_counts_once() -> None:
    assert Summary([line(value=0.1), line(value=0.9)]).cell("real", "test", "agreement").values == (0.9,)


def test_a_failed_run_names_no_column() -> None:
    lines = [line(evaluation="draws of real"), line("other", value=None, status="diverged")]
    assert Summary(lines).headline == "draws of real"
    assert Summary(lines).evaluations == ["draws of real"]


def test_costs_leave_out_failed_runs() -> None:
    summary = Summary([line(steps=500), line(seed=1, value=None, status="diverged", steps=3)])
    assert summary.cost("real", "steps") == 500.0


def test_nothing_is_an_empty_cell() -> None:
    assert Summary([line()]).cell("real", "test", "kl") == Cell()
