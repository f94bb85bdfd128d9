"""Short runs with each loss: they teach, and interrupted they end as they would have."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import dfkd
from dfkd import config, models
from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import initialised
from dfkd.schedule import Budget, Optimiser
from dfkd.types import Batch, InputSpec

SPEC = InputSpec((1, 8, 8), 4)
STEPS = 8
RESPONSES: dict[str, dict[str, Any]] = {
    "logit_huber": {},
    "sampled_label": {"temperature": 2.0},
    "dkd": {"warmup": 0.5},
    "dist": {},
    "kl": {"standardise": True, "temperature": 2.0},
}
RELATIONS: dict[str, dict[str, Any]] = {
    "sp": {"student": "conv3", "teacher": "conv3", "weight": 3000.0},
    "pkt": {"weight": 400.0},
    "cc": {},
    "cka": {},
    "fkd": {"weight": 300.0},
    "rkd_distance": {"weight": 25.0},
    "rkd_angle": {"weight": 50.0, "rows": 8},
    "relation": {"kernel": "gaussian", "normalise": "row_sum", "diagonal": "keep", "distance": "kl"},
}
EVERY = pytest.mark.parametrize("name", [*RESPONSES, *RELATIONS])


@dataclass(frozen=True)
class Stopping:
    """Another sampler; asks its own process to end in one of its draws."""

    base: Sampler
    at: int
    calls: list[int] = field(default_factory=list, hash=False, compare=False)
    name: ClassVar[str] = "stopping"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> Any:
        return self.base.init(problem, seed)

    def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
        self.calls.append(1)
        if len(self.calls) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.base.draw(state, problem, n, learn)

    def observe(self, state: Any, batch: Batch, loss: torch.Tensor) -> None:
        self.base.observe(state, batch, loss)


def teacher() -> nn.Module:
    with initialised(1):
        return models.build("digits_cnn", SPEC, width=3).eval()


def run(name: str, steps: int = STEPS, at: int = 0, checkpoint: Path | None = None) -> Any:
    spec = {name: {**RESPONSES, **RELATIONS}[name]}
    if name in RELATIONS:
        spec["logit_mse"] = {"weight": 0.1}  # without it the classifier would get no signal
    return dfkd.distill(
        teacher(),
        student=lambda: models.build("digits_cnn", SPEC, width=2),
        sampler=Stopping(find("sampler", "uniform", SAMPLERS)(), at),
        spec=SPEC,
        objective=config.objective(spec),
        budget=Budget(batch=12, steps=steps),
        optimiser=Optimiser("adamw", 0.01),
        device="cpu",
        checkpoint=checkpoint,
    )


@EVERY
def test_a_run_that_was_interrupted_ends_as_it_would_have(name: str, tmp_path: Path) -> None:
    whole = run(name)
    path = tmp_path / "run.pt"
    for at in (3, 2):  # ends after steps 3 and 5
        assert run(name, at=at, checkpoint=path).training.status == "interrupted"
    again = run(name, checkpoint=path)
    assert (whole.training.status, again.training.status, again.training.steps) == ("ok", "ok", STEPS)
    for key, value in whole.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[key], value), key
    losses = [line["loss"] for line in whole.training.curve]
    assert [line["loss"] for line in again.training.curve] == losses
    assert all(0.0 < loss < 1e4 for loss in losses)


@pytest.mark.parametrize("name", ["logit_huber", "dkd", "dist", "kl"])
def test_the_student_comes_nearer_in_what_is_taught(name: str) -> None:
    """Relations are shown to be learnt in test_relations: an untrained teacher's among rows of noise are chance."""
    curve = [line["loss"] for line in run(name, steps=60).training.curve]
    assert len(curve) == 20
    early = curve[:3] if name != "dkd" else curve[10:13]  # its weight grows over the first half
    assert sum(curve[-3:]) < 0.9 * sum(early)
