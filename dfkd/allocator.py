"""What a process does with memory that it has freed: it keeps it, as a step takes as much as the one before.

no paper. glibc gives every block above 32 MiB back to the system when it is freed, such as a layer's maps of 256 images
of 32x32, and the next step pays a page fault for each 4 KiB of it: a fifth of a synthesis step at that batch.
"""

import ctypes
import os
from contextlib import suppress

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as <malloc.h> numbers them
_MIB = 1 << 20


def keep_freed_memory() -> None:
    """For processes that are ours alone; a process that somebody has tuned (MALLOC_..., GLIBC_TUNABLES) is left alone.

    Up to 512 MiB is kept at the heap's end; blocks above 80 MiB, such as large banks, still go back when freed. A run's
    peak was up to a quarter higher by it. It can be more where a block below that grows again and again and small ones
    stay between its copies. No effect where the allocator is not glibc's, or an old one that refuses so high
    a limit. Results are the same bit for bit.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):  # only glibc has it, and no Windows
        allocator = ctypes.CDLL(None)
        # one of them alone would be worse than none: it ends that glibc finds its own limits
        if allocator.mallopt(_MMAP_THRESHOLD, 80 * _MIB):
            allocator.mallopt(_TRIM_THRESHOLD, 512 * _MIB)
