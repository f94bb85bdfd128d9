"""python -m experiments.bench NAME: measures this machine. A table for people, lines of JSON with --json."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

from dfkd.naming import unknown

BENCHES = {"overhead": 21, "synthesis": 9}
"""Pairs of blocks or steps that count, unless told."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("name", help=f"what to measure: {', '.join(BENCHES)}")
    parser.add_argument("--json", action="store_true", help="lines of JSON: one for overhead, one a row for synthesis")
    parser.add_argument("--blocks", type=int, help="alternating blocks that count (overhead 21, synthesis 9)")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own time, for a busy machine"
    )
    parser.add_argument("--only", nargs="+", metavar="SAMPLER", help="synthesis: these samplers alone")
    options = parser.parse_args(arguments)
    try:
        if options.name not in BENCHES:
            raise unknown("bench", options.name, list(BENCHES))
        blocks = BENCHES[options.name] if options.blocks is None else options.blocks
        if blocks < 1:
            raise ValueError(f"blocks: expected an integer >= 1, found {blocks}")
        if options.only and options.name != "synthesis":
            raise ValueError(f"only: expected none with {options.name}, found {', '.join(options.only)}")
        measure = _overhead if options.name == "overhead" else _synthesis
        measure(options, blocks, time.perf_counter if options.clock == "wall" else time.process_time)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _overhead(options: argparse.Namespace, blocks: int, clock: Callable[[], float]) -> None:
    from .overhead import overhead

    found = overhead(blocks, clock)
    print(json.dumps(found) if options.json else _table(found))


def _synthesis(options: argparse.Namespace, blocks: int, clock: Callable[[], float]) -> None:
    """Line by line, as it takes minutes."""
    from . import rows
    from .synthesis import synthesis

    measured = synthesis(blocks, clock, options.only)
    about = rows.about(options.clock)
    print(json.dumps(about) if options.json else f"{json.dumps(about)}\n{rows.HEAD}", flush=True)
    for row in measured:
        print(rows.as_json(row) if options.json else rows.as_text(row), flush=True)


def _table(found: dict[str, float]) -> str:
    """One row for each ratio, with its interval."""
    names = [name for name in found if not name.endswith(("_low", "_high"))]
    width = max(map(len, names))
    lines = [f"{'engine / bare loop':{width}}  median  95 % interval"]
    lines += [f"{n:{width}}  {found[n]:6.3f}  {found[f'{n}_low']:.3f} to {found[f'{n}_high']:.3f}" for n in names]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
