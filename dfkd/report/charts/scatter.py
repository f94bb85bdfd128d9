"""Cost against fidelity: images through the teacher against agreement, a point per sampler."""

from dataclasses import dataclass

from ..run import Run
from ..scales import axis_log, stretched
from .place import Badge, Frame, Tick, place

__all__ = ["Dot", "Scatter", "cost_scatter"]


@dataclass(frozen=True)
class Dot:
    """low, high: the ends of the bar, one spread to each side; equal to y for one seed."""

    sampler: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Scatter:
    frame: Frame
    dots: tuple[Dot, ...]
    badges: tuple[Badge, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    where: str


def cost_scatter(run: Run) -> Scatter | None:
    """None where no sampler has both a score and a cost."""
    where, summary = run.summary.headline, run.summary
    found = []
    for sampler in run.order:
        cell = summary.cell(sampler, where or "", "agreement")
        cost = summary.cost(sampler, "teacher_images")
        if cell.mean is not None and cost:
            found.append((sampler, cost, cell.mean, cell.spread or 0.0))
    if not found or where is None:
        return None
    frame = Frame()
    to_x, x_marks = axis_log([cost for _, cost, _, _ in found])
    scale = stretched(max(min(mean - spread for _, _, mean, spread in found) - 0.02, 0.0))
    dots = [
        Dot(
            s,
            frame.x(to_x(c)),
            frame.y(scale.position(m)),
            frame.y(scale.position(m - d)),
            frame.y(scale.position(m + d)),
        )
        for s, c, m, d in found
    ]
    return Scatter(
        frame=frame,
        dots=tuple(dots),
        badges=tuple(place([(dot.sampler, dot.x, dot.y) for dot in dots], frame)),
        x_ticks=tuple(Tick(frame.x(p), text) for p, text in x_marks),
        y_ticks=tuple(Tick(frame.y(p), text) for p, text in scale.ticks),
        where=where,
    )
