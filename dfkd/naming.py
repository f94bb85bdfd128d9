"""One way to say that a name is unknown: what, where, and the nearest known one."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "unknown"]


def nearest(found: str, known: Iterable[str]) -> str | None:
    """The known name most like `found`, or None where there is none at all."""
    close = difflib.get_close_matches(found, list(known), n=1, cutoff=0.0)
    return close[0] if close else None


def unknown(what: str, found: str, known: Iterable[str]) -> ValueError:
    """The error for a misspelt name: `sampler: unknown 'unifrom'; the nearest is 'uniform'`."""
    close = nearest(found, known)
    hint = f"; the nearest is {close!r}" if close is not None else ""
    return ValueError(f"{what}: unknown {found!r}{hint}")
