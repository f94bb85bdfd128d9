"""scikit-learn's 1797 handwritten digits, 8x8, that come with it: nothing to download.

Alpaydin, Kaynak: Optical Recognition of Handwritten Digits. 1998. doi:10.24432/C50P49. Values 0 to 16 are scaled to
0 to 255; 1437 rows to train and 360 to test, the same share of each class, always the same ones.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits

from .arrays import Splits, stratified

__all__ = ["read_digits"]

TEST_ROWS = 360


def read_digits() -> Splits:
    bunch = load_digits()
    x = torch.from_numpy(np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8))[:, None]
    y = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = stratified(y, TEST_ROWS)
    return Splits(x[train], y[train], x[test], y[test], tuple(str(name) for name in bunch.target_names))
