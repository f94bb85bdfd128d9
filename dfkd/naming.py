"""One way to say that a name is unknown (what, where, and the nearest known one), and one to show a warning."""

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TextIO

__all__ = ["SHOWN", "OneLine", "nearest", "unknown"]

SIMILAR = 0.4  # difflib's ratio; below it a name is not a slip for another
SHOWN = 8


def nearest(found: str, known: Iterable[str]) -> str | None:
    """The known name most like `found`, or None where none is like it."""
    close = difflib.get_close_matches(found, list(known), n=1, cutoff=SIMILAR)
    return close[0] if close else None


def unknown(what: str, found: str, known: Iterable[str]) -> ValueError:
    """The error for a misspelt name: `sampler: unknown 'unifrom'; the nearest is 'uniform'`.

    Where nothing is like it, the first of the known names instead.
    """
    names = list(known)
    close = nearest(found, names)
    if close is not None:
        hint = f"; the nearest is {close!r}"
    elif names:
        hint = f"; known: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
    else:
        hint = ""
    return ValueError(f"{what}: unknown {found!r}{hint}")


@dataclass(frozen=True)
class OneLine:
    """For `warnings.showwarning`: each text on one line and once, wherever it came from. said: the texts so far."""

    said: set[str] = field(default_factory=set)

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del category, filename, lineno, line
        text = " ".join(str(message).split())
        if text not in self.said:
            self.said.add(text)
            print(f"dfkd: warning: {text}", file=file or sys.stderr)
