"""A study that is a comparison, or several: a YAML file in one of the folders here, at the sizes that are asked for.

    python -m experiments mnist/lenet5 cpu --out runs/mnist
    python -m experiments mnist/lenet5 cpu --out runs/mnist budget.steps=100 'seeds=[0]'
    python -m experiments mnist/noise base steps_1000 teacher_1

The first word names the file, the next ones some of its sizes; then settings of `dfkd compare` as KEY=VALUE. One
comparison per file and size, in a folder of its own; what was begun there is continued. Prints a table in Markdown, of
what the file says is `shown` and beside the accuracies that were `published`, and keeps it there as table.md.
Generators of images that the file names are trained first, each in a folder of its name; $OUT is the folder of --out.
Teachers that a size has in common with another one beside it are trained once. `--help` lists the studies.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dfkd import commands, config
from dfkd.allocator import keep_freed_memory
from dfkd.claim import claimed
from dfkd.config import CompareConfig, GeneratorConfig
from dfkd.data import load
from dfkd.files import make_folder, replace_file, replacing
from dfkd.naming import unknown
from dfkd.plain import read_yaml
from dfkd.resolve import teacher_spec
from dfkd.results import read
from dfkd.train_generator import planned

from .ending import in_a_line
from .table import SHOWN, table

HERE = Path(__file__).parent


def studies() -> list[str]:
    """The names of all files that are studies: those with sizes."""
    found = [file for file in sorted(HERE.glob("*/*.yaml")) if "\nsizes:" in file.read_text(encoding="utf-8")]
    return [f"{file.parent.name}/{file.stem}" for file in found]


def described(study: str, out: Path) -> dict[str, Any]:
    """What the file of a study says, for this folder."""
    file = HERE / f"{study}.yaml"
    found: dict[str, Any] = read_yaml(file.read_text(encoding="utf-8").replace("$OUT", str(out)), str(file))
    return found


def listed() -> str:
    """All studies with their sizes, a line each."""
    sizes = {study: ", ".join(described(study, Path())["sizes"]) for study in studies()}
    width = max(map(len, sizes))
    return "".join(f"  {study:{width}s}  {own}\n" for study, own in sizes.items())


def write_settings(settings: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """A file of each, unless one of them is there and says something else: it is not this study's."""
    for name, wanted in settings.items():
        file = out / f"{name}.yaml"
        try:
            there = read_yaml(file.read_text(encoding="utf-8"), str(file)) if file.exists() else wanted
        except ValueError:
            there = None
        if there != wanted:
            raise ValueError(f"out: {file} is there and is not what this study writes; move it, or name another folder")
    make_folder(out)
    for name, wanted in settings.items():
        if not (out / f"{name}.yaml").exists():
            replace_file(out / f"{name}.yaml", yaml.safe_dump(wanted, sort_keys=False).encode())


def share_teachers(folder: Path, resolved: dict[str, Any]) -> None:
    """Copies what another comparison beside this one has trained from the same settings and data: the same weights."""
    taught = resolved["teacher"]
    for teacher in sorted(folder.parent.glob("*/teacher.safetensors")):
        other = teacher.parent
        if other == folder or taught["data"] is None or not (other / "manifest.json").exists():
            continue
        theirs = read_yaml((other / "config.yaml").read_text(encoding="utf-8"), str(other / "config.yaml"))
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
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        usage="%(prog)s STUDY SIZE ... [KEY=VALUE ...] [--out OUT] [--workers WORKERS]",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"studies and their sizes:\n{listed()}" if {"-h", "--help"} & set(words) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help="a study, some of its sizes, settings of `dfkd compare`")
    parser.add_argument("--out", type=Path, help="runs/FOLDER unless named")
    parser.add_argument("--workers", type=int, help="processes, one thread each")
    given = parser.parse_intermixed_args(words)
    settings = [word for word in given.words if "=" in word]
    study, *sizes = [word for word in given.words if "=" not in word] or [""]
    if study not in studies():
        raise unknown("study", study, studies())
    folder, name = study.split("/")
    out = given.out or Path("runs") / folder
    plan = described(study, out)
    for size in sizes or [""]:
        if size not in plan["sizes"]:
            raise unknown("size", size, plan["sizes"])
    generators = plan.get("generators", {})
    wanted = {f"{name}-{size}": plan["common"] | plan["sizes"][size] for size in sizes}
    # what is wrong with settings, or with the data of a teacher or a generator, is found before anything is written
    for generator, how in generators.items():
        try:
            planned(config.parse(GeneratorConfig, how))
        except ValueError as error:
            raise ValueError(f"{generator}: {error}") from error
    parsed: dict[str, CompareConfig] = {
        run: config.parse(CompareConfig, config.read_settings(settings, own)) for run, own in wanted.items()
    }
    for comparison in parsed.values():
        teacher_spec(comparison.teacher, "teacher")
    write_settings(generators | wanted, out)
    for generator in generators:
        commands.train_generator([str(out / f"{generator}.yaml")], out / generator, dry_run=False)
    texts = []
    for size in sizes:
        run = f"{name}-{size}"
        written = out / run
        share_teachers(written, config.dump(parsed[run]))
        commands.compare([str(out / f"{run}.yaml"), *settings], written, given.workers, dry_run=False)
        text = table(read(written / "results.jsonl"), plan.get("published"), plan.get("shown", SHOWN))
        replace_file(written / "table.md", text.encode())
        texts.append(f"{name} {size}\n\n{text}")
    return "\n".join(texts)


if __name__ == "__main__":
    keep_freed_memory()
    with in_a_line("experiments"):
        print(main(sys.argv[1:]), end="")
