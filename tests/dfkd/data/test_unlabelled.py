"""Images without labels, pictures, and a hash of what was read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.data import PICTURES, fingerprint, load, read_picture, read_unlabelled


def save(path: Path, value: int, size: tuple[int, int] = (10, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)


def test_class_folders_give_all_their_images_and_their_names(tmp_path: Path) -> None:
    for number in range(10):
        save(tmp_path / ("cat" if number % 2 else "dog") / f"{number}.png", 20 * number, (9 + number, 12))
    images, classes = read_unlabelled(str(tmp_path), (1, 8, 8))
    assert classes == ("cat", "dog")
    assert sorted(images.x[:, 0, 0, 0].tolist()) == [20 * number for number in range(10)]
    assert len(read_unlabelled(str(tmp_path), (1, 8, 8), 4)[0]) == 4


def test_links_are_classes_and_what_is_hidden_is_none(tmp_path: Path) -> None:
    for place in (
        "elsewhere/0.png",
        "elsewhere/1.png",
        "root/dog/2.png",
        "root/.thumbnails/3.png",
        "root/dog/deep/4.png",
    ):
        save(tmp_path / place, 7)
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    images, classes = read_unlabelled(str(tmp_path / "root"), (1, 8, 8))
    assert classes == ("cat", "dog")
    assert len(images) == 4


def test_folders_to_train_and_to_test_on_without_classes_are_folders(tmp_path: Path) -> None:
    for place in ("train/a.png", "test/b.png", "c.png"):
        save(tmp_path / place, 7)
    images, classes = read_unlabelled(str(tmp_path), (1, 8, 8))
    assert (len(images), classes) == (3, ())


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"data: expected an .npz file or a folder of images, found the file '.*notes"):
        read_unlabelled(str(tmp_path / "notes.txt"), (1, 8, 8))


def test_class_folders_give_what_there_is_to_train_on(tmp_path: Path) -> None:
    for part, value in (("train", 10), ("test", 200)):
        for name in ("cat", "dog"):
            save(tmp_path / part / name / "0.png", value)
    images, classes = read_unlabelled(str(tmp_path), (1, 8, 8))
    assert classes == ("cat", "dog")
    assert images.x.shape == (2, 1, 8, 8)
    assert (images.x == 10).all()  # none of those to test on
    assert images.y is None


def test_images_beside_folders_are_taken_with_those_in_them(tmp_path: Path) -> None:
    for place in ("0.png", "cat/1.png", "dog/2.png", "dog/deep/3.png"):
        save(tmp_path / place, 7)
    images, classes = read_unlabelled(str(tmp_path), (1, 8, 8))
    assert classes == ()
    assert len(images) == 4


def test_a_limit_takes_the_same_ones_each_time(tmp_path: Path) -> None:
    for i in range(9):
        save(tmp_path / f"{i}.png", i)
    first, again = (read_unlabelled(str(tmp_path), (1, 8, 8), 4)[0].x for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.flatten(1)[:, 0].unique()) == 4
    assert read_unlabelled(str(tmp_path), (1, 8, 8), 20)[0].x.shape[0] == 9


def test_pictures(tmp_path: Path) -> None:
    for name in PICTURES:
        picture = read_picture(name, 3)
        assert picture.shape == (3, 427, 640)
        assert picture.dtype == torch.uint8
    grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
    torch.testing.assert_close(read_picture(PICTURES[-1], 1)[0].float(), grey, atol=0.51, rtol=0.0)
    save(tmp_path / "one.png", 9)
    assert torch.equal(read_picture(str(tmp_path / "one.png"), 3), torch.full((3, 10, 12), 9, dtype=torch.uint8))


def test_a_fingerprint_changes_with_what_is_there(tmp_path: Path) -> None:
    assert fingerprint("digits") == load("digits").digest
    assert fingerprint("china") == "china"
    save(tmp_path / "a.png", 1)
    save(tmp_path / "more" / "b.png", 2)
    seen = [fingerprint(str(tmp_path)), fingerprint(str(tmp_path / "a.png"))]
    assert fingerprint(str(tmp_path)) == seen[0]
    save(tmp_path / "more" / "b.png", 3)
    seen.append(fingerprint(str(tmp_path)))
    (tmp_path / "more" / "b.png").rename(tmp_path / "more" / "c.png")
    seen.append(fingerprint(str(tmp_path)))
    assert len(set(seen)) == 4
    with pytest.raises(ValueError, match=r"no such file or folder: 'nowhere.png'"):
        fingerprint("nowhere.png")
