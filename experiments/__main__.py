"""A study that is a comparison, or several: a YAML file in one of the folders here, at the sizes that are asked for.

    python -m experiments mnist/lenet5 cpu --out runs/mnist
    python -m experiments mnist/lenet5 cpu --out runs/mnist budget.steps=100 'seeds=[0]'
    python -m experiments mnist/noise base steps_1000 teacher_1

The first word names the file, the next ones some of its sizes; then settings of `dfkd compare` as KEY=VALUE. One
comparison per file and size, in a folder of its own; what was begun there is continued. Prints a table in Markdown, of
what the file says is `shown` and beside the accuracies that were `published`, and keeps it there as table.md.
Generators of images that the file names are trained first, each in a folder of its name; $OUT is the folder of --out.
Teachers that a size has in common with another one beside it are trained once.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from dfkd import commands, config
from dfkd.allocator import keep_freed_memory
from dfkd.claim import claimed
from dfkd.config import CompareConfig
from dfkd.data import load
from dfkd.files import make_folder, replace_file, replacing
from dfkd.results import read

from .table import SHOWN, table

HERE = Path(__file__).parent


def studies() -> list[str]:
    """The names of all files that are studies: those with sizes."""
    found = [file for file in sorted(HERE.glob("*/*.yaml")) if "\nsizes:" in file.read_text(encoding="utf-8")]
    return [f"{file.parent.name}/{file.stem}" for file in found]


def share_teachers(folder: Path, resolved: dict[str, Any]) -> None:
    """Copies what another comparison beside this one has trained from the same settings and data: the same weights."""
    taught = resolved["teacher"]
    for teacher in sorted(folder.parent.glob("*/teacher.safetensors")):
        other = teacher.parent
        if other == folder or taught["data"] is None or not (other / "manifest.json").exists():
            continue
        theirs = yaml.safe_load((other / "config.yaml").read_text(encoding="utf-8"))
        manifest = json.loads((other / "manifest.json").read_text(encoding="utf-8"))
        if (
            theirs["teacher"] != taught
            or manifest["data"]["digest"] != load(taught["data"], size=taught["size"]).digest
        ):
            continue
        alike = [teacher]
        if theirs["control_teacher"] == resolved["control_teacher"]:
            alike.append(other / "control_teacher.safetensors")
        for file in alike:
            if file.exists() and not (folder / file.name).exists():
                with claimed(folder, resolved), replacing(folder / file.name) as draft:
                    shutil.copyfile(file, draft)


def main(words: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="experiments", description="see the first lines of this file")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--out", type=Path, help="runs/FOLDER unless named")
    parser.add_argument("--workers", type=int, help="processes, one thread each")
    given = parser.parse_intermixed_args(words)
    settings = [word for word in given.words if "=" in word]
    study, *sizes = [word for word in given.words if "=" not in word] or [""]
    if study not in studies():
        raise SystemExit(f"experiments: expected one of {', '.join(studies())} first, found {study!r}")
    folder, name = study.split("/")
    out = given.out or Path("runs") / folder
    text = (HERE / f"{study}.yaml").read_text(encoding="utf-8").replace("$OUT", str(out))
    described: dict[str, Any] = yaml.safe_load(text)
    for size in sizes or [""]:
        if size not in described["sizes"]:
            raise SystemExit(f"experiments: expected one of {', '.join(described['sizes'])} next, found {size!r}")
    make_folder(out)
    for generator, how in described.get("generators", {}).items():
        replace_file(out / f"{generator}.yaml", yaml.safe_dump(how, sort_keys=False).encode())
        commands.train_generator([str(out / f"{generator}.yaml")], out / generator, dry_run=False)
    texts = []
    for size in sizes:
        written, file = out / f"{name}-{size}", out / f"{name}-{size}.yaml"
        replace_file(file, yaml.safe_dump(described["common"] | described["sizes"][size], sort_keys=False).encode())
        share_teachers(written, config.dump(config.parse(CompareConfig, config.read_settings([str(file), *settings]))))
        commands.compare([str(file), *settings], written, given.workers, dry_run=False)
        text = table(read(written / "results.jsonl"), described.get("published"), described.get("shown", SHOWN))
        replace_file(written / "table.md", text.encode())
        texts.append(f"{name} {size}\n\n{text}")
    return "\n".join(texts)


if __name__ == "__main__":
    keep_freed_memory()
    print(main(sys.argv[1:]), end="")
