"""Image sets by name, file or folder, each held as one uint8 tensor."""

from .load import SOURCES, load
from .sets import Dataset, ImageSet
from .unlabelled import PICTURES, fingerprint, read_picture, read_unlabelled

__all__ = [
    "PICTURES",
    "SOURCES",
    "Dataset",
    "ImageSet",
    "fingerprint",
    "load",
    "read_picture",
    "read_unlabelled",
]
