"""Results as lines of JSON: one number per line, written whole, read strictly, summed up over seeds.

A file of results only ever grows. A run that was killed may leave its last line torn; everything else that is not a
valid line is an error that names the line's number.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property, lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, get_args

from dfkd.naming import nearest

__all__ = ["STATUSES", "Cell", "Line", "Status", "Summary", "append", "finite", "read"]

Status = Literal["ok", "diverged", "unsupported"]
STATUSES: tuple[str, ...] = get_args(Status)

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "status": STATUSES,
    "labelling": ("eval", "batch", "mixed", "unknown"),
    "teacher_batchnorm": ("eval", "batch"),
    "student_train": ("train", "fixed"),
    "student_batchnorm": ("eval", "batch", "recalibrated"),
}


_EXPECTED: Mapping[object, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a finite number"),
    float | None: ((int, float, type(None)), "a finite number or None"),
}


def finite(value: float | None) -> float | None:
    """The number, or None where it is undefined: JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Line:
    """One number: a student (sampler, seed), asked on one distribution (evaluation), for one metric.

    sampler: the label, unique in a comparison; kind: its name in the registry. value: finite, or None where there is
    none; always None where the status is not `ok`. teacher_images: forward + backward of synthesis and labelling; the
    parts follow it. evaluate_forward: images the teacher was asked to judge this run, no part of teacher_images: its
    kept draws, their diagnosis, and all columns, those that the students of a seed share counted for each. labelling,
    teacher_batchnorm, student_train, student_batchnorm: the BatchNorm modes the number was made in: the teacher's when
    it labelled and when it was compared with, the student's in training and in scoring.
    """

    sampler: str
    data_free: bool
    seed: int
    evaluation: str
    metric: str
    value: float | None
    steps: int
    teacher_images: int
    seconds: float
    status: Status = "ok"
    kind: str = ""
    synthesise_forward: int = 0
    synthesise_backward: int = 0
    label_forward: int = 0
    label_backward: int = 0
    evaluate_forward: int = 0
    synthesise_seconds: float = 0.0
    labelling: str = "unknown"
    teacher_batchnorm: str = "eval"
    student_train: str = "train"
    student_batchnorm: str = "eval"

    def __post_init__(self) -> None:
        for name, kind in _kinds():
            _check(name, kind, getattr(self, name))
        if self.status != "ok" and self.value is not None:
            raise ValueError(f"value: expected None for a run that {self.status}, found {self.value!r}")

    def to_json(self) -> str:
        """Without a line break."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Line":
        """ValueError for anything but an object with a line's keys; keys that a study added are left out."""
        found = json.loads(text, parse_constant=_refuse)
        if not isinstance(found, dict):
            raise ValueError(f"expected a JSON object, found {type(found).__name__}")
        return cls.from_dict(found)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Line":
        names = [name for name, _ in _kinds()]
        for name in names[:9]:
            if name not in found:
                close = nearest(name, set(found) - set(names))
                hint = f"; the nearest is {close!r}" if close else ""
                raise ValueError(f"key {name!r} is missing{hint}")
        known = {name: found[name] for name in names if name in found}
        if known.get("labelling", "") is None:
            known["labelling"] = "unknown"  # a run that ended before anything was labelled
        return cls(**known)


@cache
def _kinds() -> tuple[tuple[str, object], ...]:
    """The name and the annotation of each field: looked up once, as a comparison has thousands of lines."""
    return tuple((field.name, field.type) for field in fields(Line))


def _refuse(constant: str) -> float:
    raise ValueError(f"expected a finite number or null, found {constant}")


def _check(name: str, kind: object, value: Any) -> None:
    """One field against its annotation; whole numbers are fine where a fraction may stand."""
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(_CHOICES[name])}, found {value!r}")
        return
    types, words = _EXPECTED[kind]
    wrong = not isinstance(value, types) or (isinstance(value, bool) and kind is not bool)
    if wrong or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name}: expected {words}, found {value!r}")
    if name not in ("seed", "value") and isinstance(value, (int, float)) and value < 0:
        raise ValueError(f"{name}: expected {words} >= 0, found {value!r}")


def append(path: Path, lines: Iterable[Line | Mapping[str, Any]]) -> None:
    """Add whole lines in one write, after cutting off what a killed run left torn."""
    checked = (line if isinstance(line, Line) else Line.from_dict(line) for line in lines)
    text = "".join(line.to_json() + "\n" for line in checked).encode()
    if not text:
        return
    with path.open("a+b") as file:
        _mend(file)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _mend(file: Any) -> None:
    """End the file with a line break: a last line without one is kept when it is whole, else cut off."""
    file.seek(0)
    content = file.read()
    if not content or content.endswith(b"\n"):
        return
    start = content.rfind(b"\n") + 1
    try:
        Line.from_json(content[start:].decode())
    except ValueError:
        file.truncate(start)
    else:
        file.write(b"\n")


def read(path: Path) -> list[Line]:
    """All lines. A last line without a line break that cannot be read is what a killed run left, and is ignored."""
    return list(_parsed(path, path.read_bytes()))


