"""python -m experiments.bench NAME: measures this machine. A table for people, one line of JSON with --json."""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from dfkd.naming import unknown

BENCHES = ("overhead",)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("name", help=f"what to measure: {', '.join(BENCHES)}")
    parser.add_argument("--json", action="store_true", help="one flat line of JSON: ratios only")
    parser.add_argument("--blocks", type=int, default=21, help="alternating blocks that count (default 21)")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own time, for a busy machine"
    )
    options = parser.parse_args(arguments)
    try:
        if options.name not in BENCHES:
            raise unknown("bench", options.name, BENCHES)
        if options.blocks < 1:
            raise ValueError(f"blocks: expected an integer >= 1, found {options.blocks}")
        from .overhead import overhead

        found = overhead(options.blocks, time.perf_counter if options.clock == "wall" else time.process_time)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found) if options.json else _table(found))
    return 0


def _table(found: dict[str, float]) -> str:
    """One row for each ratio, with its interval."""
    names = [name for name in found if not name.endswith(("_low", "_high"))]
    width = max(map(len, names))
    lines = [f"{'engine / bare loop':{width}}  median  95 % interval"]
    lines += [f"{n:{width}}  {found[n]:6.3f}  {found[f'{n}_low']:.3f} to {found[f'{n}_high']:.3f}" for n in names]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
