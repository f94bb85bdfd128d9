"""What a sampler draws, as PNG files inside the page."""

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .run import Bank

__all__ = ["LARGEST", "Picture", "Pixels", "pictures", "png", "png_uri", "shrink"]

Pixels = NDArray[np.uint8]
LARGEST = 96  # pixels a side; larger images are averaged down, so that a page stays a few megabytes


@dataclass(frozen=True)
class Picture:
    """uri: the image itself. caption: the class it was drawn for, empty without one. small: shown with hard pixels."""

    uri: str
    caption: str
    small: bool


def pictures(bank: Bank, class_names: list[str] | None, most: int = 16) -> list[Picture]:
    """The first images of a bank: not picked, so that they show what the student saw."""
    found = []
    for position in range(min(most, len(bank.x))):
        image = shrink(bank.x[position])
        caption = ""
        if bank.target is not None:
            target = int(bank.target[position])
            named = class_names is not None and 0 <= target < len(class_names)
            caption = class_names[target] if named and class_names is not None else str(target)
        found.append(Picture(png_uri(image), caption, image.shape[1] <= 64))
    return found


def shrink(image: Pixels) -> Pixels:
    """(c, h, w) -> means over whole blocks, until no side is over LARGEST."""
    c, h, w = image.shape
    block = -(-max(h, w) // LARGEST)
    if block == 1:
        return image
    h, w = max(h // block, 1), max(w // block, 1)
    cut = image[:, : h * block, : w * block].astype(np.float64)
    mean: NDArray[np.float64] = cut.reshape(c, h, cut.shape[1] // h, w, cut.shape[2] // w).mean(axis=(2, 4))
    return np.rint(mean).astype(np.uint8)


def png(image: Pixels) -> bytes:
    """(c, h, w) uint8 -> a PNG file, grey for one channel, red green blue for three; of others the first is shown."""
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (c, h, w) uint8, found {image.shape} {image.dtype}")
    shown = image if image.shape[0] == 3 else image[:1]
    c, h, w = shown.shape
    rows = np.concatenate([np.zeros((h, 1), np.uint8), shown.transpose(1, 2, 0).reshape(h, w * c)], axis=1)
    header = struct.pack(">IIBBBBB", w, h, 8, 2 if c == 3 else 0, 0, 0, 0)  # a row starts with its filter: none
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_uri(image: NDArray[Any]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
