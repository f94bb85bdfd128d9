"""The losses that students are trained with, as measures of a trained one: on any inputs, of any student.

A loss called by itself trains nothing and draws the same every time, so what it says of two models on the same rows is
a number that can be compared between runs, whatever these were trained to minimise.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor

from dfkd.fidelity.columns import Column
from dfkd.interfaces import Loss
from dfkd.pixels import to_pixels
from dfkd.problem import Probe
from dfkd.types import Batch, BatchNormMode, InputSpec, UnlabelledBatch

__all__ = ["distance_name", "distances"]

_ROWS = 250  # asked at a time, where the rows do not count together


def distance_name(label: str) -> str:
    return f"loss@{label}"


def distances(
    losses: Mapping[str, Loss],
    student: Probe,
    teacher: Probe,
    column: Column,
    rows: Tensor,
    spec: InputSpec,
    mode: BatchNormMode = "eval",
) -> dict[str, float | None]:
    """Means over these rows of the column, without weights and scales; counted under "evaluate".

    rows: (m,) int64. mode: the student's BatchNorm; the teacher's is `eval`. Losses that compare rows with one another
    see all m together. None where a column has no labels to measure by, or the loss is not finite. UnsupportedProblem
    where one needs input gradients that a model does not give, ValueError where features differ in shape.
    """
    slopes = any(loss.input_grad for loss in losses.values())
    sums: dict[str, list[Tensor]] = {label: [] for label in losses}
    together = any(loss.coupled for loss in losses.values())
    with _asking(losses, student, teacher), torch.set_grad_enabled(slopes):
        for part in rows.split(len(rows) if together else _ROWS):
            batch = _batch(column, part, spec, student.device, slopes)
            ours, theirs = student(batch.x, mode), teacher(batch.x)
            for label, loss in losses.items():
                with suppress(UnlabelledBatch):  # then it has no sums
                    sums[label].append(loss(ours, theirs, batch).detach().sum())
    means = {label: float(torch.stack(parts).sum()) / len(rows) for label, parts in sums.items() if parts}  # sync
    return {label: means[label] if math.isfinite(means.get(label, math.nan)) else None for label in losses}


@contextmanager
def _asking(losses: Mapping[str, Loss], student: Probe, teacher: Probe) -> Iterator[None]:
    """Inside, both models give what these losses read."""
    with ExitStack() as entered:
        for who, probe in (("student", student), ("teacher", teacher)):
            paths = dict.fromkeys(path for loss in losses.values() for path in loss.needs.get(who, ()))
            entered.enter_context(probe.counting("evaluate"))
            entered.enter_context(probe.frozen())
            entered.enter_context(probe.taps(*paths))
            if any(loss.input_grad for loss in losses.values()):
                probe.require("input_grad", who="losses")
        yield


def _batch(column: Column, rows: Tensor, spec: InputSpec, device: torch.device, slopes: bool) -> Batch:
    here = rows.to(column.x.device)
    x = to_pixels(column.x[here].to(device), spec)
    return Batch(x.requires_grad_(slopes), y=None if column.y is None else column.y[here].to(device))
