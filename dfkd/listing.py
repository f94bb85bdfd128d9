"""What there is by name, for `dfkd list`: read from the tables, the docstrings and the settings themselves."""

import dataclasses
import json
import shutil
import textwrap
import typing
from collections.abc import Callable
from typing import Any

from dfkd import about, models
from dfkd import config as configuration
from dfkd.interfaces import Sampler
from dfkd.layout import check_layout
from dfkd.naming import unknown
from dfkd.registry import GENERATORS, LOSSES, SAMPLERS, SCHEMES, find

__all__ = ["KINDS", "rows", "show"]

Row = dict[str, Any]


def rows(kind: str) -> list[Row]:
    """The samplers, losses, schemes, models, generators or data sets, with options and defaults."""
    if kind not in KINDS:
        raise unknown("list", kind, KINDS)
    return KINDS[kind]()


def _samplers() -> list[Row]:
    found = []
    for name, place in SAMPLERS.items():
        cls = find("sampler", name, SAMPLERS)
        hints = typing.get_type_hints(cls)
        alone = [other.partition(":")[0] for other in SAMPLERS.values()].count(place.partition(":")[0]) == 1
        about_it = {"summary": about.summary(cls, of_module=alone), "paper": about.paper(cls)}
        made_of_others = any(
            f.init and _required(f) and _holds_samplers(hints[f.name]) for f in dataclasses.fields(cls)
        )
        # a composite is as data-free as its parts
        marks = {"needs": list(cls.needs), "data_free": None if made_of_others else bool(cls.data_free)}
        marks["variants"] = list(getattr(cls, "variants", ()))
        found.append({"name": name, **about_it, **marks, "options": _options(cls)})
    return found


def _holds_samplers(hint: Any) -> bool:
    """Sampler, or anything of Samplers such as tuple[Sampler, ...]."""
    return hint is Sampler or any(_holds_samplers(part) for part in typing.get_args(hint))


def _losses() -> list[Row]:
    found = []
    for name in LOSSES:
        cls = find("loss", name, LOSSES)
        about_it = {"summary": about.summary(cls, of_module=False), "paper": about.paper(cls)}
        found.append({"name": name, **about_it, "options": _options(cls)})
    return found


def _schemes() -> list[Row]:
    found = []
    for name in SCHEMES:
        cls = find("scheme", name, SCHEMES)
        about_it = {"summary": about.summary(cls, of_module=True), "paper": about.paper(cls)}
        found.append({"name": name, **about_it, "options": _options(cls)})
    return found


def _generators() -> list[Row]:
    found = []
    for name in GENERATORS:
        cls = find("generator", name, GENERATORS)
        about_it = {"summary": about.summary(cls, of_module=True), "paper": about.paper(cls)}
        found.append({"name": name, **about_it, "options": _options(cls)})
    return found


def _options(cls: Any) -> list[Row]:
    hints = typing.get_type_hints(cls)
    return [
        {"name": f.name, "type": configuration.words(hints[f.name]), "default": _default(f), "required": _required(f)}
        for f in dataclasses.fields(cls)
        if f.init
    ]


def _required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _default(f: "dataclasses.Field[Any]") -> Any:
    if f.default is not dataclasses.MISSING:
        return configuration.dump(f.default)
    return None if f.default_factory is dataclasses.MISSING else configuration.dump(f.default_factory())


def _models() -> list[Row]:
    return [{"name": name, "summary": models.SUMMARIES[name]} for name in models.MODELS]


def _data() -> list[Row]:
    from dfkd.data import SOURCES

    named = [{"name": name, "summary": "scikit-learn" if name == "digits" else "torchvision"} for name in SOURCES]
    return [
        *named,
        {"name": "FILE.npz", "summary": "arrays x_train y_train x_test y_test classes, uint8"},
        {"name": "FOLDER", "summary": "a folder for each class, or train/ and test/ with one for each class"},
        {"name": "BANK", "summary": "a folder that `dfkd synthesize` wrote, with the teacher's labels, to train on"},
    ]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "samplers": _samplers,
    "losses": _losses,
    "schemes": _schemes,
    "models": _models,
    "generators": _generators,
    "data": _data,
}


def show(kind: str, as_json: bool) -> None:
    """Prints one kind; JSON is one line, for programs."""
    check_layout()
    found = rows(kind)
    if as_json:
        print(json.dumps(found))
        return
    width = max(72, min(shutil.get_terminal_size().columns, 120))
    for row in found:
        print(_paragraph(f"{row['name']:{_NAME}s} {row['summary']}", width))
        if row.get("paper"):
            marks = [_DATA[row["data_free"]]] if "data_free" in row else []
            marks += [f"needs {', '.join(row['needs'])}"] if row.get("needs") else []
            print(_paragraph(f"{'':{_NAME}s} {'; '.join([*marks, row['paper']])}", width))
        if row.get("variants"):
            print(_paragraph(f"{'':{_NAME}s} variants: {', '.join(row['variants'])}", width))
        options = ", ".join(map(_option, row.get("options", ())))
        if options:
            print(_paragraph(f"{'':{_NAME}s} {options}", width).replace(_BLANK, " "))


_NAME = 18  # columns
_BLANK = "\u00a0"  # at which no line is broken
_DATA = {True: "data-free", False: "reads data", None: "data-free as its parts are"}


def _paragraph(text: str, width: int) -> str:
    return textwrap.fill(
        text, width, subsequent_indent=" " * (_NAME + 1), break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip


def _option(option: Row) -> str:
    """As it is written in YAML, with the default that it has."""
    name, default = option["name"], option["default"]
    if option["required"]:
        return f"{name} ({option['type']}, required)".replace(" ", _BLANK)
    if isinstance(default, float):
        default = f"{default:.6g}"
    elif not isinstance(default, str):
        default = json.dumps(default)
    return f"{name}={default}".replace(" ", _BLANK)
