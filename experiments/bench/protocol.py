"""Parts of a measurement in the order of what they tell, within a budget of minutes, written as they go.

no paper. A file of JSON lines is all there is to continue from: a part that has ended well in it is not run again.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Part", "Row", "read", "run"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """name: unique. least: seconds below which it is not begun. measure: gives rows; told the seconds it may take.

    share: of the time that is left when it begins, how much it may take. cut: whether it is broken off then; every
    other is at twice that, or where all time is up: what one step too long takes, those that wait do not get.
    """

    name: str
    least: float
    measure: Callable[[float], Iterator[Row]]
    share: float = 1.0
    cut: bool = False


def run(
    parts: Sequence[Part],
    seconds: float,
    out: Path,
    about: Mapping[str, Any],
    clock: Callable[[], float] = time.monotonic,
    show: Callable[[str], None] = print,
) -> list[Row]:
    """Runs what `out` has not got yet, until `seconds` have passed; the rows that were added.

    Each part ends with a row of its own: status `ok`, `failed` (with the error, in one line; the rest goes on) or `no
    time`; those that are not ok are tried again when it is called again. A part is told what it may take, which is what
    is left or its share of it, and is to look at its own clock; a signal breaks off what does not.
    """
    began, added = clock(), list[Row]()
    done = {row["part"] for row in read(out) if row.get("status") == "ok"}

    def write(row: Row) -> None:
        added.append(row)
        text = json.dumps(row, allow_nan=False, default=str)
        with out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        show(text)

    out.parent.mkdir(parents=True, exist_ok=True)
    _end_line(out)
    write({"part": "about", **about})
    for part in parts:
        if part.name in done:
            continue
        left = seconds - (clock() - began)
        if left < part.least:
            write({"part": part.name, "status": "no time", "left": round(max(left, 0.0), 1), "least": part.least})
            continue
        since, status = clock(), {"status": "ok"}
        may = max(part.least, part.share * left)
        try:
            with _alarm(min(left, may if part.cut else 2.0 * may)):
                for row in part.measure(may):
                    write({"part": part.name, **row})
        except OutOfTime:
            status = {"status": "no time"}
        except Exception as error:  # whatever it is, the next part may work
            said = " ".join(str(error).split())[:300]
            status = {"status": "failed", "error": f"{type(error).__name__}: {said}"}
        write({"part": part.name, **status, "took": round(clock() - since, 1)})
    return added


class OutOfTime(BaseException):
    """Raised wherever a part happens to be; not an Exception, so that no part takes it for its own."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Inside, OutOfTime is raised after so many seconds. Only a main thread can be told, on systems that have it."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def read(out: Path) -> list[Row]:
    """The rows of a file; a last line that was torn is none."""
    rows = []
    for line in out.read_text(encoding="utf-8").splitlines() if out.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _end_line(out: Path) -> None:
    """A torn last line stays, but on its own."""
    if out.exists() and (content := out.read_bytes()) and not content.endswith(b"\n"):
        with out.open("ab") as file:
            file.write(b"\n")
