"""torchvision's layouts: files in the original format, read from a folder of one's own."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from dfkd.data import load
from dfkd.data.torchvision_sets import TORCHVISION

RNG = np.random.default_rng(0)


def test_names_are_torchvisions() -> None:
    assert all(hasattr(datasets, name) for name in TORCHVISION)


def test_reads_the_original_mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    written: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, n in (("train", 5), ("t10k", 3)):
        x, y = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8), RNG.integers(0, 10, n, dtype=np.uint8)
        written[part] = (x, y)
        header = b"".join(size.to_bytes(4, "big") for size in (2051, n, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + x.tobytes())
        header = b"".join(size.to_bytes(4, "big") for size in (2049, n))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + y.tobytes())
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    data = load("mnist")
    assert data.spec.num_classes == 10
    assert data.name == "MNIST"
    for images, (x, y) in zip((data.train, data.test), written.values(), strict=True):
        assert images.y is not None
        assert np.array_equal(images.x[:, 0].numpy(), x)
        assert np.array_equal(images.y.numpy(), y)


def test_reads_the_original_cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows[name] = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows[name], "labels": [3, 9]}))
    classes = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load("CIFAR10")
    assert data.spec.class_names == tuple(classes)
    assert data.train.x.shape == (10, 3, 32, 32)
    assert np.array_equal(data.test.x.reshape(2, -1).numpy(), rows["test_batch"])
    assert data.test.y is not None
    assert data.test.y.tolist() == [3, 9]
