"""The study of the scout in small: cells that are kept, samplers that join, and its correlations by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

study = pytest.importorskip("experiments.scout.__main__", reason="the studies are not installed with the wheel")
analysis = pytest.importorskip("experiments.scout.analysis")

INVERTED = "{pooled: {base: {deep_inversion: {steps: 2, batch: 32}}, round: 32}}"
SMALL = [
    "teacher.budget.steps=150",
    "teacher.options.width=4",
    "student.options.width=4",
    "budget={steps: 6, batch: 16}",
    "draws={rows: 32, batch: 16, learn: 1}",
    "rows=32",
]


# -- correlations ------------------------------------------------------------------------------------------------------


def test_spearman_by_hand() -> None:
    """1 - 6 sum d^2 / n (n^2 - 1) without ties; with ties Pearson's of the mean ranks; undefined for a constant."""
    assert analysis.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 9]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert analysis.spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1.0)
    assert analysis.spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / (1.5 * 2) ** 0.5)
    assert analysis.spearman([1, 1, 1], [1, 2, 3]) is None


def test_correlation_interval_regret_and_the_misplaced() -> None:
    order = {"a": 0.9, "b": 0.8, "c": 0.3, "d": 0.1, "not trained": 1.0}
    agreement = {"a": 0.7, "b": 0.9, "c": 0.5, "d": 0.2}
    found = analysis.correlate(order, agreement)
    assert (found.first, found.samplers) == ("a", 4)
    assert found.regret == pytest.approx(0.2)
    assert found.rho == pytest.approx(0.8)
    assert -1.0 <= found.low < found.rho <= found.high <= 1.0
    assert analysis.correlate({"a": 1.0, "b": 0.0}, agreement) is None
    assert analysis.misplaced(order, agreement) == [("a", 1, 2), ("b", 2, 1)]


# -- the study ---------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[Path, int]:
    kept = ("student.safetensors", "scout.json", "teacher.safetensors")
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in kept}


def test_cells_are_kept_and_samplers_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def run(*samplers: str, words: tuple[str, ...] = ("seeds=[0]",)) -> Any:
        return study.main(["digits", *SMALL, f"samplers=[{', '.join(samplers)}]", *words, f"out={out}"])

    first = run("uniform", "real", INVERTED)
    said = capsys.readouterr().out
    before = files(out)
    assert len(before) == 7
    assert set(first["samplers"]) == {"uniform", "real", "pooled-deep_inversion"}
    for label, row in first["samplers"].items():
        assert row["status"] == ["ok"]
        assert 0.0 <= row["agreement"][0] <= 1.0
        assert 0.0 <= row["preference"][0] <= 1.0
        assert f"| {label} | {'reads' if label == 'real' else 'free'} | {row['score']:.2f} |" in said
    assert first["samplers"]["real"]["score"] > first["samplers"]["uniform"]["score"]
    assert first["correlations"]["all"]["score"]["samplers"] == 3
    assert (out / "table.md").read_text() == said
    again = run("uniform", "real", INVERTED)
    assert again == first
    assert files(out) == before
    more = run(
        "uniform",
        "real",
        INVERTED,
        "deep_inversion: {batch: 2, steps: 1}",
        "{generative: {batch: 10, width: small, latent: 8}}",
    )
    assert before.items() <= files(out).items()
    for label, row in first["samplers"].items():
        assert more["samplers"][label]["agreement"] == row["agreement"]
    assert more["samplers"]["generative"]["follows_student"] is True
    assert json.loads((out / "results.json").read_text())["classes"] == 10
    with pytest.raises(ValueError, match=r"'uniform' was Uniform\(labelling='batch'\) there; name another folder"):
        run("{uniform: {labelling: eval}}")
    with pytest.raises(ValueError, match="holds another run, which differs in seeds"):
        run("uniform", words=("seeds=[0, 1]",))


def test_what_cannot_be_used_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["teacher.model=lenet5", "teacher.options={}", "teacher.size=32", "student.model=lenet5_half"]
    words = [*SMALL, *plain, "student.options={}", "samplers=[deep_inversion, uniform]", "seeds=[0]"]
    found = study.main(["digits", *words, f"out={tmp_path / 'out'}"])
    row = found["samplers"]["deep_inversion"]
    assert (row["status"], row["agreement"], row["score"]) == (["unsupported"], [None], None)
    assert "- deep_inversion: deep_inversion: needs a teacher with batchnorm" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_settings_are_read(name: str) -> None:
    settings = yaml.safe_load((study.HERE / f"{name}.yaml").read_text())
    parsed = study.config.parse(study.StudyConfig, settings)
    assert parsed.samplers == {}
    assert parsed.budget.seconds is not None
    assert parsed.budget.seconds <= 900
