"""Images as one uint8 tensor, which travels to a device whole and becomes pixels there."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.pixels import to_pixels
from dfkd.types import InputSpec

__all__ = ["Dataset", "ImageSet"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """x (n, c, h, w) uint8; y (n,) int64 labels or None."""

    x: Tensor
    y: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise ValueError(f"x: expected uint8 (n, c, h, w), found {self.x.dtype} {tuple(self.x.shape)}")
        if self.y is not None and (self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]):
            raise ValueError(
                f"y: expected int64 of shape ({len(self)},), found {self.y.dtype} of shape {tuple(self.y.shape)}"
            )

    def __len__(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device | str) -> "ImageSet":
        return ImageSet(self.x.to(device), None if self.y is None else self.y.to(device))

    def pixels(self, index: Tensor | slice | None, spec: InputSpec) -> Tensor:
        """These rows (None: all) as float32 in the spec's box: low for 0, high for 255."""
        return to_pixels(self.x if index is None else self.x[index], spec)

    def first(self, rows: int) -> "ImageSet":
        return ImageSet(self.x[:rows], None if self.y is None else self.y[:rows])

    @property
    def digest(self) -> str:
        """A hash of all images and labels."""
        hasher = hashlib.blake2b(digest_size=8)
        for value in (self.x, self.y):
            if value is not None:
                hasher.update(f"{tuple(value.shape)}".encode())
                hasher.update(value.cpu().contiguous().numpy().tobytes())
        return hasher.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named pair of image sets of one spec; digest: a hash of all their bytes. Of a bank of draws `test` is empty."""

    name: str
    train: ImageSet
    test: ImageSet
    spec: InputSpec
    digest: str

    def require_test(self, who: str) -> ImageSet:
        """The rows to test on; ValueError where there are none, as in a bank of draws."""
        if not len(self.test):
            raise ValueError(f"{who}: expected data with rows to test on, found none in {self.name}, a bank of draws")
        return self.test
