"""What a step costs as its sizes grow: images, batch, classes, the bank; what a comparison costs with more samplers,
seeds and workers; and memory over many steps.

no paper. One thing grows at a time, the others stay at the smallest. `exponent` is the slope of the logarithms from one
size to the next: 1 where cost grows in proportion, 0 where it does not grow, -1 where two workers take half the time.
What is built and set up before is not timed, but its memory counts. Memory over many steps is what the process holds
(on a GPU what torch has allocated) while the same step is repeated: its slope should be none.
"""

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dfkd.comparison import Evaluation, compare
from dfkd.engine import Budget, Optimiser, train
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.models import build
from dfkd.naming import unknown
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.types import InputSpec, as_device

from .overhead import completed
from .throughput import block, enough
from .usage import peak, resident

__all__ = ["AXES", "HEAD", "MEMORY", "Point", "as_json", "as_text", "chart", "memory", "scaling"]

SEED = 0
STEPS = 4  # what is timed of the engine, and of deep inversion
SHORT = 50  # steps of a comparison's students
Clock = Callable[[], float]
Measure = Callable[[int, Clock], list[float]]
"""(repetitions, clock) -> seconds of each; what it sets up first is not in them."""


@dataclass(frozen=True)
class Point:
    """axis: what grows. kind: of what the cost is: a student's `step`, a `synthesis` step (four of each), a `draw`, a
    `comparison`. size: how much. seconds: median of `repetitions`, by the wall clock where it is a comparison, whose
    workers are other processes. exponent: since the size before. memory: the most bytes beyond what was held before,
    None where it cannot be told."""

    axis: str
    kind: str
    size: int
    seconds: float
    repetitions: int
    exponent: float | None = None
    memory: int | None = None


AXES: dict[str, tuple[int, ...]] = {
    "side": (8, 16, 32, 64, 128, 224),
    "batch": (16, 64, 256, 1024),
    "classes": (10, 100, 1000),
    "bank": (1_000, 10_000, 100_000, 1_000_000),
    "samplers": (1, 2, 4, 8),
    "seeds": (1, 2, 4),
    "workers": (1, 2),
}
HEAD = f"{'what grows':10} {'cost of a':10} {'size':>8}  {'seconds':>10}  {'MiB':>7}  exponent"
MEMORY = ("real", "deep_inversion", "generative", "cmi", "adversarial")


def scaling(
    repetitions: int = 5,
    clock: Clock = time.perf_counter,
    only: Sequence[str] | None = None,
    most: int | None = None,
    device: str = "cpu",
) -> Iterator[Point]:
    """Every axis, or these, up to the size `most`, which leaves out axes that begin beyond it.

    ValueError for an unknown axis or device, or where one of `only` begins beyond `most`.
    """
    for axis in only or ():
        if axis not in AXES:
            raise unknown("axis", axis, list(AXES))
        if most is not None and most < AXES[axis][0]:
            raise ValueError(f"most: expected at least {AXES[axis][0]}, the smallest of {axis}, found {most}")
    torch.set_num_threads(1)
    return _points(repetitions, clock, only or tuple(AXES), math.inf if most is None else most, as_device(device))


def _points(repetitions: int, clock: Clock, axes: Sequence[str], most: float, device: torch.device) -> Iterator[Point]:
    for first in (_engine, _inversion):  # what torch loads at its first step is no size's memory
        first(InputSpec((1, 8, 8), 10), 8, device, 1, time.perf_counter)
    for axis in axes:
        last: dict[str, Point] = {}
        for size in (size for size in AXES[axis] if size <= most):
            for kind, measure in _costs(axis, size, device):
                gc.collect()
                with peak(device) as held:
                    times = measure(repetitions, clock)
                seconds, exponent = median(times), None
                if kind in last:
                    exponent = math.log(seconds / last[kind].seconds) / math.log(size / last[kind].size)
                memory = None if kind == "comparison" else held.bytes  # of a comparison other processes hold theirs
                last[kind] = Point(axis, kind, size, seconds, len(times), exponent, memory)
                yield last[kind]


