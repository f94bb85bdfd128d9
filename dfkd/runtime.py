"""The process a run lives in: its clock, its signals, its hardware, and the one place where it is decided to stop."""

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

import torch

__all__ = ["Bar", "Interruption", "Stopwatch", "agree", "arithmetic", "clock", "describe", "tf32"]

_PACKAGES = ("dfkd", "torch", "torchvision", "diffusers", "numpy", "scikit-learn", "safetensors")


def agree(decision: bool) -> bool:
    """Whether all processes of the run stop (or save) now. There is one process, so its own decision counts."""
    return decision


def clock(device: torch.device) -> float:
    """Seconds of a steady clock, after the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # sync
    return time.perf_counter()


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Inside, float32 convolutions and products on a GPU are rounded to TF32 or not; as before afterwards.

    By torch's newer switches: its `allow_tf32` cannot be read where these were used, nor put back as it was.
    """
    backends: Any = torch.backends  # where `conv` has no type
    products, convolutions = backends.cuda.matmul, backends.cudnn.conv
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision = before


def arithmetic(precision: str) -> AbstractContextManager[None]:
    """Inside, float32 on a GPU is what this precision calls it: torch itself would round convolutions to TF32.

    bfloat16 leaves float32 as torch is set.
    """
    return nullcontext() if precision == "bfloat16" else tf32(precision == "tf32")


def describe() -> dict[str, Any]:
    """Versions and hardware for manifests: plain values only."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


PATIENCE = 15.0
"""Seconds after a first SIGTERM from which on another one ends what is going on, with what was saved before."""


class Interruption:
    """`requested` turns true on SIGTERM; the run then saves and ends at its next step boundary.

    Where PATIENCE passes and nobody has looked, as in a step with a long search, the next SIGTERM is a
    KeyboardInterrupt. From a look on, saving has all the time it takes.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._seen = False

    @property
    def requested(self) -> bool:
        self._seen = self._since is not None
        return self._seen

    @contextmanager
    def watching(self) -> Iterator["Interruption"]:
        """Inside, SIGTERM sets the flag instead of ending the process. Only a main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def request(number: int, frame: FrameType | None) -> None:
            del number, frame
            if self._since is None:
                self._since = time.monotonic()
            elif not self._seen and time.monotonic() - self._since > PATIENCE:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, request)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class Stopwatch:
    """Seconds spent inside `start` ... `stop`: the host's clock on a CPU, events on a GPU, where nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._total, self._start = device, 0.0, 0.0
        self._cuda = device.type == "cuda"
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        if self._cuda:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record(torch.cuda.current_stream(self._device))
            self._pairs.append(pair)
        else:
            self._start = time.perf_counter()

    def stop(self) -> None:
        if self._cuda:
            self._pairs[-1][1].record(torch.cuda.current_stream(self._device))
        else:
            self._total += time.perf_counter() - self._start

    def seconds(self) -> float:
        """The total so far; on a GPU this waits for the last event. Read it at log points only."""
        if self._pairs:
            self._pairs[-1][1].synchronize()  # sync
            self._total += sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1000.0
            self._pairs.clear()
        return self._total


class Bar:
    """A progress bar on stderr, for a person who waits longer than two seconds; silent in a pipe."""

    def __init__(self, label: str, shown: bool) -> None:
        self._label, self._shown = label, shown and sys.stderr.isatty()
        self._updated = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    @property
    def drawn(self) -> bool:
        return self._progress is not None

    def update(self, fraction: float, note: str = "") -> None:
        """fraction in [0, 1]. Cheap: it draws at most ten times a second."""
        if not self._shown:
            return
        now = time.monotonic()
        if now - self._updated < (0.1 if self._progress else 2.0):
            return
        self._updated = now
        if self._progress is None:
            self._open()
        self._progress.update(self._task, completed=fraction, note=note)

    def _open(self) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        note = TextColumn("{task.fields[note]}")
        self._progress = Progress(*columns, note, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(escape(self._label), total=1.0, note="")
        self._progress.start()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
