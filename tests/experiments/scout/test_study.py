"""The scout's study of a small comparison: what it reads there, what it keeps, and what it says is missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from dfkd import commands, results
from dfkd.selection import preference

study = pytest.importorskip("experiments.scout.__main__", reason="the studies are not installed with the wheel")

INVERTED = "{pooled: {label: inverted, base: {deep_inversion: {steps: 2, batch: 32}}, round: 32}}"
FOLLOWS = "{generative: {batch: 10, width: small, latent: 8}}"
DRAWS = ["draws.rows=32", "draws.batch=16", "draws.learn=1"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of four samplers, at 20 steps and two seeds."""
    folder = tmp_path_factory.mktemp("study") / "compared"
    words = [
        "teacher={model: digits_cnn, options: {width: 4}, data: digits, budget: {steps: 100, batch: 64}}",
        "student={model: digits_cnn, options: {width: 4}}",
        f"samplers=[uniform, {{real: {{data: digits}}}}, {INVERTED}, {FOLLOWS}]",
        "control_teacher=null",
        "evaluate={columns: [test, draws], rows: 32}",
        "budget={steps: 20, batch: 16}",
        "seeds=[3, 5]",
    ]
    commands.compare(words, folder, 1, False)
    return folder


@pytest.fixture
def copy(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "copy"))