def _costs(axis: str, size: int, device: torch.device) -> Iterator[tuple[str, Measure]]:
    """What is timed at one size of an axis."""
    if axis == "side":
        yield from _steps(InputSpec((3, size, size), 10), 8, device)
    elif axis == "batch":
        yield from _steps(InputSpec((1, 8, 8), 10), size, device)
    elif axis == "classes":
        yield from _steps(InputSpec((1, 8, 8), size), 64, device)
    elif axis == "bank":
        yield "draw", lambda repetitions, clock: _repeated(_bank_draw(size, device), device, repetitions, clock)
    else:
        yield "comparison", partial(_compared, axis, size, device)


def problem_of(spec: InputSpec, device: torch.device) -> Problem:
    with initialised(derive(SEED, repr(spec))):
        teacher, student = (build("digits_cnn", spec) for _ in range(2))
        with torch.no_grad():
            teacher(torch.rand(8, *spec.shape))
    probes = Probe(teacher.eval(), spec, device), Probe(student, spec, device, name="student")
    return Problem(*probes, spec, device, seed=SEED)


def _steps(spec: InputSpec, n: int, device: torch.device) -> Iterator[tuple[str, Measure]]:
    """Four steps of the engine on uniform noise, and four of deep inversion, n images each."""
    yield "step", partial(_engine, spec, n, device)
    yield "synthesis", partial(_inversion, spec, n, device)


def _engine(spec: InputSpec, n: int, device: torch.device, repetitions: int, clock: Clock) -> list[float]:
    """From one log point of one run to the next, so that nothing a run sets up is in it; the first is not counted."""
    marks: list[float] = []

    def mark() -> dict[str, float]:
        marks.append(clock())  # the device has done all it was given: the engine has just read the loss
        return {}

    points = repetitions + 1
    _train(problem_of(spec, device), made("uniform"), n, STEPS * points, mark, points)
    return [max(after - before, 1e-9) for before, after in pairwise(marks)]


def _inversion(spec: InputSpec, n: int, device: torch.device, repetitions: int, clock: Clock) -> list[float]:
    inversion, problem = made("deep_inversion", steps=STEPS, batch=n), problem_of(spec, device)
    state = inversion.init(problem, SEED)
    return _repeated(lambda: inversion.draw(state, problem, n), device, repetitions, clock)


def _repeated(step: Callable[[], Any], device: torch.device, repetitions: int, clock: Clock) -> list[float]:
    """Seconds of a step, in blocks that are long enough for the clock; the first step is not counted."""
    step()
    times = enough(step, device, clock)
    return [block(step, times, device, clock) / times for _ in range(repetitions)]


def _bank_draw(rows: int, device: torch.device) -> Callable[[], Any]:
    """64 rows out of so many of 3x32x32 that a bank holds as bytes."""
    problem = problem_of(InputSpec((3, 32, 32), 10), device)
    pool = made("pooled", base=made("uniform", labelling="eval"), round=64, every=None)
    state = pool.init(problem, SEED)
    pool.draw(state, problem, 64)
    state.images = state.images[:1].repeat(rows, 1, 1, 1)  # the rows differ in no way that a draw could tell
    state.logits = state.logits[:1].repeat(rows, 1)
    return lambda: pool.draw(state, problem, 64)


def _compared(axis: str, size: int, device: torch.device, repetitions: int, clock: Clock) -> list[float]:
    """Seconds of whole comparisons, folder and report included, by the wall clock; three at most, and one before.

    One short run for each sampler and seed; two of both where workers grow.
    """
    del clock  # workers are other processes, whose time this process's own does not tell
    counts = {"samplers": 1, "seeds": 1, "workers": 1} | ({"samplers": 2, "seeds": 2} if axis == "workers" else {})
    counts[axis] = size
    spec = InputSpec((1, 8, 8), 10)
    teacher = problem_of(spec, device).teacher.module
    times = []
    for _ in range(min(repetitions, 3) + 1):
        with TemporaryDirectory() as folder:
            began = time.perf_counter()
            compare(
                teacher,
                "digits_cnn",
                {f"{place}": made("gaussian" if place % 2 else "uniform") for place in range(counts["samplers"])},
                spec=spec,
                budget=Budget(batch=32, steps=SHORT),
                seeds=range(counts["seeds"]),
                evaluate=Evaluation(columns=("uniform",), rows=64, quality_rows=0),
                device=device,
                workers=counts["workers"],
                out=folder,
            )
            times.append(time.perf_counter() - began)
    return times[1:]


