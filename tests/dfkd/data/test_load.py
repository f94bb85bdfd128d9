"""Sources by name, sizes, limits, and the default data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dfkd.data import SOURCES, digits, load
from dfkd.data.arrays import stratified
from dfkd.data.digits import read_digits


def test_digits_are_a_fixed_stratified_split_of_all_rows() -> None:
    data = load("digits")
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.spec.shape == (1, 8, 8)
    assert data.spec.class_names == tuple("0123456789")
    assert data.train.y is not None
    assert data.test.y is not None
    whole = np.bincount(load_digits().target)
    for y, share in ((data.train.y, 1437 / 1797), (data.test.y, 360 / 1797)):
        assert np.abs(np.bincount(y.numpy()) - whole * share).max() < 1.0
    images = [row.tobytes() for row in np.rint(load_digits().images * 255 / 16).astype(np.uint8)]
    found = [row.numpy().tobytes() for row in torch.cat([data.train.x, data.test.x])]
    assert sorted(found) == sorted(images)  # every row once


def test_digits_keep_their_labels() -> None:
    bunch, data = load_digits(), load("digits")
    label = {
        np.rint(i * 255 / 16).astype(np.uint8).tobytes(): int(y)
        for i, y in zip(bunch.images, bunch.target, strict=True)
    }
    for part in (data.train, data.test, load("digits", limit=100).train):
        assert part.y is not None
        assert [label[row.numpy().tobytes()] for row in part.x] == part.y.tolist()


def test_digits_are_the_same_everywhere() -> None:
    """A change of this value makes older results another data set's."""
    assert load("digits").digest == "6055b38b8a6c22dd3931e550304898e9"


def test_digits_are_the_same_where_the_packages_file_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    asked = read_digits()
    monkeypatch.undo()
    file = read_digits()
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(asked, name), getattr(file, name))
    assert asked.classes == file.classes


def test_is_read_once_per_process() -> None:
    assert load("digits") is load("digits")
    assert load("digits", limit=10) is load("digits", limit=10)
    assert load("digits", limit=10) is not load("digits")


def test_limit_takes_rows_of_a_fixed_permutation() -> None:
    few, more, whole = load("digits", limit=100), load("digits", limit=300), load("digits")
    assert (len(few.train), len(more.train), len(few.test)) == (100, 300, 360)
    assert torch.equal(few.train.x, more.train.x[:100])
    assert few.train.y is not None
    assert few.train.y.unique().numel() == 10
    assert not torch.equal(few.train.x, whole.train.x[:100])
    assert few.digest != whole.digest
    assert torch.equal(load("digits", limit=5000).train.x, whole.train.x)


def test_size_is_antialiased_and_rounded() -> None:
    data = load("digits", size=4)
    assert data.spec.shape == (1, 4, 4)
    assert data.train.x.dtype == torch.uint8
    # triangles of four source pixels per target pixel: weights 1, 3, 3, 1 inside, cut off at the edge
    weights = torch.zeros(4, 8)
    for row in range(4):
        for place, weight in zip(range(2 * row - 1, 2 * row + 3), (1.0, 3.0, 3.0, 1.0), strict=True):
            if 0 <= place < 8:
                weights[row, place] = weight
    weights /= weights.sum(dim=1, keepdim=True)
    slow = weights @ load("digits").train.x.float() @ weights.T
    assert (data.train.x.float() - slow).abs().max() <= 0.5 + 1e-3
    assert load("digits", size=32).train.x.shape == (1437, 1, 32, 32)
    assert load("digits", size=8).digest == load("digits").digest


def test_split_shares_out_rows_as_the_classes_are() -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    train, test = stratified(y, 10)
    assert y[test].bincount().tolist() == [5, 3, 2]
    assert sorted(train.tolist() + test.tolist()) == list(range(100))
    assert torch.equal(stratified(y, 10)[1], test)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "data: unknown 'digit', and no such file or folder; the nearest is 'digits'"),
        ("cifr10", "data: unknown 'cifr10', and no such file or folder; the nearest is 'CIFAR10'"),
        ("nowhere/x", "data: no such file or folder: 'nowhere/x'"),
        ("nowhere.npz", "data: no such file or folder: 'nowhere.npz'"),
    ],
)
def test_names_the_nearest(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(source)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("1,2")
    with pytest.raises(
        ValueError, match=r"data: expected an .npz file or a folder of class folders, found .*images.csv"
    ):
        load(tmp_path / "images.csv")


@pytest.mark.parametrize(
    ("size", "limit", "message"),
    [(0, None, "size: expected an integer >= 1, found 0"), (None, -5, "limit: expected an integer >= 1, found -5")],
)
def test_refuses_sizes_and_limits_below_one(size: int | None, limit: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("digits", size=size, limit=limit)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "digits"])
def test_absent_torchvision_sets_say_where_they_were_looked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    monkeypatch.delenv("DFKD_DOWNLOAD", raising=False)
    with pytest.raises(ValueError, match=rf"data: {name} is not in .*; set DFKD_DATA to where it is") as caught:
        load(name.lower())
    assert "\n" not in str(caught.value)
