"""By how much one row of a comparison is above another, seed by seed: for claims that one of two does better.

    python -m experiments.paired agreement@test runs/derivatives/mnist_200-jacobian:real_200 \\
        runs/derivatives/mnist_200-values:real_200

METRIC@COLUMN of the fidelity matrix, then the two rows, each as FOLDER:SAMPLER, or FILE:SAMPLER of kept results. Prints
the first minus the second: mean ± sample standard deviation over the seeds that both have, and each of them; shares in
points of 100. Students of one seed start from the same weights where they are the same net.
"""

import sys
from pathlib import Path
from statistics import fmean, stdev

from dfkd.results import Line, read

from .table import is_share, place

__all__ = ["paired"]


def paired(lines: list[Line], others: list[Line], one: str) -> list[float]:
    """The differences of METRIC@COLUMN by seed, in the order of seeds; ValueError where the two have none in common."""
    ours, theirs = (
        {line.seed: line.value for line in side if place(line) == one and line.value is not None}
        for side in (lines, others)
    )
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise ValueError(f"{one}: expected a seed that both have, found {sorted(ours)} and {sorted(theirs)}")
    factor = 100.0 if is_share(one) else 1.0
    return [factor * (ours[seed] - theirs[seed]) for seed in shared]


def main(words: list[str]) -> str:
    if len(words) != 3 or not all(":" in word for word in words[1:]):
        raise SystemExit(f"experiments.paired: expected METRIC@COLUMN FOLDER:SAMPLER FOLDER:SAMPLER, found {words}")
    found = paired(_rows(words[1]), _rows(words[2]), words[0])
    spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
    return f"{fmean(found):+.3f}{spread}  ({' '.join(f'{value:+.3f}' for value in found)})\n"


def _rows(word: str) -> list[Line]:
    where, _, sampler = word.rpartition(":")
    path = Path(where)
    return [line for line in read(path / "results.jsonl" if path.is_dir() else path) if line.sampler == sampler]


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
