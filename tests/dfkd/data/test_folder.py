"""Class folders: with and without a split of their own, and one line for each that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.data import load

RNG = np.random.default_rng(0)


def picture(path: Path, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    """Writes a random image and returns its values."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    values = RNG.integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def test_reads_the_split_that_is_there(tmp_path: Path) -> None:
    dog = picture(tmp_path / "train" / "dog" / "1.png")
    cat = picture(tmp_path / "train" / "cat" / "1.png")
    test = picture(tmp_path / "test" / "dog" / "deeper" / "9.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load(tmp_path)
    assert data.spec.class_names == ("cat", "dog")
    assert data.spec.shape == (3, 6, 5)
    assert data.train.y is not None
    assert data.test.y is not None
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 1], [1])
    for found, written in ((data.train.x[0], cat), (data.train.x[1], dog), (data.test.x[0], test)):
        assert np.array_equal(found.permute(1, 2, 0).numpy(), written)


def test_splits_what_has_none(tmp_path: Path) -> None:
    for n in range(10):
        for name in ("b", "a", "c"):
            picture(tmp_path / name / f"{n}.png", channels=1)
    data = load(tmp_path)
    assert data.spec.shape == (1, 6, 5)
    assert data.train.y is not None
    assert data.test.y is not None
    assert (data.train.y.bincount().tolist(), data.test.y.bincount().tolist()) == ([8, 8, 8], [2, 2, 2])
    rows = {row.numpy().tobytes() for part in (data.train, data.test) for row in part.x}
    assert len(rows) == 30


def test_one_coloured_image_makes_all_rgb(tmp_path: Path) -> None:
    grey = picture(tmp_path / "train" / "a" / "1.png", channels=1)
    picture(tmp_path / "train" / "b" / "1.png")
    picture(tmp_path / "test" / "a" / "1.png", channels=1)
    data = load(tmp_path)
    assert data.spec.shape == (3, 6, 5)
    assert all(np.array_equal(data.train.x[0, c].numpy(), grey) for c in range(3))


def test_size_makes_one_of_many(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "a" / f"{n}.png", height=6 + n)
        picture(tmp_path / "b" / f"{n}.png", width=9)
    assert load(tmp_path, size=4).train.x.shape[1:] == (3, 4, 4)
    with pytest.raises(
        ValueError, match=r"expected images of one size, 5x6 as .*0.png, found 5x7 in .*1.png; give a size"
    ):
        load(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 40, 40)
    picture(tmp_path / "b" / "1.png", 40, 40)
    short = tmp_path / "b" / "2.png"
    short.write_bytes((tmp_path / "b" / "1.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"data: .*2.png is not a readable image"):
        load(tmp_path)
    short.write_text("text")
    with pytest.raises(ValueError, match=r"data: .*2.png is not a readable image"):
        load(tmp_path)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: expected at least two class folders in .*, found 0"):
        load(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"data: expected images \(.png, .jpg, .jpeg, ...\) in .*, found none"):
        load(tmp_path)
    picture(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match=r"data: expected at least 3 images in .*, to train and to test on, found 1"):
        load(tmp_path)


def test_both_parts_have_one_size_and_known_classes(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a" / "1.png")
    picture(tmp_path / "train" / "b" / "1.png")
    picture(tmp_path / "test" / "a" / "1.png", height=9)
    with pytest.raises(ValueError, match=r"expected images of one size in .*, found others to train than to test"):
        load(tmp_path)
    picture(tmp_path / "test" / "bee" / "1.png")
    with pytest.raises(ValueError, match=r"test has the class 'bee', which .*train has not"):
        load(tmp_path)
