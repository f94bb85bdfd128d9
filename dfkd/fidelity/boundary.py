"""How many rows lie within one small step of where a teacher names another class.

No paper: a step of our own choice, the first one of a search for the boundary.
"""

from typing import Final

import torch
from torch import Tensor

from dfkd.fidelity.columns import chunks
from dfkd.fidelity.worst_case import searching
from dfkd.pixels import to_pixels
from dfkd.problem import Probe
from dfkd.types import BatchNormMode, InputSpec, Labelling

__all__ = ["STEP", "boundary_share"]

STEP: Final = 2 / 255  # of the box, in every pixel


def boundary_share(teacher: Probe, x: Tensor, spec: InputSpec, runs: Labelling, batch: int = 256) -> float | None:
    """x (n, c, h, w) uint8 or pixels -> the share of rows whose class one step turns over, in [0, 1].

    The step moves every pixel by STEP of the box, inside the box, by the sign of the slope of the runner-up's logit
    less the first one's. A row is asked in its run's mode; in mode `batch` rows move together. None for a teacher
    without input gradients. Two images forward and one backward for each row, counted under "evaluate".
    """
    if "input_grad" not in teacher.capabilities:
        return None
    turned, start = torch.zeros((), dtype=torch.int64, device=teacher.device), 0
    with searching(teacher):
        for rows, mode in runs:
            for part in chunks(rows, batch, mixed=mode == "batch"):
                here = (start + part).to(x.device)
                turned += _turned(teacher, to_pixels(x[here].to(teacher.device), spec), mode).sum()
            start += rows
    return int(turned) / len(x)  # sync


def _turned(teacher: Probe, x: Tensor, mode: BatchNormMode) -> Tensor:
    """(n,) of truths."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = teacher(x, mode).logits
        first = logits.argmax(dim=1, keepdim=True)
        second = logits.scatter(1, first, -torch.inf).argmax(dim=1, keepdim=True)
        ahead = logits.gather(1, second) - logits.gather(1, first)
        (slope,) = torch.autograd.grad(ahead.sum(), x)  # a sum, so rows do not interact
    spec = teacher.spec
    moved = (x.detach() + STEP * spec.span * slope.sign()).clamp(spec.low, spec.high)
    with torch.no_grad():
        return teacher(moved, mode).logits.argmax(dim=1) != first[:, 0]
