"""What every source is turned into, and the fixed split of those that have none."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Splits", "stratified"]

SPLIT_SEED = 1437


@dataclass(frozen=True, eq=False)
class Splits:
    """x (n, c, h, w) uint8 and y (n,) int64, to train and to test, and the names of the classes."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]


def stratified(y: Tensor, test_rows: int) -> tuple[Tensor, Tensor]:
    """Indices of the rows to train and to test on, each in order, with test_rows shared out as the classes are.

    The same for equal labels. Classes get their share rounded down; the largest remainders get one row more.
    """
    labels = y.numpy()
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (test_rows / len(labels))
    taken = np.floor(exact).astype(int)
    order = np.argsort(-(exact - taken), kind="stable")
    taken[order[: test_rows - int(taken.sum())]] += 1
    rng = np.random.default_rng(SPLIT_SEED)
    test = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, taken, strict=True)]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate(test)] = True
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))
