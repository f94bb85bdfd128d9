"""The studies that are comparisons: their words, files and tables; on data sets of a few drawn images."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from dfkd import config
from dfkd.config import CompareConfig
from experiments.__main__ import HERE, main, studies


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the study is run: two data sets of the sizes of MNIST's and CIFAR-10's images, with few of them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, shape in (("mnist.npz", (28, 28)), ("cifar10.npz", (32, 32, 3))):
        parts = {
            f"{what}_{part}": rng.integers(0, 256, (40, *shape), dtype=np.uint8) if what == "x" else np.arange(40) % 10
            for what in "xy"
            for part in ("train", "test")
        }
        np.savez(tmp_path / name, allow_pickle=False, **parts, classes=np.array([str(i) for i in range(10)]))
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", studies())
def test_every_size_is_a_comparison(name: str) -> None:
    """All settings are known and all samplers can be built, those that read files too."""
    study = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    assert {"common", "sizes"} <= set(study) <= {"common", "published", "shown", "sizes"}
    for size in study["sizes"].values():
        parsed: CompareConfig = config.parse(CompareConfig, study["common"] | size)
        assert len(parsed.samplers) >= 2
        assert set(parsed.seeds) in ({0}, {0, 1, 2})
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected one of .*mnist/lenet5, mnist/lenet5_bn, mnist/noise.* first, found ''"),
        (["lenet5"], "expected one of .*mnist/lenet5, .* first, found 'lenet5'"),
        (["mnist/noise"], "expected one of base, .* next, found ''"),
        (["mnist/noise", "base", "bigger"], "next, found 'bigger'"),
    ],
)
def test_names_what_there_is(words: list[str], said: str, folder: Path) -> None:
    with pytest.raises(SystemExit, match=said):
        main(words)
    assert not (folder / "runs").exists()
