"""The studies that are comparisons: their words, files and tables; on data sets of a few drawn images."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import experiments.__main__
from dfkd import config
from dfkd.config import CompareConfig, GeneratorConfig
from experiments.__main__ import HERE, main, studies


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the study is run: data sets of the sizes of MNIST's, EMNIST's and CIFAR-10's images, with few of them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, shape in (("mnist.npz", (28, 28)), ("emnist.npz", (28, 28)), ("cifar10.npz", (32, 32, 3))):
        parts = {
            f"{what}_{part}": rng.integers(0, 256, (40, *shape), dtype=np.uint8) if what == "x" else np.arange(40) % 10
            for what in "xy"
            for part in ("train", "test")
        }
        np.savez(tmp_path / name, allow_pickle=False, **parts, classes=np.array([str(i) for i in range(10)]))
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore:.*its preset leaves out")
@pytest.mark.parametrize("name", studies())
def test_every_size_is_a_comparison(name: str) -> None:
    """All settings are known and all samplers can be built, those that read files too."""
    study = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    assert {"common", "sizes"} <= set(study) <= {"common", "generators", "published", "shown", "sizes"}
    for size in study["sizes"].values():
        for how in study.get("generators", {}).values():
            config.parse(GeneratorConfig, how)
        parsed: CompareConfig = config.parse(CompareConfig, study["common"] | size)
        assert len(parsed.samplers) >= 2
        assert set(parsed.seeds) in ({0}, {0, 1, 2}, {0, 1, 2, 3, 4})
        assert config.parse(CompareConfig, config.dump(parsed)) == parsed  # what is continued is the same again


def test_runs_the_sizes_named_and_keeps_their_tables(folder: Path) -> None:
    words = [
        "mnist/noise",
        "steps_1000",
        "teacher_1",
        "--out",
        "out",
        "--workers",
        "1",
        "budget.steps=2",
        "evaluate.rows=20",
        "budget.batch=4",
        "seeds=[0]",
    ]
    words += ["teacher.budget.steps=2", "samplers=[uniform, gaussian]"]
    text = main(words)
    assert [line for line in text.splitlines() if line.startswith("noise")] == ["noise steps_1000", "noise teacher_1"]
    kept = (folder / "out" / "noise-teacher_1" / "table.md").read_text(encoding="utf-8")
    assert text.endswith(kept)
    assert [line.split(" | ")[0] for line in kept.splitlines()[2:]] in (
        ["| uniform", "| gaussian"],
        ["| gaussian", "| uniform"],
    )
    assert (folder / "out" / "noise-steps_1000" / "results.jsonl").exists()


STUDY = """
generators: {gan: {data: digits, budget: {steps: 2, batch: 8}}}
common:
  teacher: {model: digits_cnn, data: digits, budget: {steps: 2}}
  student: {model: digits_cnn}
  budget: {steps: 2, batch: 8}
  control_teacher: null
  evaluate: {columns: [test], rows: 20}
  samplers: [{gan: {file: $OUT/gan/generator.safetensors}}]
shown: [kl@test]
sizes: {cpu: {seeds: [0]}}
"""


def test_generators_that_a_study_names_are_trained_before_it_and_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "few.yaml").write_text(STUDY, encoding="utf-8")
    monkeypatch.setattr(experiments.__main__, "HERE", folder)
    text = main(["mine/few", "cpu", "--out", "made", "--workers", "1"])
    assert text.splitlines()[2].startswith("| sampler | data | KL (nats) | teacher images")
    assert text.splitlines()[4].startswith("| gan | reads | ")
    trained = folder / "made" / "gan" / "generator.safetensors"
    before = trained.stat().st_mtime_ns
    assert main(["mine/few", "cpu", "--out", "made", "--workers", "1"]) == text
    assert trained.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "^study: unknown ''; known: .*/"),
        (["lenet5"], "^study: unknown 'lenet5'; the nearest is 'mnist/lenet5'$"),
        (["mnist/noise"], "^size: unknown ''; known: base, "),
        (["mnist/noise", "base", "qqqq"], "^size: unknown 'qqqq'; known: base, "),
        (["mnist/noize", "base"], "^study: unknown 'mnist/noize'; the nearest is 'mnist/noise'$"),
        (["mnist/noise", "base", "steps_100"], "^size: unknown 'steps_100'; the nearest is 'steps_1000'$"),
        (["mnist/noise", "base", "budget.step=3"], "^budget: option: unknown 'step'; the nearest is 'steps'$"),
        (["mnist/noise", "base", "teacher.data=none.npz"], "^data: no such file or folder: 'none.npz'$"),
    ],
)
def test_names_what_there_is(words: list[str], said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said):
        main(words)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("content", ["mine: 1\n", "a: [", "\xff"])
def test_a_file_of_the_users_is_left_alone(folder: Path, content: str) -> None:
    mine = folder / "out" / "noise-teacher_1.yaml"
    mine.parent.mkdir()
    mine.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"out/noise-teacher_1.yaml is there and is not what this study writes; move"):
        main(["mnist/noise", "steps_1000", "teacher_1", "--out", "out"])
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]
    assert mine.read_bytes() == content.encode("latin-1")


def test_a_study_with_a_key_twice_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "few.yaml").write_text(STUDY + "shown: [agreement@test]\n", encoding="utf-8")
    monkeypatch.setattr(experiments.__main__, "HERE", folder)
    with pytest.raises(ValueError, match=r"few.yaml: expected each key once, found 'shown' in lines 10 and 12"):
        main(["mine/few", "cpu", "--out", "made"])
    assert not (folder / "made").exists()


def test_help_names_all_studies_and_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for name in studies():
        sizes = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))["sizes"]
        assert f"  {name} " in said
        assert f"  {', '.join(sizes)}\n" in said


def test_sizes_that_have_a_teacher_in_common_train_it_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["budget.steps=2", "budget.batch=4", "evaluate.rows=20", "teacher.budget.steps=2", "seeds=[0]"]
    words = ["--out", "out", "--workers", "1", "samplers=[uniform, gaussian]", *few]

    def trained() -> int:
        return capsys.readouterr().err.count("training lenet5")

    main(["mnist/noise", "base", "steps_1000", *words])
    assert trained() == 1
    weights = [
        (folder / "out" / f"noise-{size}" / "teacher.safetensors").read_bytes() for size in ("base", "steps_1000")
    ]
    assert weights[0] == weights[1]
    main(["mnist/noise", "teacher_1", *words])
    assert trained() == 1  # of another seed
    data = dict(np.load("mnist.npz"))
    np.savez("mnist.npz", allow_pickle=False, **data | {"x_train": 255 - data["x_train"]})
    main(["mnist/noise", "logit_l1", *words])
    assert trained() == 1  # the same name, but other images
