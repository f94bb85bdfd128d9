"""Differences of two rows of results, seed by seed."""

from pathlib import Path

import pytest

from dfkd.results import Line
from experiments.paired import main, paired


def line(label: str, seed: int, value: float | None, metric: str = "agreement", column: str = "test") -> Line:
    return Line(label, True, seed, column, metric, value, 10, 2_000_000, 3.0)


def test_is_the_difference_within_each_seed(tmp_path: Path) -> None:
    rows = [line("a", 2, 0.5), line("a", 0, 0.75), line("a", 1, None), line("b", 0, 0.25), line("b", 2, 0.25)]
    rows += [line("b", 1, 0.5), line("a", 0, 9.0, "kl"), line("a", 0, 9.0, column="uniform"), line("b", 3, 0.5)]
    of = {label: [row for row in rows if row.sampler == label] for label in "ab"}
    assert paired(of["a"], of["b"], "agreement@test") == [50.0, 25.0]  # of seeds 0 and 2, which have both
    (tmp_path / "results.jsonl").write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    said = main(["agreement@test", f"{tmp_path}:a", f"{tmp_path / 'results.jsonl'}:b"])
    assert said == "+37.500 ± 17.678  (+50.000 +25.000)\n"
    rows += [line("b", 0, 8.5, "kl")]
    assert paired([row for row in rows if row.sampler == "a"], rows[-1:], "kl@test") == [0.5]  # nats, not points


def test_says_what_there_is_instead() -> None:
    with pytest.raises(ValueError, match=r"expected a seed that both have, found \[0\] and \[1\]"):
        paired([line("a", 0, 0.5)], [line("b", 1, 0.5)], "agreement@test")
    with pytest.raises(SystemExit, match="expected METRIC@COLUMN"):
        main(["agreement@test", "runs"])
