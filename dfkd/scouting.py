"""Which samplers suit a teacher, from what it says of their images: seconds, and no student is trained.

No paper has this score; its parts are Frank, Davis: What Makes a Good Dataset for Knowledge Distillation? 2024.
arXiv:2411.12817 (students failed where the teacher named few classes), Yin et al. 2020. arXiv:1912.08795 (the BatchNorm
statistics are what a teacher keeps of its data) and Friedman, Dieng 2022. arXiv:2210.02410 (how many different rows
there are). A student can match a teacher on data it has not seen where its inputs have all the classes, lie where the
data lay, and differ; each of the three is there without the others (noise differs, a copied image lies well).

The score has no constants: the share of the other samplers that one beats, ties counting half, averaged over the three.
Class entropies that so few rows cannot tell apart, nearer than the bias (k - 1) / 2n of their estimate, are ties. The
teacher's confidence and the change of its mean prediction between batches are shown beside it and not used: noise that
is always the same class with certainty is best in both. Nor are the share of rows that lie within one small step of
another class (all is inside one class: nothing is taught of the boundaries; all on a boundary: of nothing else) and how
fast the images' power falls with frequency (photographs: -2, white noise: 0): neither has a better end.
What it does not see is said at `scout`.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from dfkd.fidelity.diagnostics import DIAGNOSTICS, LayerShift, diagnose
from dfkd.interfaces import Sampler, StudentFactory, is_data_free, labelled, walk
from dfkd.losses import KL
from dfkd.pixels import to_bytes
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.runtime import Bar
from dfkd.schemes.offline import make_problem, make_student
from dfkd.types import InputSpec

__all__ = ["CRITERIA", "Scouted", "Settings", "learn", "ranked", "resolution", "scout", "table"]

CRITERIA: Final[Mapping[str, bool]] = {"histogram_entropy": True, "batchnorm_gauss": False, "feature_rank": True}
"""The diagnostics that the score is made of, and whether more of it is better. What a teacher has not is left out."""

HORIZON: Final = 2000  # steps that a sampler is told the run will have: what a budget is by default


@dataclass(frozen=True)
class Settings:
    """rows: drawn of each sampler and shown to the teacher, >= 2. batch: rows between which the mean prediction is
    compared, >= 1. learn: draws that samplers which follow a student (generators, searches) learn from first, with an
    untrained student, >= 0, and seconds: after which they learn no more, >= 0. limit: seconds after which a sampler is
    given up, > seconds: some recipes make thousands of steps before their first image. seed: of all random streams.
    """

    rows: int = 256
    batch: int = 64
    learn: int = 100
    seconds: float = 5.0
    limit: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 2), ("batch", 1), ("learn", 0), ("seconds", 0), ("limit", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not least <= value < math.inf:
                raise ValueError(f"{name}: expected a number >= {least}, found {value!r}")


@dataclass(frozen=True)
class Scouted:
    """One sampler. reason: why there is no score, None where there is one. score: in [0, 1], the higher the better.

    values: by the names of `fidelity.DIAGNOSTICS`. layers: the BatchNorm shift of each. learned: the draws it learned
    from. teacher_images and seconds: what it all took, rounds of a shared pool charged to each sampler that uses it.
    """

    label: str
    data_free: bool | None = None
    reason: str | None = None
    score: float | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)
    layers: tuple[LayerShift, ...] = ()
    learned: int = 0
    teacher_images: int = 0
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "values": dict(self.values), "layers": [asdict(layer) for layer in self.layers]}


def scout(
    teacher: nn.Module,
    student: "str | StudentFactory | nn.Module",
    samplers: Sequence[Sampler] | Mapping[str, Sampler],
    *,
    spec: InputSpec,
    settings: Settings | None = None,
    device: str | torch.device | None = None,
    show_progress: bool = False,
) -> list[Scouted]:
    """The samplers by score, best first, then those that cannot be used with this teacher, with the reason.

    teacher: takes (n, c, h, w) pixels of `spec`, returns (n, k) logits. student: as for `distill`; it stays as
    untrained as it is. Both models are left as they were. samplers: as for `compare`; `table` prints what is returned.
    A guess: no student is trained. It does not see how hard the inputs are to learn from, what a search against a
    student that learns would add, and what a generator becomes after the few rounds that it is given here.
    """
    settings, samplers = settings or Settings(), labelled(samplers)
    fresh = make_student(student, spec, settings.seed)
    problem = make_problem(teacher, fresh, spec, seed=derive(settings.seed, "scout"), device=device)
    problem.horizon = HORIZON
    before = [(part, part.training) for part in teacher.modules()]
    bar = Bar("scout", show_progress)
    try:
        fresh.eval()
        teacher.eval()
        with tempfile.TemporaryDirectory(prefix="dfkd-scout-") as banks:
            problem.banks = Path(banks)  # equal pools are filled once
            found: list[Scouted] = []
            for label, sampler in samplers.items():
                bar.update(len(found) / len(samplers), label)
                found.append(_look(label, sampler, problem, settings))
    finally:
        bar.close()
        for part, training in before:
            part.training = training
    return ranked(found, resolution(settings.rows, spec.num_classes))


def resolution(rows: int, classes: int) -> dict[str, float]:
    """Differences that so many rows cannot tell from none, by criterion: the bias of an entropy over k classes."""
    return {"histogram_entropy": (classes - 1) / (2.0 * rows * math.log(classes))}


def ranked(found: Sequence[Scouted], level: Mapping[str, float] | None = None) -> list[Scouted]:
    """The same with scores, best first; equal scores and the unusable stay in the order given.

    level: differences up to this are none, by criterion.
    """
    usable = [one for one in found if one.reason is None]
    scores = _scores([one.values for one in usable], level or {})
    usable = [replace(one, score=score) for one, score in zip(usable, scores, strict=True)]
    usable.sort(key=lambda one: -(one.score or 0.0))
    return usable + [one for one in found if one.reason is not None]


def _scores(values: Sequence[Mapping[str, float | None]], level: Mapping[str, float]) -> list[float]:
    """Share of the others beaten, ties half, averaged over the criteria; a criterion that any lacks is left out."""
    used = _used(values)
    others = len(values) - 1
    if not used or not others:
        return [0.5] * len(values)  # nothing to tell them apart by
    totals = [0.0] * len(values)
    for name in used:
        sign = 1.0 if CRITERIA[name] else -1.0
        heights = [sign * (v[name] or 0.0) for v in values]
        near = level.get(name, 0.0)
        for place, height in enumerate(heights):
            beaten = sum(height - other > near for other in heights)
            ties = sum(abs(height - other) <= near for other in heights) - 1  # but for itself
            totals[place] += (beaten + 0.5 * ties) / others
    return [total / len(used) for total in totals]


def _used(values: Sequence[Mapping[str, float | None]]) -> list[str]:
    return [name for name in CRITERIA if all(v.get(name) is not None for v in values)]


def _look(label: str, sampler: Sampler, problem: Problem, settings: Settings) -> Scouted:
    """Draws of one sampler as a student would be taught on at first, and what the teacher says of them."""
    began, images, charged = time.perf_counter(), problem.teacher.images, problem.charged_seconds
    about = Scouted(label, is_data_free(sampler))
    try:
        with (
            _until(began + settings.limit, problem.teacher.module),
            torch.enable_grad(),
            problem.teacher.frozen(),
            problem.teacher.counting("synthesise"),
        ):
            state = sampler.init(problem, derive(settings.seed, "scout", label))
            learned = learn(sampler, state, problem, settings.learn, began + settings.seconds)
            batch = sampler.draw(state, problem, settings.rows)
    except _TooLong:
        said = f"its first {settings.rows} rows take more than {settings.limit:g} s; draws.limit= gives it more"
        return replace(about, reason=said)
    except (ValueError, ImportError, OSError) as error:  # UnsupportedProblem is one; files may be missing
        # the table names it in front
        return replace(about, reason=" ".join(str(error).split()).removeprefix(f"{sampler.name}: "))
    if not bool(batch.x.isfinite().all()):  # sync
        return replace(about, reason="its draws are not finite")
    images = problem.teacher.images - images
    seconds = time.perf_counter() - began + problem.charged_seconds - charged
    diagnosis = diagnose(
        problem.teacher, to_bytes(batch.x, problem.spec), problem.spec, batch.labelling, settings.batch
    )
    if any(value is not None and not math.isfinite(value) for value in diagnosis.values.values()):
        return replace(about, reason="the teacher's answers to its draws are not finite")
    return replace(
        about,
        values=diagnosis.values,
        layers=diagnosis.layers,
        learned=learned,
        teacher_images=images,
        seconds=seconds,
    )


class _TooLong(Exception):
    """A sampler is still at work after the time that it was given."""


@contextmanager
def _until(deadline: float, teacher: nn.Module) -> Iterator[None]:
    """Inside, asking the teacher after the deadline raises _TooLong: every step of synthesis asks it."""

    def look(*_: object) -> None:
        if time.perf_counter() > deadline:
            raise _TooLong

    handle = teacher.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def learn(sampler: Sampler, state: Any, problem: Problem, draws: int, deadline: float = math.inf) -> int:
    """Small draws that a sampler which follows the student learns from, up to the deadline; how many."""
    if not any(part.uses_student for part in walk(sampler)):
        return 0
    loss = KL()
    for step in range(draws):
        if time.perf_counter() > deadline:
            return step
        batch = sampler.draw(state, problem, 8)
        with torch.no_grad():
            rows = loss(problem.student(batch.x), problem.label(batch), batch)
        sampler.observe(state, batch, rows)
    return draws


# -- for people --------------------------------------------------------------------------------------------------------

_COLUMNS = (
    ("histogram_entropy", "classes", "entropy of the classes that the teacher names, 1 is even"),
    ("batchnorm_gauss", "BatchNorm", "nats per channel between the layers' inputs and what is stored"),
    ("feature_rank", "variety", "how many different rows the teacher's last features amount to"),
    ("mean_confidence", "sure", "the teacher's mean confidence; no part of the score"),
    ("mean_prediction_spread", "change", "of the mean prediction from batch to batch; no part of the score"),
    ("boundary_share", "edge", "rows that one step of 2/255 takes to another class; no part of the score"),
    ("spectral_slope", "slope", "of the pixels' ln power over ln frequency, 0 for white noise; no part of the score"),
)


def table(found: Sequence[Scouted]) -> str:
    """Plain text: the ranking, what the columns mean, and what cannot be used and why."""
    width = max([7, *(len(one.label) for one in found)])
    usable = [one for one in found if one.reason is None]
    columns = [column for column in _COLUMNS if any(one.values.get(column[0]) is not None for one in usable)]
    used = [(head, name) for name, head, _ in columns if name in _used([one.values for one in usable])]
    heads = "".join(f"{head:>10s}" for _, head, _ in columns)
    lines = [f"{'':3s} {'sampler':{width}s} data  score{heads}{'images':>9s}{'time':>9s}"]
    for place, one in enumerate(usable, 1):
        cells = "".join(f"{_number(one.values.get(name)):>10s}" for name, _, _ in columns)
        data = "free " if one.data_free else "reads"
        follows = "*" if one.learned else " "
        lines.append(
            f"{place:3d} {one.label:{width}s} {data}{follows}{one.score:5.2f}{cells}"
            f"{one.teacher_images:9d}{one.seconds:7.1f} s"
        )
    lines.append("")
    if used:
        parts = ", ".join(f"{head} ({'more' if CRITERIA[name] else 'less'})" for head, name in used)
        lines.append(f"score: share of the other samplers beaten, averaged over {parts}")
    lines += [f"{head}: {meaning}" for _, head, meaning in columns]
    if any(one.learned for one in usable):
        lines.append("*: follows the student, and had an untrained one: what it becomes in a run is not seen here")
    lines.append("No student was trained: this is a guess at what one would learn, not a measurement of it.")
    if any(name == "batchnorm_gauss" for _, name in used):
        lines.append(
            "For teachers with BatchNorm it was a good one on digits and a bad one on MNIST (experiments/scout)."
        )
    unusable = [one for one in found if one.reason is not None]
    if unusable:
        lines += ["", "not scored:", *(f"    {one.label}: {one.reason}" for one in unusable)]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


assert set(CRITERIA) <= set(DIAGNOSTICS)
