"""What a saved generator says of itself, and its tensors, read without running anyone's code.

no paper. A generator is one safetensors file with its description in the metadata, or a folder of such files with the
description in dfkd.json. An error is one line that begins with `file:`.
"""

import difflib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["BESIDE", "absent", "check", "describe", "read_tensors", "write"]

BESIDE = "dfkd.json"
"""The description's file in a folder."""

_KEY = "dfkd_generator"  # in a file's metadata
_KINDS: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    "shape": (list, tuple),
    "low": (int, float),
    "high": (int, float),
    "classes": (int, type(None)),
    "class_names": (list, tuple, type(None)),
    "options": (dict,),
    "trained_on": (dict,),
    "steps": (int,),
    "seed": (int,),
}
_TRAINED_ON = ("source", "digest", "size", "limit")


def check(description: Any, where: str | Path) -> dict[str, Any]:
    """The description, where it is a whole one; ValueError that names what is missing or of another kind.

    kind: the registry's word. shape: of the images, (c, h, w). low, high: their box. classes: how many it is told, or
    None. class_names: theirs, or None. options: the settings of its kind. trained_on: `source` as the user named it,
    `digest` of the images, `size` and `limit` as they were read with. steps, seed: of the training.
    """
    if not isinstance(description, dict):
        raise ValueError(f"file: expected the description of a generator in {where}, found {description!r}")
    for key, kinds in _KINDS.items():
        if not isinstance(description.get(key, ...), kinds):
            raise ValueError(f"file: the description of {where} has no {key}, or another than is expected")
    shape = description["shape"]
    if len(shape) != 3 or not all(isinstance(side, int) and side >= 1 for side in shape):
        raise ValueError(f"file: the description of {where} has the shape {shape!r}, expected (c, h, w)")
    names, classes = description["class_names"], description["classes"]
    if names is not None and classes is not None and len(names) != classes:
        raise ValueError(f"file: the description of {where} has {len(names)} class_names for {classes} classes")
    missing = [key for key in _TRAINED_ON if key not in description["trained_on"]]
    if missing:
        raise ValueError(f"file: the description of {where} does not say what it was trained on ({missing[0]})")
    return {**description, "shape": tuple(shape)}


def describe(path: str | Path) -> dict[str, Any]:
    """The description of a saved generator, a file or a folder."""
    path = Path(path)
    if path.is_dir():
        return _described_beside(path)
    if not path.is_file():
        raise ValueError(f"file: no such file or folder: {absent(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"file: {_why_not(path, error)}") from None
    if text is None:
        raise ValueError(
            f"file: {path} is no generator; expected what `dfkd train-generator` wrote, found other weights"
        )
    return check(_json(text, path), path)


def absent(path: Path) -> str:
    """A path where nothing is, as words: itself, and what is there that is called most like it."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    with suppress(OSError):
        names = [beside.name for beside in missing.parent.iterdir()]
        for name in difflib.get_close_matches(missing.name, names, n=1):
            close = missing.parent / name
            whole = close / path.relative_to(missing)
            return f"{str(path)!r}; the nearest is {str(whole if whole.exists() else close)!r}"
    return repr(str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a generator's file, on the CPU."""
    path = Path(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"file: {_why_not(path, error)}") from None


def write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """One file of tensors and their description; an older one is replaced at once or not at all."""
    text = json.dumps(check(dict(description), path), allow_nan=False)
    # tied parameters are stored under each of their names, each with memory of its own
    owned = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}  # sync
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(owned, draft, metadata={_KEY: text})
        with draft.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"file: cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _described_beside(folder: Path) -> dict[str, Any]:
    beside = folder / BESIDE
    if not beside.is_file():
        inside = [path.name for path in sorted(folder.glob("generator*"))]
        hint = f"; perhaps {folder / inside[0]} is meant" if inside else ""
        raise ValueError(f"file: the folder {folder} is no generator, as it has no {BESIDE}{hint}")
    try:
        return check(_json(beside.read_text(encoding="utf-8"), beside), beside)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file: {beside} cannot be read ({error})") from None


def _json(text: str, where: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"file: the description of {where} is damaged ({error})") from None


def _why_not(path: Path, error: Exception) -> str:
    with suppress(OSError), path.open("rb") as file:
        start = file.read(4)
        if start[:2] == b"PK" or start[:1] == b"\x80":  # a zip of torch.save, or a bare pickle
            return f"{path} holds pickled objects, which could run code; expected a .safetensors file"
    reason = " ".join(str(error).split())
    return f"{path} is not a readable safetensors file, perhaps cut short ({reason})"
