"""Files that are written whole or not at all, in folders where nobody else writes."""

import importlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["alone_in", "make_folder", "replace_file", "replacing"]


def make_folder(folder: Path) -> None:
    """Creates the folder where it is missing; ValueError in one line where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot make this folder ({error.strerror or error})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: expected a folder that can be written, found one that cannot")


@contextmanager
def alone_in(place: Path, wait: bool = False) -> Iterator[None]:
    """Inside, no other process is alone in this place; a process may be so several times, one within the other.

    place: a folder, or a file, which is made. Where another process is there: BlockingIOError, or wait until it has
    left or ended; the system sees to that however it ends. Nothing is held on Windows, nor where the file system knows
    no such locks.
    """
    place = place.resolve()
    handle = None if place in _ENTERED else _locked(place, wait)
    if handle is None:
        yield
        return
    _ENTERED.add(place)
    try:
        yield
    finally:
        _ENTERED.discard(place)
        os.close(handle)


_ENTERED: set[Path] = set()  # by this process
_LOCKS: Any = importlib.import_module("fcntl") if os.name == "posix" else None


def _locked(place: Path, wait: bool) -> int | None:
    """What is to be closed in the end; None where there are no locks."""
    if _LOCKS is None:
        return None
    handle = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _LOCKS.flock(handle, _LOCKS.LOCK_EX if wait else _LOCKS.LOCK_EX | _LOCKS.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


@contextmanager
def replacing(path: Path, what: str = "file") -> Iterator[Path]:
    """Write to the path given inside; it then replaces `path` in one move. After an error the old file stands.

    what: what is being written, for the one line that says why it cannot be. Missing folders are made.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        usual = stat.S_IMODE(draft.stat().st_mode)
        yield draft
        draft.chmod(usual)  # some writers make files that only their owner can read
        with draft.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ValueError(f"{what}: cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """The whole content, in one move."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def _sync_folder(folder: Path) -> None:
    """Makes the renaming last through a power cut, where folders can be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
