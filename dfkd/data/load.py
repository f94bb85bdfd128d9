"""From a source to a Dataset: `digits`, an .npz file, a folder of class folders, a bank, or torchvision's name."""

import functools
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dfkd.bank import is_bank
from dfkd.naming import nearest
from dfkd.types import InputSpec

from .arrays import Splits
from .bank import read_bank
from .folder import read_folder
from .npz import read_npz
from .sets import Dataset, ImageSet
from .torchvision_sets import DOWNLOAD_VARIABLE, ROOT_VARIABLE, TORCHVISION, read_torchvision

__all__ = ["SOURCES", "load"]

SOURCES = ("digits", *TORCHVISION)
"""What has a name, in capitals or not; everything else is a path."""

_NAMES = {name.lower(): name for name in SOURCES}

_LIMIT_SEED = 360
_CHUNK = 4096


def load(source: str | Path, *, size: int | None = None, limit: int | None = None) -> Dataset:
    """The same object for the same arguments, once per process.

    size: images are brought to size x size (bilinear, antialiased, rounded to uint8). limit: at most so many
    rows to train on, the first of a fixed permutation.
    """
    for name, value in (("size", size), ("limit", limit)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")
    known = _NAMES.get(str(source).lower())
    if known is None:
        path = Path(source).resolve()  # the same words may mean another file elsewhere
        # a file that was written again is read again
        stamp: tuple[object, ...] = (path, path.stat().st_mtime_ns if path.exists() else None)
    else:
        stamp = (os.environ.get(ROOT_VARIABLE), os.environ.get(DOWNLOAD_VARIABLE))
    return _load(known or str(source), size, limit, stamp)


@functools.lru_cache(maxsize=8)
def _load(source: str, size: int | None, limit: int | None, stamp: tuple[object, ...]) -> Dataset:
    del stamp  # part of the cache's key only
    splits = _read(source, size)
    if len(splits.classes) < 2:
        raise ValueError(f"data: expected at least two classes in {source}, found {len(splits.classes)}")
    x, y = splits.x_train, splits.y_train
    if limit is not None and limit < len(x):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_LIMIT_SEED))[:limit]
        x, y = x[order], y[order]
    train = ImageSet(_resize(x, size), y)
    test = ImageSet(_resize(splits.x_test, size), splits.y_test)
    c, h, w = train.x.shape[1:]
    spec = InputSpec((c, h, w), len(splits.classes), class_names=splits.classes)
    return Dataset(source, train, test, spec, train.digest + test.digest)


def _read(source: str, size: int | None) -> Splits:
    if source == "digits":
        from .digits import read_digits  # scikit-learn only where its data is wanted

        return read_digits()
    if source in TORCHVISION:
        return read_torchvision(source)
    path = Path(source)
    if path.is_dir():
        return read_bank(path) if is_bank(path) else read_folder(path, size)
    if path.is_file():
        if path.suffix != ".npz":
            raise ValueError(f"data: expected an .npz file or a folder of class folders, found {source!r}")
        return read_npz(path)
    if "/" in source or path.suffix:
        raise ValueError(f"data: no such file or folder: {source!r}")
    close = _NAMES[nearest(source.lower(), _NAMES) or "digits"]
    raise ValueError(f"data: unknown {source!r}, and no such file or folder; the nearest is {close!r}")


def _resize(x: Tensor, size: int | None) -> Tensor:
    """x (n, c, h, w) uint8 -> (n, c, size, size) uint8; in chunks, since floats take four times the memory."""
    if size is None or tuple(x.shape[2:]) == (size, size):
        return x
    parts = []
    for part in x.split(_CHUNK):
        scaled = functional.interpolate(
            part.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        parts.append(scaled.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts)
