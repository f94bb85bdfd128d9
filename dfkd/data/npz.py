"""An .npz file with x_train, y_train, x_test, y_test and, if there are names, classes."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfkd.naming import nearest

from .arrays import Splits

__all__ = ["read_npz"]

NEEDED = ("x_train", "y_train", "x_test", "y_test")
TRAIN = NEEDED[:2]


def read_npz(path: Path, *, test_alone: bool = False) -> Splits:
    """uint8 images (n, h, w), (n, h, w, 1) or (n, h, w, 3), integer labels (n,); pickled arrays are refused.

    test_alone: a file that has neither of x_train and y_train is read too, for those who train on none of it; its rows
    to train on are none.
    """
    arrays = _arrays(path)
    if not any(name in arrays for name in TRAIN) and "x_test" in arrays:
        if not test_alone:
            raise ValueError(
                f"data: expected images to train on in {path} (x_train, y_train), found those of x_test alone"
            )
        if "y_test" in arrays:
            arrays |= {"x_train": arrays["x_test"][:0], "y_train": arrays["y_test"][:0]}
    for name in NEEDED:
        if name not in arrays:
            close = nearest(name, set(arrays) - {*NEEDED, "classes"} or arrays)  # a misspelt one first
            hint = f"; the nearest is {close!r}" if close else ""
            raise ValueError(f"data: {path} has no array {name!r}{hint}")
    images = {
        part: _images(arrays[f"x_{part}"], f"x_{part} of {path}", may_be_empty=test_alone and part == "train")
        for part in ("train", "test")
    }
    if images["train"].shape[1:] != images["test"].shape[1:]:
        shapes = " and ".join(str(tuple(x.shape[1:])) for x in images.values())
        raise ValueError(f"data: expected images of one shape in {path}, found {shapes} (c, h, w)")
    classes = tuple(str(name) for name in arrays["classes"].ravel()) if "classes" in arrays else None
    labels = {
        part: _labels(arrays[f"y_{part}"], len(images[part]), classes, f"y_{part} of {path}")
        for part in ("train", "test")
    }
    if classes is None:
        classes = tuple(str(c) for c in range(1 + max(int(y.max()) for y in labels.values() if len(y))))
    return Splits(images["train"], labels["train"], images["test"], labels["test"], classes)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as opened:  # NumPy leaves a file open that it cannot read
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one bare array")
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds pickled objects" if "allow_pickle" in str(error) else f"perhaps cut short ({error})"
        raise ValueError(f"data: {path} is not a readable .npz file: {reason}") from None


def _images(x: np.ndarray, where: str, may_be_empty: bool = False) -> Tensor:
    if x.dtype != np.uint8:
        raise ValueError(f"data: expected uint8 images in {where}, found {x.dtype}")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        hint = "; channels come last" if x.ndim == 4 and x.shape[1] in (1, 3) else ""
        raise ValueError(f"data: expected (n, h, w), (n, h, w, 1) or (n, h, w, 3) in {where}, found {x.shape}{hint}")
    if x.size == 0 and not may_be_empty:
        raise ValueError(f"data: expected at least one image in {where}, found {x.shape}")
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def _labels(y: np.ndarray, rows: int, classes: tuple[str, ...] | None, where: str) -> Tensor:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"data: expected integer labels (n,) in {where}, found {y.dtype} {y.shape}")
    if len(y) != rows:
        raise ValueError(f"data: expected {rows} labels in {where}, one for each image, found {len(y)}")
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or (classes is not None and high >= len(classes)):
        legal = "labels >= 0" if classes is None else f"labels from 0 to {len(classes) - 1}"
        raise ValueError(f"data: expected {legal} in {where}, found {low if low < 0 else high}")
    return torch.from_numpy(y.astype(np.int64))
