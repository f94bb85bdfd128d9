"""How a name is said to be unknown (what, where, the nearest), what settings are known as, and a warning in a line."""

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, TextIO

__all__ = ["SHOWN", "OneLine", "known_as", "nearest", "unknown"]

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


def known_as(settings: Any) -> str:
    """A dataclass's repr without the settings that are what all was before they were settings (`unless`, metadata).

    Banks draw by it, and folders begun in Python are known by it.
    """
    values = ((f, getattr(settings, f.name)) for f in fields(settings))
    shown = [f"{f.name}={v!r}" for f, v in values if "unless" not in f.metadata or v != f.metadata["unless"]]
    return f"{type(settings).__name__}({', '.join(shown)})"


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