@lru_cache(maxsize=1)
def _parsed(path: Path, content: bytes) -> tuple[Line, ...]:
    """Once for the same content: a comparison, its report and its table each read what was written a moment ago."""
    *whole, rest = content.split(b"\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        if not text.strip():
            continue
        try:
            lines.append(Line.from_json(text.decode()))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {_brief(error)}") from error
    if rest.strip():
        with suppress(ValueError):  # torn
            lines.append(Line.from_json(rest.decode()))
    return tuple(lines)


def _brief(error: ValueError) -> str:
    return f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)


@dataclass(frozen=True)
class Cell:
    """One sampler on one evaluation by one metric: a value per seed, in the seeds' order, failures included."""

    seeds: tuple[int, ...] = ()
    values: tuple[float | None, ...] = ()
    statuses: tuple[str, ...] = ()

    @property
    def numbers(self) -> tuple[float, ...]:
        return tuple(value for value in self.values if value is not None)

    @property
    def n(self) -> int:
        """How many seeds have a value."""
        return len(self.numbers)

    @property
    def mean(self) -> float | None:
        return fmean(self.numbers) if self.numbers else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for one seed, whose spread is unknown and not zero."""
        return stdev(self.numbers) if self.n > 1 else None

    @property
    def failures(self) -> tuple[str, ...]:
        """The statuses that are not `ok`, one per seed."""
        return tuple(status for status in self.statuses if status != "ok")

    @property
    def status(self) -> str:
        """`ok` where no seed failed, else the first failure."""
        return next(iter(self.failures), "ok")


class Summary:
    """Lines grouped by (sampler, evaluation, metric). A line that was written twice counts once: the last one."""

    def __init__(self, lines: Iterable[Line | Mapping[str, Any]]) -> None:
        latest: dict[tuple[str, int, str, str], Line] = {}
        for found in lines:
            line = found if isinstance(found, Line) else Line.from_dict(found)
            latest[line.sampler, line.seed, line.evaluation, line.metric] = line
        self.lines = list(latest.values())
        self.samplers = list(dict.fromkeys(line.sampler for line in self.lines))
        told = [line for line in self.lines if line.status == "ok"] or self.lines  # a failed run names a column only to
        self.evaluations = list(
            dict.fromkeys(line.evaluation for line in told)
        )  # have a line, not because it was asked
        self.metrics = list(dict.fromkeys(line.metric for line in told))
        self.seeds = sorted({line.seed for line in self.lines})

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str], dict[int, Line]]:
        cells: dict[tuple[str, str, str], dict[int, Line]] = {}
        for line in self.lines:
            cells.setdefault((line.sampler, line.evaluation, line.metric), {})[line.seed] = line
        return cells

    @cached_property
    def failed(self) -> dict[str, dict[int, str]]:
        """Per sampler the seeds whose run has nothing but failures, with the status."""
        runs: dict[tuple[str, int], set[str]] = {}
        for line in self.lines:
            runs.setdefault((line.sampler, line.seed), set()).add(line.status)
        failed: dict[str, dict[int, str]] = {sampler: {} for sampler in self.samplers}
        for (sampler, seed), statuses in runs.items():
            if "ok" not in statuses:
                failed[sampler][seed] = "diverged" if "diverged" in statuses else "unsupported"
        return failed

    def cell(self, sampler: str, evaluation: str, metric: str) -> Cell:
        """A failed run stands in every cell of its row, wherever its line was written."""
        found = self._cells.get((sampler, evaluation, metric), {})
        failed = self.failed.get(sampler, {})
        seeds = tuple(sorted(found.keys() | failed.keys()))
        return Cell(
            seeds=seeds,
            values=tuple(found[seed].value if seed in found else None for seed in seeds),
            statuses=tuple(found[seed].status if seed in found else failed[seed] for seed in seeds),
        )

    def of(self, sampler: str) -> list[Line]:
        """One line per seed, for what all lines of a run share: cost, modes, kind."""
        first: dict[int, Line] = {}
        for line in self.lines:
            if line.sampler == sampler:
                first.setdefault(line.seed, line)
        return [first[seed] for seed in sorted(first)]

    def data_free(self, sampler: str) -> bool:
        return all(line.data_free for line in self.of(sampler))

    def cost(self, sampler: str, field: str) -> float | None:
        """The mean over the seeds that ended well, of `steps`, `teacher_images`, `seconds` or a part of them."""
        lines = self.of(sampler)
        values = [float(getattr(line, field)) for line in lines if line.seed not in self.failed[sampler]]
        return fmean(values) if values else None

    def modes(self, sampler: str) -> str:
        """labelling / training / scoring, as the lines name them."""
        names = {f"{line.labelling} / {line.student_train} / {line.student_batchnorm}" for line in self.of(sampler)}
        return "; ".join(sorted(names))

    @property
    def headline(self) -> str | None:
        """The column that ranks: `test`, or the first there is, which is then not a test score."""
        asked = [e for e in self.evaluations if any((s, e, "agreement") in self._cells for s in self.samplers)]
        return "test" if "test" in asked else next(iter(asked), None)

    def ranked(self) -> list[str]:
        """The samplers by agreement on the headline column, best first; those without a number last."""

        def key(sampler: str) -> tuple[bool, float]:
            mean = self.cell(sampler, self.headline or "", "agreement").mean
            return mean is None, -(mean or 0.0)

        return sorted(self.samplers, key=key)
