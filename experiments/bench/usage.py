"""Memory that a process or a GPU holds, and the most that a block of code needs beyond it.

no paper. Of a process it is read from /proc, where Linux keeps it; elsewhere there is none to read.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Peak", "peak", "resident"]

PROCESS = Path("/proc/self")


def resident(device: torch.device) -> int:
    """Bytes: of the process, or what torch has allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int((PROCESS / "statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Peak:
    """bytes: the most that was held inside beyond what was held before. total: the most that was held. None where it
    cannot be told."""

    bytes: int | None = None
    total: int | None = None


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Inside, the high water mark is that of this block; it is told when the block ends."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.total = torch.cuda.max_memory_allocated(device)
        found.bytes = found.total - before
        return
    with suppress(AttributeError, OSError, TypeError):  # only glibc has it, and no Windows
        # what was freed before and is kept for later would be used inside without being seen
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # sets the mark to what is held now
        before = _mark()
    except OSError:
        yield found
        return
    yield found
    found.total = _mark()
    found.bytes = found.total - before


def _mark() -> int:
    """The most that the process has held, in bytes, since the mark was set."""
    for line in (PROCESS / "status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no high water mark")
