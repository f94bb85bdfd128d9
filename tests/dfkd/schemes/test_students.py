"""Thin and rounded students within whole runs: they learn, and continue exactly, ranges included."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dfkd
from dfkd import models
from dfkd.problem import Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import initialised
from dfkd.schemes.offline import Distilled
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 4)
STUDENTS: dict[str, dict[str, Any]] = {
    "thin": {"separable": True},
    "rounded": {"bits": 3},
    "thin and rounded": {"separable": True, "bits": 4},
}
EVERY = pytest.mark.parametrize("name", STUDENTS)


def teacher() -> nn.Module:
    with initialised(1):
        return models.build("digits_cnn", SPEC, width=8)


def run(name: str, steps: int, checkpoint: Path | None = None, stop_at: int = 0) -> Distilled:
    """stop_at: at which line of the curve the process is asked to end, which is noticed a step later."""
    logged: list[int] = []

    def watch(problem: Problem) -> dict[str, float]:
        del problem
        logged.append(1)
        if len(logged) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return dfkd.distill(
        teacher(),
        partial(models.build, "digits_cnn", SPEC, width=4, **STUDENTS[name]),
        find("sampler", "uniform", SAMPLERS)(),
        spec=SPEC,
        budget=dfkd.Budget(steps=steps, batch=16),
        optimiser=dfkd.Optimiser(learning_rate=0.05),
        seed=3,
        device="cpu",
        checkpoint=checkpoint,
        monitor=watch,
    )


@EVERY
def test_learns(name: str) -> None:
    curve = run(name, 60).training.curve
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]


@EVERY
def test_continues_exactly(name: str, tmp_path: Path) -> None:
    whole, path = run(name, 8), tmp_path / "run.pt"
    first = run(name, 8, path, stop_at=3)
    assert (first.training.status, first.training.steps) == ("interrupted", 4)
    second = run(name, 8, path)
    assert (second.training.status, second.training.steps) == ("ok", 8)
    expected = whole.student.state_dict()
    found = second.student.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    moved = [key for key in expected if key.endswith("input_range")]
    assert len(moved) == {"thin": 0, "rounded": 4, "thin and rounded": 7}[name]
    assert all(bool(expected[key].any()) for key in moved)
