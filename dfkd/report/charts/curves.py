"""Learning curves: agreement and loss against the images the teacher has seen, a line per sampler."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ..run import Run
from ..scales import axis_linear, axis_log, stretched
from .place import Badge, Frame, Tick, place

__all__ = ["Chart", "Curve", "learning_curves"]

Point = tuple[float, float, float, float]  # teacher images, mean, lowest and highest over the seeds


@dataclass(frozen=True)
class Curve:
    """line: an SVG path of the mean over seeds. band: one from the lowest to the highest seed, empty for one seed."""

    sampler: str
    line: str
    band: str
    broken: bool
    end: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """One drawing. stretched: whether the upright axis is drawn out towards 100 %."""

    title: str
    what: str
    frame: Frame
    curves: tuple[Curve, ...]
    badges: tuple[Badge, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    stretched: bool
    log_x: bool


def learning_curves(run: Run) -> list[Chart]:
    """A chart of agreement, where the runs recorded it, and one of the loss."""
    test = run.summary.headline == "test" or "test" in run.summary.evaluations
    named = "Agreement on test" if test else "Agreement while learning"
    charts = [_chart(run, "agreement", named), _chart(run, "loss", "Training loss")]
    return [chart for chart in charts if chart is not None]


def _chart(run: Run, key: str, title: str) -> Chart | None:
    lines = {sampler: _mean_curve(run, sampler, key) for sampler in run.order}
    lines = {sampler: points for sampler, points in lines.items() if points}
    if not lines:
        return None
    frame = Frame()
    xs = [point[0] for points in lines.values() for point in points]
    ys = [value for points in lines.values() for point in points for value in point[1:]]
    log_x = max(xs) > 20 * min(xs) > 0
    if log_x:
        to_x, x_marks = axis_log(xs)
    else:
        to_x, x_marks = axis_linear(max(xs))
    if key == "agreement":
        scale = stretched(max(min(ys) - 0.02, 0.0))
        to_y, y_marks = scale.position, list(scale.ticks)
    else:
        to_y, y_marks = axis_log(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        return frame.x(to_x(x)), frame.y(min(max(to_y(y), 0.0), 1.0))

    curves = []
    for sampler, points in lines.items():
        line = _path([at(x, y) for x, y, _, _ in points])
        wide = any(high > low for _, _, low, high in points)
        edge = [at(x, high) for x, _, _, high in points] + [at(x, low) for x, _, low, _ in reversed(points)]
        broken = len(run.summary.failed[sampler]) == len(run.summary.of(sampler))
        curves.append(Curve(sampler, line, _path(edge) + "Z" if wide else "", broken, at(*points[-1][:2])))
    badges = place([(curve.sampler, *curve.end) for curve in curves], frame)
    return Chart(
        title=title,
        what=key,
        frame=frame,
        curves=tuple(curves),
        badges=tuple(badges),
        x_ticks=tuple(Tick(frame.x(p), text) for p, text in x_marks),
        y_ticks=tuple(Tick(frame.y(p), text) for p, text in y_marks),
        stretched=key == "agreement",
        log_x=log_x,
    )


def _mean_curve(run: Run, sampler: str, key: str) -> list[Point]:
    """Over the seeds that ended well, or over all where none did; only at steps that all of them recorded."""
    failed = run.summary.failed[sampler]
    seeds = [seed for name, seed in run.curves if name == sampler]
    kept = [seed for seed in seeds if seed not in failed] or seeds
    by_step = [
        {point["step"]: point for point in run.curves[sampler, seed] if key in point and "step" in point}
        for seed in kept
    ]
    by_step = [points for points in by_step if points]
    if not by_step:
        return []
    curve = []
    for step in sorted(set.intersection(*(set(points) for points in by_step))):
        images = fmean(points[step].get("teacher_images", step) for points in by_step)
        values = [points[step][key] for points in by_step]
        if images > 0 and (key != "loss" or min(values) > 0):
            curve.append((images, fmean(values), min(values), max(values)))
    return curve


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)
