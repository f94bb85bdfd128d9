"""Image sets by name, file or folder, each held as one uint8 tensor."""

from .load import SOURCES, load
from .sets import Dataset, ImageSet

__all__ = ["SOURCES", "Dataset", "ImageSet", "load"]
