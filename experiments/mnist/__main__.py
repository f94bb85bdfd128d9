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
from typing import Any

import yaml

from dfkd import commands
from dfkd.files import make_folder, replace_file
from dfkd.results import read

from ..table import table

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


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
