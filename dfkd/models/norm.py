"""What stands behind a convolution: BatchNorm, or one that knows no other rows.

Wu, He: Group Normalization. 2018. arXiv:1803.08494; of one group, over all channels and positions of a row.
"""

from collections.abc import Callable

from torch import nn

from dfkd.naming import unknown

__all__ = ["NORMS", "norm2d"]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(1, channels),
}


def norm2d(kind: str, channels: int) -> nn.Module:
    """A fresh one for so many channels."""
    if kind not in NORMS:
        raise unknown("norm", kind, NORMS)
    return NORMS[kind](channels)
