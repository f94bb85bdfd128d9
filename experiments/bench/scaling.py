"""What a step costs as its sizes grow: images, batch, classes, the bank, samplers, seeds; and memory over many steps.

no paper. One thing grows at a time, the others stay at the smallest. `exponent` is the slope of the logarithms from one
size to the next: 1 where cost grows in proportion, 0 where it does not grow. Memory is what the process holds (on a GPU
what torch has allocated) while the same step is repeated: its slope should be none.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dfkd.engine import Budget, Optimiser, train
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.models import build
from dfkd.naming import unknown
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.types import InputSpec

from .usage import resident

__all__ = ["AXES", "HEAD", "MEMORY", "Point", "as_json", "as_text", "chart", "memory", "scaling"]

SEED = 0
Clock = Callable[[], float]


@dataclass(frozen=True)
class Point:
    """axis: what grows. kind: of what the cost is: a student's `step`, a `synthesis` step, a `draw`, a `run` (of one
    comparison's part). size: how much. seconds: median of `repetitions`. exponent: since the size before."""

    axis: str
    kind: str
    size: int
    seconds: float
    repetitions: int
    exponent: float | None = None


AXES: dict[str, tuple[int, ...]] = {
    "side": (8, 16, 32, 64, 128, 224),
    "batch": (16, 64, 256, 1024),
    "classes": (10, 100, 1000),
    "bank": (1_000, 10_000, 100_000, 1_000_000),
    "samplers": (1, 2, 4, 8),
    "seeds": (1, 2, 4),
}
HEAD = f"{'what grows':10} {'cost of a':10} {'size':>8}  {'seconds':>10}  exponent"
MEMORY = ("real", "deep_inversion", "generative", "cmi", "adversarial")


def scaling(
    repetitions: int = 5,
    clock: Clock = time.perf_counter,
    only: Sequence[str] | None = None,
    most: int | None = None,
    device: str = "cpu",
) -> Iterator[Point]:
    """Every axis, or these, up to the size `most`. ValueError for an unknown axis."""
    for axis in only or ():
        if axis not in AXES:
            raise unknown("axis", axis, list(AXES))
    torch.set_num_threads(1)
    for axis in only or AXES:
        last: dict[str, Point] = {}
        for size in AXES[axis]:
            if most is not None and size > most:
                continue
            for kind, step in _costs(axis, size, torch.device(device)):
                seconds = _median(step, repetitions, clock, torch.device(device))
                exponent = None
                if kind in last:
                    exponent = math.log(seconds / last[kind].seconds) / math.log(size / last[kind].size)
                last[kind] = Point(axis, kind, size, seconds, repetitions, exponent)
                yield last[kind]


def _median(step: Callable[[], Any], repetitions: int, clock: Clock, device: torch.device) -> float:
    times = []
    for _ in range(repetitions + 1):  # the first is not counted
        _wait(device)
        began = clock()
        step()
        _wait(device)
        times.append(max(clock() - began, 1e-9))
    return median(times[1:])


def _costs(axis: str, size: int, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed at one size of an axis."""
    if axis == "side":
        yield from _steps(InputSpec((3, size, size), 10), 8, device)
    elif axis == "batch":
        yield from _steps(InputSpec((1, 8, 8), 10), size, device)
    elif axis == "classes":
        yield from _steps(InputSpec((1, 8, 8), size), 64, device)
    elif axis == "bank":
        yield "draw", _bank_draw(size, device)
    else:
        yield "run", partial(_short_runs, axis, size, device)


def problem_of(spec: InputSpec, device: torch.device) -> Problem:
    with initialised(derive(SEED, repr(spec))):
        teacher, student = (build("digits_cnn", spec) for _ in range(2))
        with torch.no_grad():
            teacher(torch.rand(8, *spec.shape))
    probes = Probe(teacher.eval(), spec, device), Probe(student, spec, device, name="student")
    return Problem(*probes, spec, device, seed=SEED)


def _steps(spec: InputSpec, n: int, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Four steps of the engine on uniform noise, and four of deep inversion, n images each."""
    yield "step", lambda: _train(problem_of(spec, device), made("uniform"), n, 4)
    inversion = made("deep_inversion", steps=4, batch=n)
    problem = problem_of(spec, device)
    state = inversion.init(problem, SEED)
    yield "synthesis", lambda: inversion.draw(state, problem, n)


def _bank_draw(rows: int, device: torch.device) -> Callable[[], Any]:
    """64 rows out of so many of 3x32x32 that a bank holds as bytes."""
    problem = problem_of(InputSpec((3, 32, 32), 10), device)
    pool = made("pooled", base=made("uniform", labelling="eval"), round=64, every=None)
    state = pool.init(problem, SEED)
    pool.draw(state, problem, 64)
    state.images = state.images[:1].repeat(rows, 1, 1, 1)  # the rows differ in no way that a draw could tell
    state.logits = state.logits[:1].repeat(rows, 1)
    return lambda: pool.draw(state, problem, 64)


def _short_runs(axis: str, size: int, device: torch.device) -> None:
    """So many students of a comparison, one after the other: of other seeds, or of samplers of two kinds in turn."""
    for place in range(size):
        sampler = made("gaussian" if axis == "samplers" and place % 2 else "uniform")
        _train(problem_of(InputSpec((1, 8, 8), 10), device), sampler, 32, 8, place if axis == "seeds" else SEED)


def _train(problem: Problem, sampler: Sampler, n: int, steps: int, seed: int = SEED) -> Problem:
    objective = combine({"kl": (1.0, KL(4.0))})
    train(problem, sampler, objective, Budget(batch=n, steps=steps), Optimiser(), seed, log_points=1)
    return problem


def made(name: str, **options: Any) -> Sampler:
    found: Sampler = find("sampler", name, SAMPLERS)(**options)
    return found


# -- memory --------------------------------------------------------------------------------------------------------


def memory(steps: int = 400, device: str = "cpu", only: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """For each sampler what a run holds at 20 points over its second half, when all is allocated, and how it grows.

    grows: bytes a step, the slope of the straight line through them; a bank that grows by design is bounded here.
    """
    where = torch.device(device)
    for name in only or MEMORY:
        sampler = _bounded(name)
        points: list[tuple[int, int]] = []
        problem, taken = problem_of(InputSpec((1, 8, 8), 10), where), [0]

        def look(points: list[tuple[int, int]] = points, taken: list[int] = taken) -> dict[str, float]:
            taken[0] += 1
            points.append((taken[0] * max(1, steps // 40), resident(where)))
            return {}

        objective = combine({"kl": (1.0, KL(4.0))})
        budget = Budget(batch=32, steps=steps)
        train(problem, sampler, objective, budget, Optimiser(), SEED, monitor=look, log_points=min(40, steps))
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # sync


# -- said ----------------------------------------------------------------------------------------------------------


def as_json(point: Point) -> str:
    line = {"axis": point.axis, "cost": point.kind, "size": point.size, "seconds": float(f"{point.seconds:.6g}")}
    exponent = None if point.exponent is None else round(point.exponent, 3)
    return json.dumps({**line, "repetitions": point.repetitions, "exponent": exponent})


def as_text(point: Point) -> str:
    exponent = "-" if point.exponent is None else f"{point.exponent:.2f}"
    return f"{point.axis:10} {point.kind:10} {point.size:8}  {point.seconds:10.6f}  {exponent}"


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
