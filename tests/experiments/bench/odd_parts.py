"""Parts that behave badly, for a process of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench.protocol import Part, Write

__all__ = ["made"]


def good(seconds: float, write: Write) -> None:
    print("what a library prints")
    write({"told": seconds, "process": os.getpid(), "loss": float("nan")})


def dies(seconds: float, write: Write) -> None:
    del seconds
    write({"value": 1})
    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(seconds: float, write: Write) -> None:
    """Deaf to all that can be heard, as a host that waits for a device that hangs; with a child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    write({"told": seconds, "child": child.pid, "process": os.getpid()})
    while True:
        time.sleep(1.0)


def saves(seconds: float, write: Write) -> None:
    """Listens, and has a word to say before it ends."""
    del seconds
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    write({"process": os.getpid()})
    while not heard:
        time.sleep(0.02)
    write({"saved": True})


def keeps(seconds: float, write: Write, file: Path) -> None:
    """Says row after row until it is told to end, and then has something to save."""
    del seconds
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    while not heard:
        write({"process": os.getpid()})
        time.sleep(0.05)
    time.sleep(0.5)
    write({"saved": True})
    file.touch()


def fails(seconds: float, write: Write) -> None:
    del seconds
    write({"value": 1})
    raise RuntimeError("out of memory\n  at all")


def poisoned(seconds: float, write: Write) -> None:
    """Goes on after an error."""
    del seconds
    write({"result": "failed", "process": os.getpid()})
    write({"result": "close"})


def made(given: Mapping[str, Any]) -> list[Part]:
    kept = partial(keeps, file=Path(given.get("file", "unnamed")))
    found = [Part(one.__name__, 0.1, one) for one in (good, dies, hangs, saves, fails, poisoned)]
    return [*found, Part("keeps", 0.1, kept)]
