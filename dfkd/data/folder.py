"""A folder of class folders: root/train/<class>/* and root/test/<class>/*, or root/<class>/* split here."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .arrays import Splits, stratified

__all__ = ["SUFFIXES", "is_split", "open_picture", "read_folder", "subfolders"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEST_SHARE = 0.2
SPLIT = ("train", "test")


def read_folder(root: Path, size: int | None) -> Splits:
    """Images of one size, or brought to size x size one by one; grey where all are grey, else RGB."""
    parts = [root / name for name in SPLIT]
    if is_split(root):
        classes = _classes(parts[0])
        extra = sorted(set(subfolders(parts[1])) - set(classes))
        if extra:
            raise ValueError(f"data: {parts[1]} has the class {extra[0]!r}, which {parts[0]} has not")
        found = [_files(part, classes) for part in parts]
    else:
        classes = _classes(root)
        found = [_files(root, classes)]
    pictures = [[open_picture(path, size) for path, _ in files] for files in found]
    grey = all(picture.ndim == 2 for part in pictures for picture in part)
    images = [_stack(part, [path for path, _ in files], grey) for part, files in zip(pictures, found, strict=True)]
    labels = [torch.tensor([label for _, label in files]) for files in found]
    if len(images) == 2:
        if images[0].shape[1:] != images[1].shape[1:]:
            raise ValueError(
                f"data: expected images of one size in {root}, found others to train than to test; give a size"
            )
        return Splits(images[0], labels[0], images[1], labels[1], classes)
    (x,), (y,) = images, labels
    test_rows = round(TEST_SHARE * len(x))
    if not 1 <= test_rows < len(x):
        raise ValueError(f"data: expected at least 3 images in {root}, to train and to test on, found {len(x)}")
    train, test = stratified(y, test_rows)
    return Splits(x[train], y[train], x[test], y[test], classes)


def is_split(root: Path) -> bool:
    """Whether it has folders to train and to test on."""
    return all((root / name).is_dir() for name in SPLIT)


def _classes(folder: Path) -> tuple[str, ...]:
    names = subfolders(folder)
    if len(names) < 2:
        raise ValueError(f"data: expected at least two class folders in {folder}, found {len(names)}")
    return tuple(names)


def subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    files = []
    for label, name in enumerate(classes):
        below = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else []
        files += [(path, label) for path in below if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        kinds = ", ".join(SUFFIXES[:3])
        raise ValueError(f"data: expected images ({kinds}, ...) in {folder}, found none; an .npz of arrays does, too")
    return files


def open_picture(path: Path, size: int | None = None, argument: str = "data") -> np.ndarray:
    """(h, w) where the file is grey, else (h, w, 3); an error names the argument that named the file."""
    try:
        with Image.open(path) as file:
            picture: Image.Image = file.convert("L" if file.mode in ("1", "L", "I;16") else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{argument}: {path} is not a readable image ({error})") from None
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # Pillow's is antialiased
    return np.asarray(picture)


def _stack(pictures: list[np.ndarray], paths: list[Path], grey: bool) -> Tensor:
    shape = pictures[0].shape[:2]
    for picture, path in zip(pictures, paths, strict=True):
        if picture.shape[:2] != shape:
            raise ValueError(
                f"data: expected images of one size, {shape[1]}x{shape[0]} as {paths[0]}, "
                f"found {picture.shape[1]}x{picture.shape[0]} in {path}; give a size"
            )
    if not grey:
        pictures = [np.repeat(p[..., None], 3, axis=2) if p.ndim == 2 else p for p in pictures]
    x = np.stack(pictures)
    x = x[:, None] if grey else x.transpose(0, 3, 1, 2)
    return torch.from_numpy(x.copy())
