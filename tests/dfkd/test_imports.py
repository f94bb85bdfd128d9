"""Who may import whom, read from the source: the house's rooms, and that the linter's contracts mean the same."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="reads the source tree")

CORE = {
    "affine",
    "allocator",
    "bank",
    "types",
    "rng",
    "problem",
    "interfaces",
    "moments",
    "naming",
    "pixels",
    "plain",
    "augment",
    "about",
    "files",
    "compilation",
}
RUN = {"engine", "runtime", "checkpoint", "schedule"}
COMPARE = {"comparison", "plan", "cells", "scoring", "claim", "jobs", "scouting", "selection", "synthesis"}
WORDS = {
    "candidates",
    "config",
    "distillation",
    "train_generator",
    "registry",
    "cli",
    "commands",
    "resolve",
    "listing",
    "layout",
    "__main__",
}
SINGLE = {"losses", "models", "data", "schemes", "fidelity", "results", "report", "evaluate"}

MAY: dict[str, set[str]] = {
    **dict.fromkeys(CORE, CORE),
    "losses": CORE,
    "models": CORE,
    "data": CORE,
    "fidelity": CORE | {"losses"},
    "results": CORE,
    "evaluate": CORE | {"fidelity"},
    **dict.fromkeys(RUN, CORE | RUN | {"losses"}),
    "schemes": CORE | RUN | {"losses", "models", "fidelity"},
    "report": CORE | {"results", "fidelity"},
    **dict.fromkeys(COMPARE, CORE | RUN | COMPARE | SINGLE),
    **dict.fromkeys(WORDS, CORE | RUN | COMPARE | SINGLE | WORDS),
}
"""What each room of dfkd may import of the others, at module level or later."""

SAMPLERS_MAY = {
    "affine",
    "bank",
    "compilation",
    "types",
    "problem",
    "interfaces",
    "moments",
    "rng",
    "naming",
    "pixels",
    "augment",
    "losses",
    "data",
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(what is imported, whether importing the file is enough); type annotations do not count."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from visit(other, at_once)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name_of(file).split(".")
            if file.name != "__init__.py":
                package = package[:-1]
            base = package[: len(package) + 1 - node.level] if node.level else []
            full = ".".join([*base, node.module] if node.module else base)
            yield from ((f"{full}.{alias.name}", at_once) for alias in node.names)
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not later)

    yield from visit(ast.parse(file.read_text(encoding="utf-8")), True)


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def room(module: str) -> str:
    """dfkd.fidelity.metrics -> fidelity; the package itself is ''."""
    return [*module.split("."), ""][1]


def rooms() -> set[str]:
    inside = [path for path in (ROOT / "dfkd").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in inside} - {"__init__"}


def test_every_room_is_in_the_table() -> None:
    assert rooms() == set(MAY)


def test_generators_import_nothing_of_ours() -> None:
    for file in files("generators"):
        for name, _ in imports(file):
            assert name.split(".")[0] not in ("dfkd", "samplers"), f"{name_of(file)} imports {name}"


def test_samplers_import_generators_and_the_core() -> None:
    for file in files("samplers"):
        for name, at_once in imports(file):
            if name.split(".")[0] == "dfkd":
                assert room(name) in SAMPLERS_MAY, f"{name_of(file)} imports {name}"
                assert not (at_once and room(name) == "data"), f"{name_of(file)} imports {name} on being imported"


def test_dfkd_reaches_samplers_and_generators_by_the_registry_alone() -> None:
    for file in files("dfkd"):
        for name, _ in imports(file):
            assert name.split(".")[0] not in ("samplers", "generators"), f"{name_of(file)} imports {name}"


def test_rooms_import_what_they_may() -> None:
    for file in files("dfkd"):
        here = room(name_of(file))
        for name, at_once in imports(file):
            if not name.startswith("dfkd.") or room(name) == here or not here:
                continue
            there = room(name)
            if there == "__version__":
                continue
            assert there in MAY[here], f"{name_of(file)} imports {name}"
            assert not (at_once and there == "data"), f"{name_of(file)} imports {name} on being imported"


def test_the_package_itself_imports_nothing_of_ours_at_once() -> None:
    assert not [name for name, at_once in imports(ROOT / "dfkd" / "__init__.py") if at_once and "dfkd." in name]


def test_a_planted_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the reading of the source sees every way of writing an import."""
    file = tmp_path / "dfkd" / "room" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import dfkd.a\nfrom dfkd import b\nfrom ..c import d\nfrom . import e\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dfkd.f\n"
        "def late():\n    from dfkd.g import h\ntry:\n    import dfkd.i\nexcept ImportError: ...\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = {name: at_once for name, at_once in imports(file) if name.startswith("dfkd")}
    assert found == {
        "dfkd.a": True,
        "dfkd.b": True,
        "dfkd.c.d": True,
        "dfkd.room.e": True,
        "dfkd.g.h": False,
        "dfkd.i": True,
    }


def test_the_linters_contracts_mean_the_same() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = {
        tuple(contract["source_modules"]): {name.removeprefix("dfkd.") for name in contract["forbidden_modules"]}
        for contract in contracts
    }
    core = tuple(sorted(f"dfkd.{name}" for name in CORE))
    assert forbidden[("generators",)] == {"dfkd", "samplers"}
    assert forbidden[("dfkd",)] == {"samplers", "generators"}
    assert forbidden[("samplers",)] == rooms() - SAMPLERS_MAY
    assert forbidden[core] == rooms() - CORE
