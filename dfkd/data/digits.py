"""scikit-learn's 1797 handwritten digits, 8x8, that come with it: nothing to download.

Alpaydin, Kaynak: Optical Recognition of Handwritten Digits. 1998. doi:10.24432/C50P49. Values 0 to 16 are scaled to
0 to 255; 1437 rows to train and 360 to test, the same share of each class, always the same ones.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arrays import Splits, stratified

__all__ = ["read_digits"]

TEST_ROWS = 360


def read_digits() -> Splits:
    images, target = _rows()
    x = torch.from_numpy(np.rint(images * (255.0 / 16.0)).astype(np.uint8))[:, None]
    y = torch.from_numpy(target.astype(np.int64))
    train, test = stratified(y, TEST_ROWS)
    return Splits(x[train], y[train], x[test], y[test], tuple(str(digit) for digit in range(10)))


def _rows() -> tuple[Any, Any]:
    """Images (1797, 8, 8) and classes (1797,), as `load_digits` gives them.

    From the package's file where it lies in its place: importing the package itself takes seconds, in every process.
    """
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt", encoding="ascii") as text:
                table = np.loadtxt(text, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target
