"""Differences of two rows of results, seed by seed."""

import subprocess
import sys
from pathlib import Path

import pytest

from dfkd.results import Line
from experiments.paired import main, paired

ROOT = Path(__file__).parent.parent.parent
NOISE = ROOT / "experiments" / "mnist" / "results-noise.jsonl"


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
    with pytest.raises(ValueError, match=r"^expected METRIC@COLUMN .*, found agreement@test runs$"):
        main(["agreement@test", "runs"])


def test_what_is_misspelt_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(line("uniform", 0, 0.5).to_json() + "\n", encoding="utf-8")
    for one, row, said in (
        ("agreement@test", f"{tmp_path}:unifrom", f"{file}: sampler: unknown 'unifrom'; the nearest is 'uniform'"),
        ("agrement@test", f"{file}:uniform", "METRIC@COLUMN: unknown 'agrement@test'; the nearest is 'agreement@test'"),
        ("kl@test", f"{tmp_path / 'none'}:uniform", f"found nothing at {tmp_path / 'none'}$"),
    ):
        with pytest.raises(ValueError, match=said):
            main([one, row, f"{tmp_path}:uniform"])
    file.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="expected lines of results as `dfkd compare` writes them, found none"):
        main(["agreement@test", f"{tmp_path}:uniform", f"{tmp_path}:uniform"])


def test_reads_results_of_several_sizes() -> None:
    """Accuracies of README in %: 65.4 and 27.8 for the first two, 85.0 for teacher 1."""
    rows = [f"{NOISE}:{name}" for name in ("base/gaussian_as_data", "base/gaussian", "teacher_1/gaussian_as_data")]
    assert main(["accuracy@test", rows[0], rows[1]]).startswith("+37.580 ± 5.104  (")
    assert main(["accuracy@test", rows[2], rows[0]]).startswith("+19.")
    with pytest.raises(ValueError, match="sampler: unknown 'gaussian_as_dat'; the nearest is 'base/gaussian_as_data'"):
        main(["accuracy@test", f"{NOISE}:gaussian_as_dat", rows[1]])


@pytest.mark.parametrize("module", ["experiments", "experiments.paired", "experiments.table"])
def test_bad_words_end_in_one_line(module: str) -> None:
    words = [sys.executable, "-m", module, "nowhere"]
    said = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    assert said.stderr.startswith(f"{module}: ")
