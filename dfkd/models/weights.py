"""Weights from a file into a network: safetensors, or a `weights_only` dict of tensors; never a pickled module."""

import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dfkd.naming import nearest

from .quantised import INPUT_RANGE

__all__ = ["METADATA", "METADATA_KEY", "SUFFIXES", "fit", "nearby", "read_metadata", "read_tensors"]

METADATA_KEY = "dfkd"
SUFFIXES = (".safetensors", ".pt", ".pth", ".th")
"""What names of weights end in; others are read too."""
METADATA = ("reference", "options", "spec", "normalisation", "card")
_WRAPPED_IN = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
# counters of BatchNorm are absent from older files and decide nothing; ranges are those of a quantised network, which
# may start from a float one and finds them in its first batch
_MAY_LACK = ("num_batches_tracked", INPUT_RANGE)
_SHOWN = 3


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU; ValueError in one line where there are none."""
    _require_file(path)
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPED_IN:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"weights: expected named tensors in {path}, found a {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"weights: expected named tensors in {path}, found a {type(value).__name__} at {key!r}")
    return _stripped(dict(found))


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What `save` wrote beside the tensors; None where the file has none."""
    _require_file(path)
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        found = None if text is None else json.loads(text)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"weights: {path} is not a readable safetensors file, perhaps cut short ({error})") from None
    if found is not None and (not isinstance(found, dict) or not set(METADATA) <= set(found)):
        raise ValueError(f"weights: expected {', '.join(METADATA)} in the metadata of {path}, found {found!r}")
    return found


def fit(module: nn.Module, tensors: Mapping[str, Tensor], where: Path, name: str) -> None:
    """Copies the tensors into the module; ValueError that names the first keys that do not fit."""
    expected = module.state_dict()
    missing = [k for k in expected if k not in tensors and not k.endswith(_MAY_LACK)]
    unexpected = [k for k in tensors if k not in expected]
    misshapen = [
        f"{key} (expected {tuple(expected[key].shape)}, found {tuple(value.shape)})"
        for key, value in tensors.items()
        if key in expected and expected[key].shape != value.shape
    ]
    complaints = [
        f"{what}: {_first(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("other shapes", misshapen))
        if keys
    ]
    if complaints:
        raise ValueError(f"weights: {where} does not fit {name}; {'; '.join(complaints)}")
    module.load_state_dict(dict(tensors), strict=False)


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"weights: expected a file, found {nearby(path)}")


def nearby(path: Path, names: Iterable[str] = ()) -> str:
    """What there is where weights were looked for, and what may have been meant: what a folder holds, else the nearest
    of the files beside it and of these names."""
    inside = os.path.isdir(path)  # no folder where the system takes no name so long
    folder = path if inside else path.parent
    try:
        there = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    except (OSError, ValueError):
        there = []
    if inside:
        holds = f"; it holds {_first([file.name for file in there])}" if there else ""
        return f"a folder at {path}{holds}"
    known = {name: name for name in names} | {file.stem: str(file) for file in there}  # by their ends all are alike
    close = nearest(path.stem, known)
    return f"nothing at {path}" + ("" if close is None else f"; the nearest is {known[close]!r}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights: {path} is not a readable safetensors file, perhaps cut short ({error})") from None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"weights: {path} holds pickled objects, which can run code; save the network's state_dict() instead"
        ) from None
    except Exception as error:  # a file cut short fails in many ways, and in none that a user could act on
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"weights: {path} is not a readable weights file ({first})") from None


def _stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
