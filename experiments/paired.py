"""By how much one row of a comparison is above another, seed by seed: for claims that one of two does better.

    python -m experiments.paired agreement@test runs/derivatives/mnist_200-jacobian:real_200 \\
        runs/derivatives/mnist_200-values:real_200

METRIC@COLUMN of the fidelity matrix, then the two rows, each as FOLDER:SAMPLER, or FILE:SAMPLER of kept results;
FILE:SIZE/SAMPLER where those are of several sizes, as noise is kept in mnist, on the test set. Prints the first minus
the second: mean ± sample standard deviation over the seeds that both have, and each of them; shares in points of 100.
Students of one seed start from the same weights where they are the same net.
"""

import json
import sys
from pathlib import Path
from statistics import fmean, stdev

from dfkd.naming import unknown
from dfkd.results import Line

from .ending import in_a_line
from .table import is_share, kept, place, results_file

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
        raise ValueError(f"expected METRIC@COLUMN FOLDER:SAMPLER FOLDER:SAMPLER, found {' '.join(words) or 'nothing'}")
    found = paired(_rows(words[1], words[0]), _rows(words[2], words[0]), words[0])
    spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
    return f"{fmean(found):+.3f}{spread}  ({' '.join(f'{value:+.3f}' for value in found)})\n"


def _rows(word: str, one: str) -> list[Line]:
    """The lines of FOLDER:SAMPLER; ValueError where it has none of METRIC@COLUMN."""
    where, _, sampler = word.rpartition(":")
    file = results_file(Path(where))
    lines = _of_sizes(file) or kept(file)
    own = [line for line in lines if line.sampler == sampler]
    if not own:
        raise unknown(f"{file}: sampler", sampler, dict.fromkeys(line.sampler for line in lines))
    if one not in map(place, own):
        raise unknown(f"{file}: METRIC@COLUMN", one, dict.fromkeys(map(place, own)))
    return own


def _of_sizes(file: Path) -> list[Line]:
    """Results of several sizes, their samplers as SIZE/SAMPLER; none where the lines name no size.

    They were kept without the column, which is the test set, and without whether data was read: nobody asks it here.
    """
    try:
        found = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
        sizes = [f"{line['size']}/{line['sampler']}" for line in found]
    except (ValueError, TypeError, KeyError):
        return []
    whole = {"evaluation": "test", "data_free": True}
    try:
        return [Line.from_dict(whole | line | {"sampler": name}) for line, name in zip(found, sizes, strict=True)]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


if __name__ == "__main__":
    with in_a_line("experiments.paired"):
        print(main(sys.argv[1:]), end="")
