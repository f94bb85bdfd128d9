"""One round of a pool, and the files by which runs of one comparison share rounds and what they cost.

A file is a 16-byte hash of what follows, and a `torch.save` of it, read with `weights_only`. Who needs a round first
makes it under a lock; whoever needs it later is charged the images and the seconds that it took.
"""

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem

try:
    import fcntl
except ImportError:  # no such locks on Windows: two runs may both make a round, and write the same file
    fcntl = None  # type: ignore[assignment]

__all__ = ["Round", "bank_key", "shared_round"]

HASH_BYTES = 16
PHASES = ("synthesise", "label")


@dataclass(frozen=True)
class Round:
    """images (m, c, h, w) uint8. columns: tensors of m rows by name. mode, precision: how they are to be labelled.
    spoilt: 0-d, 0 or, where an image was not finite before it was bytes, NaN."""

    images: Tensor
    columns: dict[str, Tensor]
    mode: str
    precision: str
    spoilt: Tensor


def bank_key(base: Sampler, rows: int, problem: Problem) -> str:
    """Equal where two pools hold the same images: settings, run, teacher, box, and what decides the last bits."""
    teacher = problem.teacher
    what = (repr(base), rows, problem.seed, teacher.digest, repr(problem.spec), problem.device.type, teacher.precision)
    return hashlib.blake2b(repr(what).encode(), digest_size=HASH_BYTES).hexdigest()


def shared_round(problem: Problem, key: str, index: int, base_state: Any, make: Callable[[], Round]) -> Round:
    """Round `index` of the bank `key`: from its file where there is one, else made here and kept there.

    Nothing is shared without a key or without a folder for banks. Afterwards base_state is as if it had been made
    here, and teacher and clock have been charged as if it had.
    """
    if problem.banks is None or not key:
        return make()
    began = time.perf_counter()
    path = problem.banks / f"{key}-{index:04d}.pt"
    with _alone(path.with_suffix(".lock")):
        saved = _read(path, problem.device)
        if saved is None:
            return _made(path, problem, base_state, make)
    base_state.load_state_dict(saved["base"])
    for phase in PHASES:
        problem.teacher.charge(saved["counts"][phase], phase)  # type: ignore[arg-type]  # the two are phases
    # what it took to wait and read has passed on this run's own clock
    problem.charged_seconds += max(0.0, saved["seconds"] - (time.perf_counter() - began))
    return Round(saved["images"], saved["columns"], saved["mode"], saved["precision"], saved["spoilt"])


def _made(path: Path, problem: Problem, base_state: Any, make: Callable[[], Round]) -> Round:
    counts, began = problem.teacher.counts, time.perf_counter()
    before = {phase: dict(counts[phase]) for phase in PHASES}
    new = make()
    if problem.device.type == "cuda":
        torch.cuda.synchronize(problem.device)  # sync
    saved = {
        "images": new.images,
        "columns": new.columns,
        "mode": new.mode,
        "precision": new.precision,
        "spoilt": new.spoilt,
        "base": base_state.state_dict(),
        "counts": {phase: {way: counts[phase][way] - old for way, old in before[phase].items()} for phase in PHASES},
        "seconds": time.perf_counter() - began,
    }
    _write(path, saved)
    return new


def _write(path: Path, saved: dict[str, Any]) -> None:
    """All or nothing: under another name first."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)  # sync
    content = buffer.getvalue()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_bytes(hashlib.blake2b(content, digest_size=HASH_BYTES).digest() + content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What a file holds; None where there is none or where it is not what was written, and it is made again."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = content[:HASH_BYTES], content[HASH_BYTES:]
    if hashlib.blake2b(content, digest_size=HASH_BYTES).digest() != digest:
        return None
    saved: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return saved


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Inside, no other process is; the system lets go of the lock of a process that dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ValueError(f"banks: cannot write in {path.parent}: {error.strerror}") from error
    with file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
