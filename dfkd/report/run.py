"""A run folder as read for the report: settings, records, curves, scores per row, drawn images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfkd.results import Summary, read

__all__ = ["Bank", "Run", "load_run", "reasons"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Bank:
    """x (n, c, h, w) uint8; target (n,) the classes aimed at, where the sampler aims."""

    x: Array
    target: Array | None = None


@dataclass(frozen=True)
class Run:
    """Everything the report shows. curves and rows by (sampler, seed). By sampler: banks and quality (what was set
    beside data, and why some was not), of its first seed; reasons, of those that are unsupported."""

    name: str
    summary: Summary
    config: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[tuple[str, int], list[dict[str, float]]] = field(default_factory=dict)
    rows: Mapping[tuple[str, int], Mapping[str, Array]] = field(default_factory=dict)
    banks: Mapping[str, Bank] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    quality: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def order(self) -> list[str]:
        """The samplers, best first: the order of every table and the key of every chart."""
        return self.summary.ranked()

    def section(self, name: str) -> Mapping[str, Any]:
        """A part of the manifest, {} where it is missing."""
        found = self.manifest.get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def test_rows(self) -> int | None:
        """The number of rows behind the headline column, where it is known."""
        key = f"agreement|{self.summary.headline}"
        for arrays in self.rows.values():
            if key in arrays:
                return int(arrays[key].shape[0])
        found = self.section("data").get("test_rows") if self.summary.headline == "test" else None
        return int(found) if isinstance(found, int) else None

    @property
    def class_names(self) -> list[str] | None:
        found = self.section("data").get("classes") or self.manifest.get("class_names")
        return [str(name) for name in found] if isinstance(found, list) else None


def load_run(folder: Path) -> Run:
    """ValueError where there are no results; everything else may be missing."""
    path = folder / "results.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder}: expected a run folder with a results.jsonl, found none")
    summary = Summary(read(path))
    if not summary.lines:
        raise ValueError(f"{path}: expected at least one result line, found none")
    manifest = _json(folder / "manifest.json")
    pairs = sorted({(line.sampler, line.seed) for line in summary.lines})
    curves, rows, banks, quality = {}, {}, {}, {}
    for sampler, seed in pairs:
        place = folder / "runs" / _file_name(folder / "runs", sampler, seed)
        if (place / "curve.jsonl").is_file():
            curves[sampler, seed] = _curve(place / "curve.jsonl")
        if (place / "rows.npz").is_file():
            rows[sampler, seed] = _arrays(place / "rows.npz")
        if sampler not in quality and (said := _json(place / "quality.json")):
            quality[sampler] = said
        bank = folder / "banks" / _file_name(folder / "banks", sampler, seed, ".safetensors")
        if sampler not in banks and bank.is_file():
            banks[sampler] = _bank(bank)
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return Run(folder.resolve().name, summary, text, manifest, curves, rows, banks, reasons(folder, summary), quality)


def reasons(folder: Path, summary: Summary) -> dict[str, str]:
    """Why samplers are unsupported here, as their runs have written; those that wrote nothing are left out."""
    found = {}
    for sampler in summary.ranked():
        for seed, status in summary.failed.get(sampler, {}).items():
            place = folder / "runs" / _file_name(folder / "runs", sampler, seed)
            reason = _json(place / "student.json").get("reason") if status == "unsupported" else None
            if reason:
                found[sampler] = str(reason).removeprefix(f"{sampler}: ")
    return found


def _file_name(parent: Path, sampler: str, seed: int, suffix: str = "") -> str:
    """`<label>-s<seed>`. A label may hold what a path may not; then the label with those replaced."""
    exact = f"{sampler}-s{seed}{suffix}"
    if "/" not in exact and "\0" not in exact and (parent / exact).exists():
        return exact
    return "".join(c if c.isalnum() or c in "-_.@ " else "_" for c in f"{sampler}-s{seed}") + suffix


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def _curve(path: Path) -> list[dict[str, float]]:
    """The points of a run; a torn last line is left out, other bad lines are errors."""
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    points = []
    for position, text in enumerate(whole, start=1):
        if text.strip():
            try:
                point = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {position}: expected JSON, {error}") from error
            points.append({key: float(value) for key, value in point.items() if isinstance(value, (int, float))})
    return points


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return {key: found[key] for key in found.files}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected an .npz of arrays, {error}") from error


def _bank(path: Path) -> Bank:
    from safetensors import SafetensorError  # only where there are pictures
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected images as safetensors, {error}") from error
    if "x" not in found:
        raise ValueError(f"{path}: expected a tensor x, found {', '.join(sorted(found)) or 'none'}")
    return Bank(found["x"], found.get("target"))