def run(folder: Path, out: Path, *words: str) -> Any:
    return study.main([str(folder), "--out", str(out), *DRAWS, *words])


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def change_lines(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    file = folder / "results.jsonl"
    lines = [change(json.loads(text)) for text in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def test_end_to_end_and_begun_again(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, before = tmp_path / "out", files(compared)
    capsys.readouterr()
    first = run(compared, out)
    said = capsys.readouterr().out
    lines = results.read(compared / "results.jsonl")
    assert list(first["samplers"]) == ["uniform", "real", "inverted", "generative"]
    for label, row in first["samplers"].items():
        asked = [line for line in lines if (line.sampler, line.evaluation, line.metric) == (label, "test", "agreement")]
        assert row["agreement"] == [line.value for line in sorted(asked, key=lambda line: line.seed)]
        for place, seed in enumerate((3, 5)):
            # the comparison asked its students about the same rows, so its own lines give the same preference
            known = preference([line for line in lines if line.seed == seed])
            assert row["preference"][place] == pytest.approx(known[label])
        mark = "*" if label == "generative" else ""
        assert f"| {label}{mark} | {'reads' if label == 'real' else 'free'} | {row['score']:.2f} |" in said
        assert row["follows_student"] == (label == "generative")
        assert row["diagnostics"][0] != row["diagnostics"][1]  # each seed looks at other draws
    assert first["samplers"]["real"]["score"] > first["samplers"]["uniform"]["score"]
    counts = {group: by["score"]["samplers"] for group, by in first["correlations"].items()}
    assert counts == {"all": 4, "data-free": 3, "do not follow the student": 3}
    assert "Left out" not in said
    assert files(compared) == before  # it is only read
    assert (out / "table.md").read_text() == said
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(first))

    (out / "cells" / "real-s5.json").unlink()
    kept = files(out / "cells")
    assert len(kept) == 7
    again = run(compared, out)
    assert kept.items() <= files(out / "cells").items()
    assert len(files(out / "cells")) == 8
    assert again["correlations"] == first["correlations"]


@pytest.mark.parametrize("mode", ["batch", "recalibrated"])
def test_students_are_asked_as_they_were_scored(compared: Path, tmp_path: Path, mode: str) -> None:
    """And a teacher may be a weights file, which the folder does not hold."""
    folder = tmp_path / "other"
    words = [
        f"teacher={{weights: {compared / 'teacher.safetensors'}, data: digits}}",
        "student={model: digits_cnn, options: {width: 4}}",
        "samplers=[uniform, {real: {data: digits}}]",
        "evaluate={columns: [test, draws], rows: 32}",
        "budget={steps: 5, batch: 16}",
        "seeds=[0]",
        f"student_score={mode}",
    ]
    commands.compare(words, folder, 1, False)
    known = preference(results.read(folder / "results.jsonl"))
    rows = run(folder, tmp_path / "out")["samplers"]
    assert {label: row["preference"][0] for label, row in rows.items()} == pytest.approx(known)


def test_some_of_it(compared: Path, tmp_path: Path) -> None:
    found = run(compared, tmp_path / "out", "seeds=[5]", "samplers=[real, uniform]")
    assert sorted(file.name for file in (tmp_path / "out" / "cells").iterdir()) == ["real-s5.json", "uniform-s5.json"]
    assert (found["seeds"], list(found["samplers"])) == ([5], ["real", "uniform"])
    run(compared, tmp_path / "out", "seeds=[3]", "samplers=[real]")  # joins what is there
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 3
    with pytest.raises(ValueError, match=r"differs in draws\.learn; name another folder"):
        run(compared, tmp_path / "out", "draws.learn=2")
    with pytest.raises(ValueError, match="samplers: unknown 'rael'; the nearest is 'real'"):
        run(compared, tmp_path / "out", "samplers=[rael]")
    with pytest.raises(ValueError, match=r"seeds: expected some of \[3, 5\], which were compared, found 4"):
        run(compared, tmp_path / "out", "seeds=[4]")
    with pytest.raises(ValueError, match=r"draws\.seed: .*use seeds="):
        run(compared, tmp_path / "out", "draws.seed=4")


def test_the_scout_has_two_minutes_unless_told() -> None:
    settings = study.configuration.read_settings(["draws.rows=64"], {"draws": study.DRAWS})
    draws = study.configuration.parse(study.StudyConfig, settings).draws
    assert (draws.limit, draws.rows, draws.learn) == (120.0, 64, 100)


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_a_sampler_that_was_not_trained(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def unfinished(line: dict[str, Any]) -> dict[str, Any] | None:
        if line["seed"] == 5 and line["sampler"] == "real":
            return None
        failed = line["seed"] == 3 and line["sampler"] == "inverted"
        return line | {"status": "diverged", "value": None} if failed else line

    change_lines(copy, unfinished)
    found = run(copy, tmp_path / "out")
    rows, said = found["samplers"], capsys.readouterr().out
    assert "- real: not trained: no test score (yet) at seed 5\n" in said
    assert "- inverted: not trained: diverged at seed 3\n" in said
    assert [label for label, row in rows.items() if row["score"] is not None] == ["uniform", "generative"]
    assert rows["uniform"]["score"] + rows["generative"]["score"] == pytest.approx(1.0)  # ranked among themselves
    assert rows["real"]["preference"] == [None, None]
    assert "No correlation: fewer than three samplers" in said


def test_a_comparison_at_work_is_scouted(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "results.jsonl").unlink()
    found = run(copy, tmp_path / "out", "samplers=[uniform, real]")
    heard = capsys.readouterr()
    assert "no results.jsonl yet" in heard.err
    assert "- real: not trained: no test score (yet) at seed 3, 5\n" in heard.out
    assert all(row["diagnostics"][0] for row in found["samplers"].values())


def test_a_sampler_that_is_not_scouted(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too slow for the scout; and kept by an older version, with settings that are no longer there."""
    file = copy / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["samplers"][2]["pooled"]["old_option"] = 1
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    found = run(copy, tmp_path / "out", "draws.seconds=0", "draws.limit=0", "seeds=[3]")
    said = capsys.readouterr().out
    assert list(found["samplers"]) == ["uniform", "real", "generative"]
    assert "- inverted: not scouted: its settings are of another version: samplers.pooled: option: unknown" in said
    value = 100 * fmean(found["samplers"]["generative"]["agreement"])
    assert "- generative: not scouted: its first 32 rows take more than 0 s" in said
    assert f"gives it more; test agreement {value:.1f} %" in said
    assert found["correlations"]["all"]["preference (after training)"]["samplers"] == 3


def test_a_student_without_a_file_has_no_preference(copy: Path, tmp_path: Path) -> None:
    (copy / "runs" / "real-s3" / "student.safetensors").unlink()
    (copy / "banks" / "uniform-s3.safetensors").unlink()
    rows = run(copy, tmp_path / "out", "seeds=[3]")["samplers"]
    assert [label for label, row in rows.items() if row["preference"] == [None]] == ["real"]
    assert all(row["score"] is not None for row in rows.values())


# -- what is no comparison ---------------------------------------------------------------------------------------------


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(ValueError) as caught:  # each caller reads the words
        run(folder, out)
    assert not out.exists()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_folder_that_is_no_comparison(copy: Path, tmp_path: Path) -> None:
    out, none = tmp_path / "out", "expected a folder of `dfkd compare`, found"
    assert refused(tmp_path / "cpy", out) == f"{tmp_path / 'cpy'}: {none} no config.yaml; the nearest is {copy}"
    assert refused(tmp_path, out).endswith(f"the nearest is {copy}")
    assert refused(copy / "results.jsonl", out).endswith(f"the nearest is {copy}")
    other = tmp_path / "copy2"
    other.mkdir()
    (other / "config.yaml").write_text("teacher: t.safetensors\nsampler: uniform\n")
    assert f"{none} a config.yaml that is not one (" in refused(other, out)
    assert refused(other, out).endswith(f"the nearest is {copy}")
    shutil.rmtree(copy)
    assert refused(other, out).endswith("make one with `dfkd compare FILE --out FOLDER`")


def test_the_teacher_is_never_trained(copy: Path, tmp_path: Path) -> None:
    file = copy / "teacher.safetensors"
    file.unlink()
    said = refused(copy, tmp_path / "out")
    assert said == f"{file}: expected the teacher of the comparison, found no such file; none is trained here"
    assert not file.exists()


def test_another_teacher_or_other_data(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    other = {**manifest, "read": {"digest": "0", "sources": {"digits": "0"}}}
    (copy / "manifest.json").write_text(json.dumps(other))
    assert "digits is no longer what the samplers read" in refused(copy, tmp_path / "out")
    (copy / "manifest.json").write_text(json.dumps({**manifest, "teacher": {"digest": "0"}}))
    assert "no longer the one that was compared" in refused(copy, tmp_path / "out")


def test_without_a_test_column_there_is_nothing_to_ask(copy: Path, tmp_path: Path) -> None:
    file = copy / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["evaluate"]["columns"] = ["draws"]
    file.write_text(yaml.safe_dump(settings))
    assert "expected students scored on test, found draws" in refused(copy, tmp_path / "out")
