"""A small labelled problem on disk, a teacher for it, the command line in this process, another in its way."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dfkd import models
from dfkd.cli import main
from dfkd.rng import initialised
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 4, class_names=tuple("abcd"))


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """run("list", "samplers") runs the command in this process."""

    def command(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["dfkd", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        status = end.value.code
        return Said(status if isinstance(status, int) else 0, out, err)

    return command


ALONE = """
import sys, time
from pathlib import Path
from dfkd.files import alone_with
with alone_with(Path(sys.argv[1])):
    print("there", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[3]).touch()
"""

Alone = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture
def other_process(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """other_process(file, seconds=60.0, left=None): inside, another process is alone with the file, for so long.

    left: a file that it makes before it leaves, unless it is killed.
    """

    tmp_path = tmp_path_factory.mktemp("left")

    @contextmanager
    def alone(file: Path, seconds: float = 60.0, left: Path | None = None) -> Iterator["subprocess.Popen[str]"]:
        words = [sys.executable, "-c", ALONE, str(file), str(seconds), str(left or tmp_path / "has left")]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != "there\n":
                    raise subprocess.CalledProcessError(process.wait(), words)  # somebody else is
                yield process
            finally:
                process.kill()

    return alone


@pytest.fixture(scope="session")
def quadrants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 8x8 grey images, 4 classes: the quadrant that is bright. 80 to train on, 24 to test."""
    rng = np.random.default_rng(4)
    arrays: dict[str, np.ndarray] = {}
    for part, n in (("train", 80), ("test", 24)):
        y = np.arange(n) % 4
        x = rng.integers(0, 120, (n, 8, 8))
        for row, label in enumerate(y):
            x[row, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 90
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": y.astype(np.int64)}
    path = tmp_path_factory.mktemp("data") / "quadrants.npz"
    np.savez(path, classes=np.array(list("abcd")), **arrays)  # type: ignore[arg-type]  # names of arrays
    return path


def _network(seed: int = 0, width: int = 4) -> nn.Module:
    with initialised(seed):
        module = models.build("digits_cnn", SPEC, width=width)
        for _ in range(5):
            module.train()(torch.rand(32, *SPEC.shape))
    return module.eval()


@pytest.fixture(scope="session")
def network() -> Callable[..., nn.Module]:
    """network(seed, width) is a digits CNN for the quadrants, with stored statistics that have moved."""
    return _network


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights of two networks of ours for the quadrants, as files that name how they are built."""
    folder = tmp_path_factory.mktemp("teachers")
    paths = folder / "first.safetensors", folder / "second.safetensors"
    for seed, path in enumerate(paths):
        models.save(path, _network(seed), reference="digits_cnn", spec=SPEC, options={"width": 4})
    return paths
