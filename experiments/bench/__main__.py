"""python -m experiments.bench NAME: measures this machine. A table for people, lines of JSON with --json."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dfkd.naming import unknown

BENCHES = {"overhead": 21, "synthesis": 9, "throughput": 5, "scaling": 5, "gpu": 1}
"""Pairs of blocks or steps that count, or repetitions, unless told."""

Clock = Callable[[], float]
ONLY = {"synthesis": "samplers", "throughput": "samplers", "scaling": "axes"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("name", help=f"what to measure: {', '.join(BENCHES)}")
    parser.add_argument("--json", action="store_true", help="lines of JSON: one for overhead, else one a row")
    parser.add_argument("--blocks", type=int, help="blocks or repetitions that count (21, 9, 5, 5)")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own time, for a busy machine"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these samplers, or for scaling these axes, alone")
    parser.add_argument("--device", default=None, help="throughput, scaling: cpu unless told; gpu: cuda unless told")
    parser.add_argument("--most", type=int, help="scaling: the largest size of every axis")
    parser.add_argument("--chart", type=Path, help="throughput, scaling, gpu: a picture of it, as .png or .svg")
    parser.add_argument(
        "--steps", type=int, default=400, help="scaling: steps over which memory is watched, 0 for none"
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="gpu: ends before they have passed")
    parser.add_argument("--data", help="gpu: an .npz of CIFAR-10")
    parser.add_argument("--teacher", type=Path, help="gpu: weights of resnet56")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.jsonl"), help="gpu: lines of JSON, continued from")
    parser.add_argument("--small", action="store_true", help="gpu: tiny sizes, a rehearsal for any machine")
    options = parser.parse_args(arguments)
    try:
        if options.name not in BENCHES:
            raise unknown("bench", options.name, list(BENCHES))
        blocks = BENCHES[options.name] if options.blocks is None else options.blocks
        if blocks < 1:
            raise ValueError(f"blocks: expected an integer >= 1, found {blocks}")
        if options.only and options.name not in ONLY:
            raise ValueError(f"only: expected none with {options.name}, found {', '.join(options.only)}")
        measures = {
            "overhead": _overhead,
            "synthesis": _synthesis,
            "throughput": _throughput,
            "scaling": _scaling,
            "gpu": _gpu,
        }
        clock = time.perf_counter if options.clock == "wall" else time.process_time
        measures[options.name](options, blocks, clock)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _overhead(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    from .overhead import overhead

    found = overhead(blocks, clock)
    print(json.dumps(found) if options.json else _table(found))


def _synthesis(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    """Line by line, as it takes minutes."""
    from . import rows
    from .synthesis import synthesis

    measured = synthesis(blocks, clock, options.only)
    about = rows.about(options.clock)
    print(json.dumps(about) if options.json else f"{json.dumps(about)}\n{rows.HEAD}", flush=True)
    for row in measured:
        print(rows.as_json(row) if options.json else rows.as_text(row), flush=True)


def _throughput(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    from . import throughput
    from .rows import about

    print(json.dumps(about(options.clock)), flush=True)
    if not options.json:
        print(throughput.HEAD, flush=True)
    rows = []
    for made in throughput.throughput(blocks, clock, options.only, options.device or "cpu"):
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
    print(json.dumps(about(options.clock)), flush=True)
    if not options.json:
        print(scaling.HEAD, flush=True)
    points = []
    for point in scaling.scaling(blocks, clock, options.only, options.most, device):
        points.append(point)
        print(scaling.as_json(point) if options.json else scaling.as_text(point), flush=True)
    if options.chart is not None:
        scaling.chart(points, options.chart)
    if options.steps and not options.only:
        for row in scaling.memory(options.steps, device):
            print(json.dumps(row), flush=True)


def _gpu(options: argparse.Namespace, blocks: int, clock: Clock) -> None:
    del blocks, clock  # each part has its own, and the budget is of the wall's
    from dfkd.types import as_device

    from .curve import chart
    from .gpu import Lent, parts
    from .protocol import read, run
    from .rows import about

    if not options.minutes > 0:
        raise ValueError(f"minutes: expected a number > 0, found {options.minutes}")
    lent = Lent(
        as_device(options.device or "cuda"),
        options.out.parent / "teachers",
        options.data,
        options.teacher,
        options.small,
    )
    run(parts(lent), 60.0 * options.minutes, options.out, about("wall"), show=lambda text: print(text, flush=True))
    if options.chart is not None:
        chart(read(options.out), options.chart)


def _table(found: dict[str, float]) -> str:
    """One row for each ratio, with its interval."""
    names = [name for name in found if not name.endswith(("_low", "_high"))]
    width = max(map(len, names))
    lines = [f"{'engine / bare loop':{width}}  median  95 % interval"]
    lines += [f"{n:{width}}  {found[n]:6.3f}  {found[f'{n}_low']:.3f} to {found[f'{n}_high']:.3f}" for n in names]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
