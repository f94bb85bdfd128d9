"""Images whose labels nobody asks for: one picture, or all those of a source, as the teacher takes them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dfkd.bank import is_bank, read_index
from dfkd.naming import nearest

from .folder import SUFFIXES, is_split, open_picture, subfolders
from .load import SOURCES, load
from .sets import ImageSet

__all__ = ["PICTURES", "fingerprint", "read_picture", "read_unlabelled"]

PICTURES = ("china", "flower")
"""Photographs of 427x640 pixels that scikit-learn brings."""

_LIMIT_SEED = 360
_CHUNK = 4096


def read_picture(source: str, channels: int) -> Tensor:
    """One image file, or one of PICTURES, as (channels, h, w) uint8; grey or RGB, whatever it was."""
    if channels not in (1, 3):
        raise ValueError(f"image: expected a teacher of 1 or 3 channels, found {channels}")
    path = Path(source)
    if source in PICTURES:
        from sklearn.datasets import load_sample_image  # only where it is wanted

        pixels: np.ndarray = load_sample_image(f"{source}.jpg")
    elif path.is_file():
        pixels = open_picture(path, None, "image")
    elif path.is_dir():
        raise ValueError(f"image: expected one image file, found the folder {source!r}")
    elif "/" in source or path.suffix:
        raise ValueError(f"image: no such file: {source!r}")
    else:
        close = nearest(source, PICTURES) or PICTURES[0]
        raise ValueError(f"image: unknown {source!r}, and no such file; the nearest is {close!r}")
    return _channels(_planes([pixels]), channels)[0]


def read_unlabelled(
    source: str, shape: tuple[int, int, int], limit: int | None = None
) -> tuple[ImageSet, tuple[str, ...]]:
    """What there is to train on of any source that `load` reads, or all images below a folder without classes.

    Brought to `shape` (c, h, w): scaled to fill it, grey made of colours or colours of grey. limit: at most so many
    rows, the first of a fixed permutation. Beside them the names of the classes, () where there are none. Of a folder
    all images are read, in class folders or not, but where it has those to train and to test on apart.
    """
    c, h, w = shape
    folder = Path(source)
    named = source.lower() in {name.lower() for name in SOURCES}
    if not named and folder.is_file() and folder.suffix != ".npz":
        raise ValueError(f"data: expected an .npz file or a folder of images, found the file {source!r}")
    of_images = not named and folder.is_dir() and not is_bank(folder)
    classes = tuple(subfolders(folder)) if of_images and _has_classes(folder) else ()
    if of_images and not (classes and is_split(folder)):
        # one by one, so that a folder that is a link is read and one that is hidden is not
        places = [folder / name for name in classes] or [folder]
        paths = sorted(
            path for place in places for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not paths:
            raise ValueError(
                f"data: expected images ({', '.join(SUFFIXES[:3])}, ...) in {folder}, found none; "
                "dead_leaves, spectrum and shader need no data"
            )
        if limit is not None and limit < len(paths):
            order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(_LIMIT_SEED))[:limit]
            paths = [paths[i] for i in order.tolist()]
        pictures = [np.asarray(Image.fromarray(open_picture(path)).resize((w, h), _BILINEAR)) for path in paths]
        x = torch.cat([_channels(_planes([picture]), c) for picture in pictures])
        return ImageSet(x), classes
    dataset = load(source, size=max(h, w), limit=limit)
    x = dataset.train.x
    if x.shape[2:] != (h, w):
        x = torch.cat([_squeeze(part, h, w) for part in x.split(_CHUNK)])
    return ImageSet(_channels(x, c)), dataset.spec.class_names or ()


_BILINEAR: Any = Image.Resampling.BILINEAR  # Pillow's is antialiased


def fingerprint(source: str) -> str:
    """A hash of all bytes of an image, a file or a folder; of a named set, of its images and labels."""
    path = Path(source)
    if source.lower() in {name.lower() for name in SOURCES}:
        return load(source).digest
    if source in PICTURES:
        return source
    if not path.exists():
        raise ValueError(f"data: no such file or folder: {source!r}")
    hasher = hashlib.blake2b(digest_size=8)
    if is_bank(path):  # of its images alone, which are checked when they are read: pictures of them may come later
        hasher.update("".join(f"{shard['digest']}\n" for shard in read_index(path)["shards"]).encode())
        return hasher.hexdigest()
    files = [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())
    for file in files:
        content = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        hasher.update(f"{file.relative_to(path) if path.is_dir() else ''}\0{content}\n".encode())
    return hasher.hexdigest()


def _has_classes(folder: Path) -> bool:
    """Folders in it, and no images beside them."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sum(entry.is_dir() for entry in entries) >= 2 and not any(e.suffix.lower() in SUFFIXES for e in entries)


def _planes(pictures: list[np.ndarray]) -> Tensor:
    """(h, w) or (h, w, 3) each, all alike -> (n, c, h, w)."""
    x = np.stack(pictures)
    return torch.from_numpy((x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)).copy())


def _channels(x: Tensor, channels: int) -> Tensor:
    """(n, c, h, w) uint8 -> (n, channels, h, w), by the weights of red, green and blue in what the eye calls bright."""
    if x.shape[1] == channels:
        return x
    if x.shape[1] == 1 and channels == 3:
        return x.expand(-1, 3, -1, -1).contiguous()
    if x.shape[1] == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114])
        parts = [torch.einsum("nchw,c->nhw", part.float(), weights) for part in x.split(_CHUNK)]
        return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])[:, None]
    raise ValueError(f"data: expected a teacher of 1 or 3 channels, found {channels} and images of {x.shape[1]}")


def _squeeze(x: Tensor, h: int, w: int) -> Tensor:
    scaled = functional.interpolate(x.float(), (h, w), mode="bilinear", antialias=True, align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)
