"""python -m experiments.bench NAME: measures this machine. A table for people, lines of JSON with --json."""

import argparse
import importlib.util
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dfkd.naming import unknown

BENCHES = {"overhead": 21, "synthesis": 9, "throughput": 5, "scaling": 5, "gpu": 1}
"""Pairs of blocks or steps that count, or repetitions, unless told."""

Clock = Callable[[], float]
USED: dict[str, set[str]] = {
    "overhead": {"json", "blocks", "clock"},
    "synthesis": {"json", "blocks", "clock", "only", "precision", "compile"},
    "throughput": {"json", "blocks", "clock", "only", "device", "chart"},
    "scaling": {"json", "blocks", "clock", "only", "device", "chart", "most", "steps"},
    "gpu": {"json", "device", "chart", "minutes", "data", "teacher", "out", "small", "run_seconds"},
}
"""The options of each bench; any other is refused, as it would not do what was asked for."""

_INTERRUPTED = 130  # as `dfkd` ends then
_ENDS = 5.0  # seconds for Python's start, the table and the picture


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("name", help=f"what to measure: {', '.join(BENCHES)}")
    parser.add_argument("--json", action="store_true", help="lines of JSON: one for overhead, else one a row")
    parser.add_argument("--blocks", type=int, help="blocks or repetitions that count (21, 9, 5, 5)")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own time, for a busy machine"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these samplers, or for scaling these axes, alone")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="synthesis: of our student steps, float32 unless told"
    )
    parser.add_argument("--compile", action="store_true", help="synthesis: our student steps through torch.compile")
    parser.add_argument("--device", default=None, help="throughput, scaling: cpu unless told; gpu: cuda unless told")
    parser.add_argument(
        "--most", type=int, help="scaling: the largest size of an axis; axes that begin beyond it are left out"
    )
    parser.add_argument("--chart", type=Path, help="throughput, scaling, gpu: a picture of it, as .png or .svg")
    parser.add_argument(
        "--steps", type=int, default=400, help="scaling: steps over which memory is watched, 0 for none"
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="gpu: ends before they have passed")
    parser.add_argument("--run-seconds", type=float, help="gpu: of each run to an accuracy (90, or 2 with --small)")
    parser.add_argument("--data", help="gpu: an .npz of CIFAR-10")
    parser.add_argument("--teacher", type=Path, help="gpu: weights of resnet56")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.jsonl"), help="gpu: lines of JSON, continued from")
    parser.add_argument("--small", action="store_true", help="gpu: tiny sizes, a rehearsal for any machine")
    options = parser.parse_args(arguments)
    # once more without defaults: what is there then was given
    bare = argparse.Namespace(**dict.fromkeys(vars(options)))
    given = {name for name, value in vars(parser.parse_args(arguments, bare)).items() if value is not None}
    try:
        if options.name not in BENCHES:
            raise unknown("bench", options.name, list(BENCHES))
        _check(options, given - {"name"})
        blocks = BENCHES[options.name] if options.blocks is None else options.blocks
        if blocks < 1:
            raise ValueError(f"blocks: expected an integer >= 1, found {blocks}")
        measures: dict[str, Callable[[argparse.Namespace, int, Clock], int | None]] = {
            "overhead": _overhead,
            "synthesis": _synthesis,
            "throughput": _throughput,
            "scaling": _scaling,
            "gpu": _gpu,
        }
        clock = time.perf_counter if options.clock == "wall" else time.process_time
        with _stopping():
            return measures[options.name](options, blocks, clock) or 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _check(options: argparse.Namespace, given: set[str]) -> None:
    """ValueError for an option that the bench does not use, and for a picture that could not be written at the end."""
    for name in sorted(given - USED[options.name]):
        found = getattr(options, name)
        shown = " ".join(found) if isinstance(found, list) else found
        raise ValueError(f"{name}: expected none with {options.name}, found {shown}")
    if options.only and "steps" in given and options.steps:
        raise ValueError(f"steps: expected none with --only, which leaves memory out, found {options.steps}")
    if options.chart is None:
        return
    if options.chart.suffix not in (".png", ".svg"):
        raise ValueError(f"chart: expected a name that ends in .png or .svg, found {str(options.chart)!r}")
    if not options.chart.parent.is_dir():
        raise ValueError(f"chart: expected a file in a folder that is there, found {str(options.chart)!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("chart: expected matplotlib to draw it, found none installed")


@contextmanager
def _stopping() -> Iterator[None]:
    """Inside, SIGTERM is a KeyboardInterrupt, also where no run of the engine listens. Only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _overhead(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    """What it was found on is in an object of its own, so that every other number of the line is a ratio."""
    from torch import device

    from .overhead import overhead
    from .rows import about, coverage
    from .usage import peak

    with peak(device("cpu")) as held:
        found = overhead(blocks, clock)
    on = {**about(options.clock), "blocks": blocks, "covers": round(coverage(blocks), 4)}
    on["process_peak_bytes"] = held.total
    print(json.dumps({"about": on, **found}) if options.json else f"{json.dumps(on)}\n{_table(found, on['covers'])}")


def _synthesis(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    """Line by line, as it takes minutes."""
    from . import rows
    from .synthesis import synthesis

    precision = options.precision or "float32"
    measured = synthesis(blocks, clock, options.only, precision, options.compile)
    about = {**rows.about(options.clock), "precision": precision, "compile": options.compile}
    print(json.dumps(about) if options.json else f"{json.dumps(about)}\n{rows.HEAD}", flush=True)
    for row in measured:
        print(rows.as_json(row) if options.json else rows.as_text(row), flush=True)


def _throughput(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    from . import throughput
    from .rows import about

    measured = throughput.throughput(blocks, clock, options.only, options.device or "cpu")
    print(json.dumps(about(options.clock)), flush=True)
    if not options.json:
        print(throughput.HEAD, flush=True)
    rows = []
    for made in measured:
        rows.append(made)
        print(throughput.as_json(made) if options.json else throughput.as_text(made), flush=True)
    if options.chart is not None:
        throughput.chart(rows, options.chart)


def _scaling(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    """The axes, then memory; the chart is of the axes."""
    from . import scaling
    from .rows import about

    if options.most is not None and options.most < 1:
        raise ValueError(f"most: expected an integer >= 1, found {options.most}")
    device = options.device or "cpu"
    measured = scaling.scaling(blocks, clock, options.only, options.most, device)
    print(json.dumps(about(options.clock)), flush=True)
    if not options.json:
        print(scaling.HEAD, flush=True)
    points = []
    for point in measured:
        points.append(point)
        print(scaling.as_json(point) if options.json else scaling.as_text(point), flush=True)
    if options.chart is not None:
        scaling.chart(points, options.chart)
    if options.steps and not options.only:
        for row in scaling.memory(options.steps, device):
            print(json.dumps(row), flush=True)


def _gpu(options: argparse.Namespace, blocks: int, clock: Clock) -> int:
    """1 where a part failed. Lines as they come, then a table of all that the file has of this device and size."""
    del blocks, clock  # each part has its own, and the budget is of the wall's
    began = time.monotonic()
    from dfkd.types import as_device

    from . import curve, gpu
    from .protocol import FAILED, read, run
    from .rows import about
    from .served import SAVING, Served

    for name in ("minutes", "run_seconds"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected a number > 0, found {value}")
    device, out = as_device(options.device or "cuda"), options.out
    found = about("wall")
    marks = gpu.where(device, options.small, found["commit"])
    folder = out.with_name(f"{out.stem}.files")
    seconds = options.run_seconds or (2.0 if options.small else 90.0)
    lent = gpu.Lent(device, folder, options.data, options.teacher, options.small, seconds, gpu.stamp(marks)).resolved()
    for missing in gpu.check(lent):
        print(missing, file=sys.stderr)
    ask = Served("experiments.bench.gpu:served", lent.as_plain(), out.with_name(f"{out.stem}.log"))
    try:
        added = run(
            gpu.parts(lent),
            60.0 * options.minutes - (time.monotonic() - began) - _ENDS,
            out,
            found,
            marks,
            ask,
            show=lambda text: print(text, flush=True),
        )
        ask.close()
    finally:
        ask.close(SAVING)
    rows = curve.there(read(out), marks)
    if not options.json:
        print(curve.table(rows))
    if options.chart is not None:
        if curve.runs(rows):
            curve.chart(rows, options.chart)
        else:
            print("chart: no accuracy was measured, so there is none to draw", file=sys.stderr)
    return int(any(row.get("status") == FAILED for row in added))


def _table(found: dict[str, float], covers: float) -> str:
    """One row for each ratio, with its interval and how often such an interval holds the true median."""
    names = [name for name in found if not name.endswith(("_low", "_high"))]
    width = max(map(len, names))
    lines = [f"{'engine / bare loop':{width}}  median  interval that covers {100.0 * covers:.1f} %"]
    lines += [f"{n:{width}}  {found[n]:6.3f}  {found[f'{n}_low']:.3f} to {found[f'{n}_high']:.3f}" for n in names]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