def _train(
    problem: Problem,
    sampler: Sampler,
    n: int,
    steps: int,
    monitor: Callable[[], dict[str, float]],
    log_points: int,
) -> None:
    objective, budget = combine({"kl": (1.0, KL(4.0))}), Budget(batch=n, steps=steps)
    completed(train(problem, sampler, objective, budget, Optimiser(), SEED, monitor=monitor, log_points=log_points))


def made(name: str, **options: Any) -> Sampler:
    found: Sampler = find("sampler", name, SAMPLERS)(**options)
    return found


# -- memory --------------------------------------------------------------------------------------------------------


def memory(steps: int = 400, device: str = "cpu", only: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """For each sampler what a run holds at 20 points over its second half, when all is allocated, and how it grows.

    grows: bytes a step, the slope of the straight line through them; a bank that grows by design is bounded here.
    """
    where = as_device(device)
    for name in only or MEMORY:
        sampler = _bounded(name)
        points: list[tuple[int, int]] = []
        problem, taken = problem_of(InputSpec((1, 8, 8), 10), where), [0]

        def look(points: list[tuple[int, int]] = points, taken: list[int] = taken) -> dict[str, float]:
            taken[0] += 1
            points.append((taken[0] * max(1, steps // 40), resident(where)))
            return {}

        _train(problem, sampler, 32, steps, look, min(40, steps))
        late = points[len(points) // 2 :]
        yield {"sampler": name, "steps": steps, "bytes": late[-1][1], "grows": round(slope(late), 1)}


def slope(points: Sequence[tuple[int, int]]) -> float:
    """Of the line of least squares through (x, y)."""
    n = len(points)
    x0, y0 = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - x0) ** 2 for x, _ in points)
    return sum((x - x0) * (y - y0) for x, y in points) / spread if spread else 0.0


def _bounded(name: str) -> Sampler:
    """The sampler with banks that are full soon."""
    if name == "real":
        return made("real", data="digits")
    if name == "deep_inversion":
        return made("pooled", base=made(name, steps=2, batch=32), round=32, every=5, capacity=64)
    if name == "generative":
        return made(name, width="small", latent=16, batch=32, student_steps=5)
    if name == "cmi":
        return made(name, steps=2, batch=32, every=10, warmup=1, capacity=64, negatives=64)
    return made("adversarial", base=made("uniform"), steps=1)


# -- said ----------------------------------------------------------------------------------------------------------


def as_json(point: Point) -> str:
    exponent = None if point.exponent is None else round(point.exponent, 3)
    line: dict[str, Any] = {
        "axis": point.axis,
        "cost": point.kind,
        "size": point.size,
        "seconds": float(f"{point.seconds:.6g}"),
        "repetitions": point.repetitions,
        "exponent": exponent,
        "peak_bytes": point.memory,
    }
    return json.dumps({**line, "clock": "wall"} if point.kind == "comparison" else line)


def as_text(point: Point) -> str:
    exponent = "-" if point.exponent is None else f"{point.exponent:.2f}"
    memory = "-" if point.memory is None else f"{point.memory / 2**20:.1f}"
    return f"{point.axis:10} {point.kind:10} {point.size:8}  {point.seconds:10.6f}  {memory:>7}  {exponent}"


def chart(points: Sequence[Point], file: Path) -> None:
    """One panel for each axis, both scales logarithmic; a dotted line grows in proportion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point.axis for point in points))
    figure, panels = pyplot.subplots(1, len(axes), figsize=(3.0 * len(axes), 2.8), squeeze=False)
    for panel, axis in zip(panels[0], axes, strict=True):
        for kind in dict.fromkeys(point.kind for point in points if point.axis == axis):
            own = [point for point in points if (point.axis, point.kind) == (axis, kind)]
            sizes, seconds = [point.size for point in own], [point.seconds for point in own]
            panel.loglog(sizes, seconds, marker="o", markersize=3, label=kind)
            panel.loglog(sizes, [seconds[0] * size / sizes[0] for size in sizes], ":", color="grey", linewidth=0.8)
        panel.set_xlabel(axis)
        panel.legend(frameon=False, fontsize=8)
    panels[0][0].set_ylabel("seconds")
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
