"""An .npz file: layouts that are read, and one line for each that is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfkd.data import load
from dfkd.data.npz import read_npz

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


def write(path: Path, **changes: Any) -> Path:
    arrays = {"x_train": RGB, "y_train": Y, "x_test": RGB[:4], "y_test": Y[:4], "classes": np.array(["a", "b", "c"])}
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    return path


def test_channels_come_last(tmp_path: Path) -> None:
    data = load(write(tmp_path / "x.npz"))
    assert data.spec.shape == (3, 5, 4)
    assert data.spec.class_names == ("a", "b", "c")
    for n in range(6):
        for c in range(3):
            assert data.train.x[n, c].tolist() == RGB[n, :, :, c].tolist()
    assert data.train.y is not None
    assert data.train.y.tolist() == Y.tolist()
    assert data.train.x.is_contiguous()
    assert len(data.test) == 4


@pytest.mark.parametrize("layout", ["n h w", "n h w 1"])
def test_grey_images_have_one_channel(layout: str, tmp_path: Path) -> None:
    grey = GREY if layout == "n h w" else GREY[..., None]
    data = load(write(tmp_path / "x.npz", x_train=grey, x_test=grey[:4]))
    assert torch.equal(data.train.x, torch.from_numpy(GREY)[:, None])


def test_classes_may_be_absent(tmp_path: Path) -> None:
    assert load(write(tmp_path / "x.npz", classes=None)).spec.class_names == ("0", "1", "2")
    column = load(write(tmp_path / "z.npz", y_train=Y[:, None].astype(np.int32))).train.y
    assert column is not None
    assert column.tolist() == Y.tolist()


def test_a_file_written_again_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz")
    before = load(path)
    assert load(path) is before
    write(path, x_train=RGB[::-1])
    assert load(path).digest != before.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, r"x.npz has no array 'x_test'; the nearest is '\w_t\w+'"),
        ({"x_train": RGB.astype(np.float32)}, "expected uint8 images in x_train of .*x.npz, found float32"),
        ({"x_train": RGB.transpose(0, 3, 1, 2)}, r"in x_train of .*, found \(6, 3, 5, 4\); channels come last"),
        ({"x_train": RGB[0], "x_test": RGB[1]}, "expected 5 labels in y_train of .*, one for each image, found 6"),
        ({"x_train": RGB[:, 0, 0, 0]}, r"expected \(n, h, w\), .* in x_train of .*, found \(6,\)"),
        ({"x_test": RGB[:0], "y_test": Y[:0]}, r"expected at least one image in x_test"),
        ({"x_test": GREY[:4]}, r"expected images of one shape in .*x.npz, found \(3, 5, 4\) and \(1, 5, 4\)"),
        ({"y_train": Y[:5]}, "expected 6 labels in y_train of .*x.npz, one for each image, found 5"),
        ({"y_train": Y.astype(np.float32)}, "expected integer labels .* in y_train of .*, found float32"),
        ({"y_train": np.eye(6, dtype=np.int64)}, r"expected integer labels .* found int64 \(6, 6\)"),
        ({"y_test": Y[:4] + 1}, "expected labels from 0 to 2 in y_test of .*x.npz, found 3"),
        ({"y_test": Y[:4].astype(int) - 1}, "expected labels from 0 to 2 in y_test of .*x.npz, found -1"),
        ({"y_test": Y[:4].astype(int) - 1, "classes": None}, "expected labels >= 0 in y_test of .*x.npz, found -1"),
        ({"classes": np.array([{"a": 1}, "b", "c"], dtype=object)}, "x.npz is not a readable .npz file: .*pickled"),
        ({"y_train": 0 * Y, "y_test": 0 * Y[:4], "classes": None}, "expected at least two classes in .*x.npz, found 1"),
    ],
)
def test_one_line_for_each_fault(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(write(tmp_path / "x.npz", **changes))
    assert "\n" not in str(caught.value)


def test_a_file_of_test_images_alone_is_for_those_who_ask(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", x_train=None, y_train=None)
    found = read_npz(path, test_alone=True)
    assert (found.x_train.shape, found.y_train.shape) == ((0, 3, 5, 4), (0,))
    assert torch.equal(found.x_test, torch.from_numpy(RGB[:4].transpose(0, 3, 1, 2).copy()))
    assert (found.y_test.tolist(), found.classes) == ([0, 1, 2, 0], ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"^data: expected images to train on in .*x.npz \(x_train, y_train\), found"):
        load(path)
    unnamed = write(tmp_path / "y.npz", x_train=None, y_train=None, classes=None)
    assert read_npz(unnamed, test_alone=True).classes == ("0", "1", "2")


@pytest.mark.parametrize("missing", [{"x_train": None}, {"y_test": None, "x_train": None, "y_train": None}])
def test_half_a_pair_is_refused_to_those_too(missing: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no array '(x_train|y_train|y_test)'"):
        read_npz(write(tmp_path / "x.npz", **missing), test_alone=True)


@pytest.mark.parametrize("kept", [0, 10, 400, 0.5, 0.99])
def test_a_file_cut_short_is_refused(kept: float, tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"data: .*x.npz is not a readable .npz file"):
        load(path)


def test_damaged_bytes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz")
    content = bytearray(path.read_bytes())
    content[content.find(RGB.tobytes()) + 5] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data: .*x.npz is not a readable .npz file"):
        load(path)


def test_a_bare_array_or_a_text_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, RGB)
    (tmp_path / "b.npz").write_text("not arrays")
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match=rf"{name} is not a readable .npz file"):
            load(tmp_path / name)
