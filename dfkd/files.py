"""Files that are written whole or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["make_folder", "replace_file", "replacing"]


def make_folder(folder: Path) -> None:
    """Creates the folder where it is missing; ValueError in one line where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot make this folder ({error.strerror or error})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: expected a folder that can be written, found one that cannot")


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
