"""The table of a comparison's results."""

from pathlib import Path

import pytest

from dfkd.results import Line, Status
from experiments.table import main, table


def test_the_best_come_first_with_their_spread() -> None:
    def line(label: str, seed: int, metric: str, value: float | None, status: Status = "ok") -> Line:
        return Line(label, True, seed, "test", metric, value, 10, 2_000_000, 3.0, status=status)

    lines = [line("low", 0, "accuracy", 0.5), line("low", 0, "agreement", 0.4), line("low", 0, "kl", 1.25)]
    for seed, accuracy in ((0, 0.96), (1, 0.98)):
        lines += [line("high", seed, "accuracy", accuracy), line("high", seed, "agreement", 0.9)]
    lines += [line("lost", 0, "agreement", None, "diverged")]
    assert table(lines, {"high": "98.20"}).splitlines()[2:] == [
        "| high | free | 98.20 | 97.00 ± 1.41 | 90.00 ± 0.00 |  | 2.00 | 3 | ok |",
        "| low | free |  | 50.00 | 40.00 | 1.250 | 2.00 | 3 | ok |",
        "| lost | free |  |  |  |  | 2.00 | 3 | 1 diverged |",
    ]
    assert table(lines).splitlines()[2].startswith("| high | free | 97.00 ± 1.41 |")


def test_other_columns_are_shown_where_they_are_named() -> None:
    def line(label: str, metric: str, column: str, value: float) -> Line:
        return Line(label, True, 0, column, metric, value, 10, 2_000_000, 3.0)

    lines = [
        line("one", "agreement", "test", 0.5),
        line("one", "kl", "uniform", 0.25),
        line("one", "cka@body.1", "test", 0.75),
    ]
    lines += [line("two", "agreement", "test", 0.6), line("two", "kl", "uniform", 1.0)]
    lines += [line("two", "agreement", "noise@3", 0.125)]
    text = table(lines, shown=("kl@uniform", "agreement@test", "cka@body.1@test", "agreement@noise@3"))
    assert text.splitlines()[0] == (
        "| sampler | data | KL on uniform (nats) | agreement % | cka@body.1 | agreement on noise@3 % "
        "| teacher images (M) | seconds | runs |"
    )
    assert text.splitlines()[2:] == [
        "| two | free | 1.000 | 60.00 |  | 12.50 | 2.00 | 3 | ok |",
        "| one | free | 0.250 | 50.00 | 0.750 |  | 2.00 | 3 | ok |",
    ]


def test_needs_results_on_test_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^expected FOLDER, found nothing$"):
        main([])
    with pytest.raises(ValueError, match=rf"found no results.jsonl in {tmp_path}$"):
        main([str(tmp_path)])
    alone = Line("one", True, 0, "uniform", "agreement", 0.5, 10, 2_000_000, 3.0)
    (tmp_path / "results.jsonl").write_text(alone.to_json() + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^one: expected agreement on test among its results, found none$"):
        main([str(tmp_path)])
