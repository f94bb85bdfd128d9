"""Every way of making inputs on MNIST, at the size that a study is asked for.

    python -m experiments.mnist lenet5 cpu --out runs/mnist
    python -m experiments.mnist lenet5 cpu --out runs/mnist budget.steps=100 'seeds=[0]'
    python -m experiments.mnist noise base steps_1000 teacher_1

The first word names a YAML file beside this one, the next ones some of its sizes; then settings of `dfkd compare` as
KEY=VALUE. One comparison per file and size, in a folder of its own; what was begun there is continued. Prints a table
in Markdown, with the published accuracies where the file has them, and keeps it there as table.md.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from dfkd import commands
from dfkd.files import make_folder, replace_file
from dfkd.results import Line, read

HERE = Path(__file__).parent


def main(words: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="experiments.mnist", description="see the first lines of this file")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--workers", type=int, help="processes, one thread each")
    given = parser.parse_intermixed_args(words)
    out, settings = given.out, [word for word in given.words if "=" in word]
    name, *sizes = [word for word in given.words if "=" not in word] or [""]
    files = sorted(file.stem for file in HERE.glob("*.yaml"))
    if name not in files:
        raise SystemExit(f"experiments.mnist: expected one of {', '.join(files)} first, found {name!r}")
    study: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    for size in sizes or [""]:
        if size not in study["sizes"]:
            raise SystemExit(f"experiments.mnist: expected one of {', '.join(study['sizes'])} next, found {size!r}")
    make_folder(out)
    texts = []
    for size in sizes:
        folder, file = out / f"{name}-{size}", out / f"{name}-{size}.yaml"
        replace_file(file, yaml.safe_dump(study["common"] | study["sizes"][size], sort_keys=False).encode())
        commands.compare([str(file), *settings], folder, given.workers, dry_run=False)
        text = table(read(folder / "results.jsonl"), study["published"])
        replace_file(folder / "table.md", text.encode())
        texts.append(f"{name} {size}\n\n{text}")
    return "\n".join(texts)


def table(lines: list[Line], published: dict[str, Any]) -> str:
    """One row per sampler, best accuracy first: mean ± sample standard deviation over seeds, on the test set."""
    rows = []
    for label in dict.fromkeys(line.sampler for line in lines):
        own = [line for line in lines if line.sampler == label and line.evaluation == "test"]
        found = {m: [line.value for line in own if line.metric == m and line.value is not None] for m in METRICS}
        costs = [line for line in own if line.metric == "agreement"]
        images, seconds = fmean(line.teacher_images for line in costs), fmean(line.seconds for line in costs)
        status = ", ".join(sorted({line.status for line in costs} - {"ok"})) or "ok"
        numbers = [_spread(found["accuracy"], 100.0), _spread(found["agreement"], 100.0), _spread(found["kl"], 1.0)]
        cells = [label, str(published.get(label, "")), *numbers, f"{images / 1e6:.2f}", f"{seconds:.0f}", status]
        rows.append((fmean(found["accuracy"] or [0.0]), cells))
    head = ["sampler", "published", "accuracy %", "agreement %", "KL (nats)", "teacher images (M)", "seconds", "status"]
    ordered = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *ordered])


METRICS = ("accuracy", "agreement", "kl")


def _spread(values: list[float], factor: float) -> str:
    if not values:
        return ""
    digits = 2 if factor == 100.0 else 3
    mean = f"{factor * fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * stdev(values):.{digits}f}"


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
