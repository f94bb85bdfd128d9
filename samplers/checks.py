"""What samplers ask of their settings: an error names the setting, what was expected and what was found."""

import os
from typing import Any

from dfkd.interfaces import Sampler
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import BATCHNORM_MODES, Batch, BatchNormMode

__all__ = [
    "a_labelling",
    "a_sampler",
    "at_least",
    "between",
    "one_mode",
    "one_of",
    "paths_as_text",
    "positive",
    "requires",
    "some_rows",
    "weight_or_auto",
    "whole_at_least",
]


def some_rows(n: int) -> None:
    """n: how many rows a draw is asked for."""
    if n < 1:
        raise ValueError(f"n: expected an integer >= 1, found {n!r}")


def a_sampler(name: str, value: object) -> None:
    """A part of a composite; a class where its settings are meant is the likely slip."""
    if isinstance(value, type) or not isinstance(value, Sampler):
        raise ValueError(f"{name}: expected a sampler, such as Uniform(), found {value!r}")


def paths_as_text(settings: object, *names: str) -> None:
    """A path that is no text, such as pathlib's, as the text that files of settings have."""
    for name in names:
        if isinstance(value := getattr(settings, name), os.PathLike):
            object.__setattr__(settings, name, os.fspath(value))  # settings are frozen once they are made


def a_labelling(value: str) -> None:
    """The BatchNorm mode the teacher labels in."""
    if value not in BATCHNORM_MODES:
        raise ValueError(f"labelling: expected one of {', '.join(BATCHNORM_MODES)}, found {value!r}")


INSTEAD = {
    "input_grad": ("smoothed", "shader", "dead_leaves"),
    "batchnorm": ("dfad", "zskt", "energy"),
    "penultimate": ("dfad", "zskt", "energy"),
}
"""By capability, samplers that do without it."""


def requires(problem: Problem, *needs: str, who: str, of_student: bool = False) -> None:
    """UnsupportedProblem naming `who`, what the teacher (or student) lacks, and samplers that do without."""
    for need in needs:
        try:
            (problem.student if of_student else problem.teacher).require(need, who=who)
        except UnsupportedProblem as error:
            others = [name for name in INSTEAD.get(need, ()) if name != who]  # no sampler in place of itself
            hint = f"; {', '.join(others)} do without" if others else ""
            raise UnsupportedProblem(f"{error}{hint}") from error
    if "input_grad" in needs and not of_student and problem.teacher.flat:  # of a student that may be what it has become
        raise UnsupportedProblem(
            f"{who}: needs a teacher with input_grad; this teacher's is 0 all over noise, as where it rounds; "
            f"{', '.join(INSTEAD['input_grad'])} do without"
        )


def one_mode(batch: Batch, who: str) -> BatchNormMode:
    """The one mode of all rows: rows that change places or are blended cannot be labelled part by part."""
    modes = {mode for _, mode in batch.labelling}
    if len(modes) != 1:
        found = " and ".join(sorted(modes))
        raise UnsupportedProblem(f"{who}: expected a base labelled in one BatchNorm mode, found {found}")
    return batch.mode


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole_at_least(settings: object, least: int, *names: str) -> None:
    """Integers >= least."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, found {value!r}")


def at_least(settings: object, least: float, *names: str) -> None:
    """Numbers >= least, finite."""
    for name in names:
        value = getattr(settings, name)
        if not _number(value) or not least <= value < float("inf"):
            raise ValueError(f"{name}: expected a number >= {least:g}, found {value!r}")


def positive(settings: object, *names: str) -> None:
    """Numbers > 0, finite."""
    for name in names:
        value = getattr(settings, name)
        if not _number(value) or not 0.0 < value < float("inf"):
            raise ValueError(f"{name}: expected a number > 0, found {value!r}")


def between(settings: object, low: float, high: float, *names: str) -> None:
    """Numbers in [low, high]."""
    for name in names:
        value = getattr(settings, name)
        if not _number(value) or not low <= value <= high:
            raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], found {value!r}")


def range_within(settings: object, low: float, high: float, *names: str, whole: bool = False) -> None:
    """Two finite numbers, or whole ones, (least, most), low <= least <= most <= high."""
    for name in names:
        value = getattr(settings, name)
        pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(_number(part) for part in value)
        pair = pair and not (whole and any(isinstance(part, float) for part in value))
        if not pair or not low <= value[0] <= value[1] <= high or value[1] == float("inf"):
            ends = f"{low:g} <= least <= most" + (f" <= {high:g}" if high < float("inf") else "")
            raise ValueError(f"{name}: expected two {'integers' if whole else 'numbers'}, {ends}, found {value!r}")


def true_or_false(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected true or false, found {value!r}")


def one_of(settings: object, known: tuple[str, ...], *names: str) -> None:
    """One of the known words."""
    for name in names:
        value = getattr(settings, name)
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}")


def weight_or_auto(settings: object, *names: str) -> None:
    """Numbers >= 0, finite, or the word `auto`."""
    for name in names:
        value = getattr(settings, name)
        if value != "auto" and not (_number(value) and 0.0 <= value < float("inf")):
            raise ValueError(f"{name}: expected a number >= 0 or 'auto', found {value!r}")
