"""Files that are written whole or not at all, in folders where nobody else writes."""

import importlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["alone_with", "make_folder", "replace_file", "replacing"]


def make_folder(folder: Path) -> None:
    """Creates the folder where it is missing; ValueError in one line where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot make this folder ({error.strerror or error})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: expected a folder that can be written, found one that cannot")


@contextmanager
def alone_with(file: Path, wait: bool = False) -> Iterator[None]:
    """Inside, no other process is alone with this file, which is made, and gone afterwards.

    A process may be so several times at once. Where another one is: BlockingIOError, or wait until it has left or
    ended; the system sees to that however it ends. Nothing is held on Windows, nor where the file cannot be made or the
    file system knows no such locks.
    """
    file = file.parent.resolve() / file.name
    if file not in _HELD:
        handle = _locked(file, wait)
        if handle is None:
            yield
            return
        _HELD[file] = _Held(handle)
    held = _HELD[file]
    held.times += 1
    try:
        yield
    finally:
        held.times -= 1
        if held.times == 0:
            del _HELD[file]
            file.unlink(missing_ok=True)  # while it is held: who waits for it then sees that it is another's no more
            os.close(held.handle)


@dataclass
class _Held:
    handle: int
    times: int = 0


_HELD: dict[Path, _Held] = {}  # by this process
_LOCKS: Any = importlib.import_module("fcntl") if os.name == "posix" else None


def _locked(file: Path, wait: bool) -> int | None:
    """The open file, which nobody else has locked; None where there are no locks."""
    while _LOCKS is not None:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        kept = False
        try:
            _LOCKS.flock(handle, _LOCKS.LOCK_EX if wait else _LOCKS.LOCK_EX | _LOCKS.LOCK_NB)
            kept = os.path.samestat(os.fstat(handle), os.stat(file))
        except BlockingIOError:
            raise
        except FileNotFoundError:
            pass  # whoever had it has left and taken it away; so for the next one to see, it is made again
        except OSError:
            return None
        finally:
            if not kept:
                os.close(handle)
        if kept:
            return handle
    return None


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
