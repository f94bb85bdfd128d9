"""Parts in a process of their own: what one breaks the next does not see, and what hangs is ended.

no paper. A fault of a GPU stays with the process that met it, and a host that waits for a device that hangs listens to
nothing; so nothing less than ending the process is sure. Rows come back one line each, as they are written.
"""

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from .protocol import FAILED, NO_TIME, Part, Row, Write, here

__all__ = ["Served", "serve"]

SAVING = 15.0
"""Seconds before its limit at which a part is told to end, at most; a tenth of what it may take where that is less."""


class Served:
    """Asks parts in processes that are begun as they are needed; a limit counts from the asking, the start included.

    maker: `module:function` that makes the parts there, given the rest. log: what they print. Parts of one group that
    follow one another share a process as long as they end well and none of their rows is an error: a device that met a
    fault may go on giving answers, to this process, that are none.
    """

    def __init__(self, maker: str, given: Mapping[str, Any], log: Path) -> None:
        self._maker, self._given, self._log = maker, given, log
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._group = ""

    def __call__(self, part: Part, seconds: float, write: Write) -> Row:
        limit = time.monotonic() + seconds
        process = self._of(part.group)
        results = list[Any]()

        def note(row: Row) -> None:
            results.append(row.get("result"))
            write(row)

        status = self._asked(process, part.name, limit, min(SAVING, 0.1 * seconds), note)
        if status["status"] != "ok" or FAILED in results or not part.group:
            self.close()
        return status

    def close(self, patience: float = 0.0) -> None:
        """Ends the process, and whatever it has begun; not before it had so many seconds to save."""
        process, self._process = self._process, None
        if process is None:
            return
        if patience and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()  # it finds that nobody asks any more
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        _end(process)
        with suppress(subprocess.TimeoutExpired):  # one that the system holds fast is left to it
            process.wait(5.0)
        for stream in (process.stdin, process.stdout):
            with suppress(OSError, ValueError):
                assert stream is not None
                stream.close()

    def _of(self, group: str) -> "subprocess.Popen[str]":
        if self._process is not None and group and group == self._group and self._process.poll() is None:
            return self._process
        self.close()
        paths = os.pathsep.join(path for path in (str(Path(__file__).parents[2]), *sys.path) if path)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", "from experiments.bench.served import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,  # so that it can be ended with all that it begins
            )
        self._process, self._group, self._lines = process, group, queue.SimpleQueue()
        assert process.stdout is not None
        threading.Thread(target=_listen, args=(process.stdout, self._lines), daemon=True).start()
        self._say(process, {"maker": self._maker, "given": self._given})
        return process

    def _say(self, process: "subprocess.Popen[str]", what: Row) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # one that has ended is found to have
            process.stdin.write(json.dumps(what, default=str) + "\n")
            process.stdin.flush()

    def _asked(self, process: "subprocess.Popen[str]", name: str, limit: float, saving: float, write: Write) -> Row:
        """Until it says how it ended, it has ended, or is ended: told to at `limit - saving`, made to at `limit`."""
        self._say(process, {"part": name, "until": time.time() + limit - saving - time.monotonic()})
        told = False
        while True:
            now = time.monotonic()
            if now >= limit:
                return {"status": NO_TIME, "why": "was broken off"}
            if not told and now >= limit - saving:
                told = True
                with suppress(ProcessLookupError):
                    process.terminate()
            try:
                text = self._lines.get(timeout=max(0.0, (limit if told else limit - saving) - now))
            except queue.Empty:
                continue
            if text is None:
                if told:
                    return {"status": NO_TIME, "why": "was told to end"}
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5.0)
                return {"status": FAILED, "error": f"process: ended with {process.returncode}; {self._last_words()}"}
            said = json.loads(text)
            if "end" in said:
                end: Row = said["end"]
                return end
            write(said["row"])

    def _last_words(self) -> str:
        with suppress(OSError):
            texts = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
            return next((text.strip()[:200] for text in reversed(texts) if text.strip()), "")
        return ""


def _listen(stream: IO[str], lines: "queue.SimpleQueue[str | None]") -> None:
    with suppress(OSError, ValueError):
        for text in stream:
            lines.put(text)
    lines.put(None)


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


# -- the other side ----------------------------------------------------------------------------------------------------


def serve() -> None:
    """Makes the parts as the first line says, then runs those that are asked for, a line each, until there are none."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no row
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_attend, args=(lines, busy), daemon=True).start()

    def say(what: Row) -> None:
        with suppress(OSError):  # who asked may be gone; what runs is to save all the same
            answers.write(json.dumps(what, default=str) + "\n")
            answers.flush()

    text = lines.get()
    if text is None:
        return
    first = json.loads(text)
    module, _, function = first["maker"].partition(":")
    parts: dict[str, Part] = {
        part.name: part for part in getattr(importlib.import_module(module), function)(first["given"])
    }
    while (text := lines.get()) is not None:
        asked = json.loads(text)
        busy.set()
        end = here(parts[asked["part"]], asked["until"] - time.time(), lambda row: say({"row": row}))
        busy.clear()
        say({"end": end})


def _attend(lines: "queue.SimpleQueue[str | None]", busy: threading.Event) -> None:
    """Hears what is asked. Where nobody is left to ask, what runs is told to save, and is not waited for long."""
    for text in sys.stdin:
        lines.put(text)
    lines.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SAVING)
        os.killpg(0, signal.SIGKILL)
