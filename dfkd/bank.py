"""A bank: images that a sampler drew and what a teacher says of them, in a folder that names what they were made from.

index.json says what the images are and lists the shards, each with its hash: x (n, c, h, w) uint8, logits (n, k)
float32, label (n,) int64, the teacher's class, and target (n,) int64, the class aimed at, where the sampler aims. A
shard is written whole before the index lists it, so that what the index lists is there, whenever the writing ends.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

__all__ = ["FORMAT", "INDEX", "digest", "is_bank", "made_from", "read_index", "read_shard", "shard_name", "shards"]

INDEX = "index.json"
FORMAT = "dfkd bank 1"
_PATTERN = "shard-*.safetensors"
_NEEDED: Mapping[str, type] = {
    "rows": int,
    "wanted": int,
    "shape": list,
    "num_classes": int,
    "label": str,
    "sampler": dict,
    "data_free": bool,
    "teacher": dict,
    "shards": list,
}


def is_bank(folder: Path) -> bool:
    """Whether the folder holds a bank, be it damaged; other folders may have an index.json too."""
    file = folder / INDEX
    if not file.is_file():
        return False
    return any(folder.glob(_PATTERN)) or FORMAT.encode() in file.read_bytes()[:200]


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def digest(content: bytes) -> str:
    """Of a shard's bytes, as the index has it."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """ValueError naming the file where it is not the index of a bank."""
    file = folder / INDEX
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"data: {file} cannot be read as the index of a bank ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        other = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"data: {file}: expected the index of a bank, {FORMAT!r}, found {other!r}")
    for name, kind in _NEEDED.items():
        if not isinstance(found.get(name), kind) or isinstance(found.get(name), bool) != (kind is bool):
            raise ValueError(f"data: {file}: expected {name} as {kind.__name__}, found {found.get(name)!r}")
    for shard in found["shards"]:
        if not isinstance(shard, dict) or not {"file", "rows", "digest", "counts"} <= set(shard):
            raise ValueError(f"data: {file}: expected shards with file, rows, digest and counts, found {shard!r}")
        if Path(str(shard["file"])).name != shard["file"]:
            raise ValueError(f"data: {file}: expected shards beside it, found {shard['file']!r}")
    return found


def shards(folder: Path, index: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """All shards that the index lists, in order; ValueError naming the file of one that is not what was written."""
    for number in range(len(index["shards"])):
        yield read_shard(folder, index, number)


def read_shard(folder: Path, index: Mapping[str, Any], number: int) -> dict[str, Tensor]:
    """A shard that the index lists; ValueError naming the file where it is not what was written."""
    shard, file = index["shards"][number], folder / index["shards"][number]["file"]
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"data: {file} cannot be read ({error.strerror}){_again(folder)}") from error
    if digest(content) != shard["digest"]:
        raise ValueError(f"data: {file} is damaged: it is not what the bank's index says{_again(folder)}")
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ValueError(f"data: {file} is not a shard of images ({error}){_again(folder)}") from error
    rows, k = shard["rows"], index["num_classes"]
    expected = {"x": (torch.uint8, (rows, *index["shape"])), "logits": (torch.float32, (rows, k))}
    expected |= {name: (torch.int64, (rows,)) for name in ("label", "target") if name == "label" or name in tensors}
    for name, kind in expected.items():
        found = (tensors[name].dtype, tuple(tensors[name].shape)) if name in tensors else None
        if found != kind:
            raise ValueError(f"data: {file}: expected {name} as {kind}, found {found}{_again(folder)}")
    return tensors


def _again(folder: Path) -> str:
    return f"; delete {folder / INDEX}, and the command that made the bank draws it again"


def made_from(source: str) -> dict[str, Any] | None:
    """What a bank was made from, for the manifest of whoever reads it; None where the source is no bank."""
    folder = Path(source)
    if not is_bank(folder):
        return None
    index = read_index(folder)
    return {
        name: index.get(name)
        for name in ("label", "sampler", "data_free", "sources", "read", "teacher", "seed", "rows")
    }
