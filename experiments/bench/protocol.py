"""Parts of a measurement in the order of what they tell, within a budget of minutes, written as they go.

no paper. A file of JSON lines is all there is to continue from: a part that has ended well in it, on the same device,
at the same size, commit and settings, is not run again.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

__all__ = [
    "FAILED",
    "NO_TIME",
    "Ask",
    "Measure",
    "Part",
    "Row",
    "Unfinished",
    "Write",
    "each",
    "here",
    "line",
    "read",
    "run",
]

Row = dict[str, Any]
Write = Callable[[Row], None]
Measure = Callable[[float, Write], None]

FAILED, NO_TIME = "failed", "no time"
"""The `result` of a row that is an error or was left for another time, and the `status` of a part with such rows."""


class Unfinished(BaseException):
    """A part ended before it was through with what it is to measure; it goes on when it is asked again.

    Not an Exception, so that what makes a row of each error does not take it for one.
    """


@dataclass(frozen=True)
class Part:
    """name: unique. least: seconds below which it is not begun. measure: told the seconds it may take, writes rows.

    share: of the time that is left when it begins, how much it may take (at least `least`, at most `most` seconds).
    group: parts of one, one after another, may share a process. settings: what a part is another part for.
    """

    name: str
    least: float
    measure: Measure
    share: float = 1.0
    most: float = math.inf
    group: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def limit(self, left: float) -> float:
        """Seconds it may take where so many are left."""
        return min(left, max(self.least, self.share * left), self.most)


Ask = Callable[[Part, float, Write], Row]
"""Runs a part for at most so many seconds and hands on its rows; how it ended: `status`, and `error` in one line."""


def each(rows: Callable[..., Iterator[Row]], *given: Any) -> Measure:
    """What measures, of what gives rows one by one when it is told the seconds, after what else is given."""

    @wraps(rows)
    def measure(seconds: float, write: Write) -> None:
        for row in rows(*given, seconds):
            write(row)

    return measure


def here(part: Part, seconds: float, write: Write) -> Row:
    """Asks a part in this process, where it is not broken off."""
    try:
        part.measure(seconds, write)
    except Unfinished as why:
        return {"status": NO_TIME, "why": line(why, name=False)}
    except Exception as error:  # whatever it is, the next part may work
        return {"status": FAILED, "error": line(error)}
    return {"status": "ok"}


def run(
    parts: Sequence[Part],
    seconds: float,
    out: Path,
    about: Mapping[str, Any],
    where: Mapping[str, Any],
    ask: Ask = here,
    clock: Callable[[], float] = time.monotonic,
    show: Callable[[str], None] = print,
) -> list[Row]:
    """Runs what `out` has not got yet, until `seconds` have passed; the rows that were added.

    where: what every row is marked with (device, size, commit): what was done elsewhere is not done here. Each part
    ends with a row of its own: status `ok`, `failed` (the rest goes on) or `no time`; those that are not ok are tried
    again when it is called again.
    """
    began, added = clock(), list[Row]()
    done = {_key(row) for row in read(out) if row.get("status") == "ok"}

    def write(row: Row) -> None:
        row = _finite({**row, **where})
        added.append(row)
        text = json.dumps(row, allow_nan=False, default=str)
        with out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        show(text)

    out.parent.mkdir(parents=True, exist_ok=True)
    _end_line(out)
    write({"part": "about", **about})
    for part in parts:
        about_part = {"part": part.name, "settings": dict(part.settings)}
        if _key({**about_part, **where}) in done:
            continue
        left = seconds - (clock() - began)
        if left < part.least:
            status = {"status": NO_TIME, "left": round(max(left, 0.0), 1), "least": part.least}
            write({**about_part, **status})
            continue
        since, results = clock(), list[Any]()

        def note(row: Row, name: str = part.name, results: list[Any] = results) -> None:
            results.append(row.get("result"))
            write({"part": name, **row})

        status = ask(part, part.limit(left), note)
        if status["status"] == "ok" and FAILED in results:
            status = {"status": FAILED, "error": f"rows: {results.count(FAILED)} failed"}
        elif status["status"] == "ok" and NO_TIME in results:
            status = {"status": NO_TIME, "why": f"rows: {results.count(NO_TIME)} left"}
        write({**about_part, **status, "took": round(clock() - since, 1)})
    return added


def _key(row: Mapping[str, Any]) -> str:
    """What makes a part the same part."""
    return json.dumps([row.get(key) for key in ("part", "on", "size", "commit", "settings")], sort_keys=True)


def _finite(row: Row) -> Row:
    """With None for numbers that JSON has not got, and a `result` that says so where there is no other."""
    lost: list[str] = []

    def clean(value: Any, name: str) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            lost.append(f"{name}: {value}")
            return None
        if isinstance(value, Mapping):
            return {key: clean(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(inner, name) for inner in value]
        return value

    cleaned = {key: clean(value, key) for key, value in row.items()}
    return cleaned if not lost else {"result": "not finite", **cleaned, "not_finite": lost}


def line(error: BaseException, name: bool = True) -> str:
    """What it says, in one line."""
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if name else said


def read(out: Path) -> list[Row]:
    """The rows of a file; a last line that was torn is none."""
    rows = []
    for text in out.read_text(encoding="utf-8").splitlines() if out.exists() else []:
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _end_line(out: Path) -> None:
    """A torn last line stays, but on its own."""
    if out.exists() and (content := out.read_bytes()) and not content.endswith(b"\n"):
        with out.open("ab") as file:
            file.write(b"\n")
