"""Whole commands where the device is another than the host: nothing is mixed, and the numbers are those of a CPU."""

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor

from dfkd import cli, config
from dfkd.engine import Budget, Optimiser, train
from dfkd.losses import Objective
from dfkd.models import build
from dfkd.problem import Probe, Problem
from dfkd.registry import LOSSES
from dfkd.types import Batch, InputSpec
from samplers import Real
from samplers.state import State

from ..stand_in import DEVICE, stand_in

Command = Callable[..., Any]
PLACES = ("commands", "schemes.stages", "schemes.offline", "scoring", "evaluate", "comparison", "train_generator")
"""Where a device that the user names becomes one."""

TEACHER = "{model: digits_cnn, data: digits, budget: {steps: 12, batch: 32}}"
TEXT = f"""
teacher: {TEACHER}
student: {{model: digits_cnn}}
budget: {{steps: 4, batch: 16}}
samplers:
  - generative: {{width: small, batch: 16, latent: 8}}
  - pooled: {{base: {{deep_inversion: {{steps: 2, batch: 16}}}}, round: 16, every: 2}}
  - robust: {{samplers: [uniform, shader]}}
evaluate: {{columns: [test, draws, worst_case], rows: 10, worst_case_restarts: 1, worst_case_steps: 2}}
control_seeds: 1
seeds: [0]
"""


@pytest.fixture
def there() -> Iterator[list[str]]:
    """Whatever device is asked for, it is the one that is none."""
    with stand_in() as waits, pytest.MonkeyPatch.context() as patch:
        for place in PLACES:
            patch.setattr(importlib.import_module(f"dfkd.{place}"), "as_device", lambda _: DEVICE)
        yield waits


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_device_is_asked_for_in_one_of_the_places() -> None:
    package = Path(cli.__file__).parent
    found = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if "as_device(" in path.read_text() and path.name != "types.py"
    }
    assert found == set(PLACES)


def test_a_comparison(run: Command, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file, folders = tmp_path / "settings.yaml", [tmp_path / "here", tmp_path / "there"]
    file.write_text(TEXT)
    assert run("compare", file, "--out", folders[0], "--workers", "1").status == 0
    request.getfixturevalue("there")
    assert run("compare", file, "--out", folders[1], "--workers", "1").status == 0
    here, there = (rows(folder) for folder in folders)
    assert len(here) == len(there) > 200
    for one, other in zip(
        here, there, strict=True
    ):  # in ten rows one may be on the other side, as searches grow rounding
        assert one.keys() == other.keys()
        for key in (key for key in one if not key.endswith("seconds")):
            measured = key == "value" and one[key] is not None and not one["metric"].endswith("seconds")
            assert other[key] == (pytest.approx(one[key], rel=0.05, abs=0.1) if measured else one[key]), one


@pytest.mark.usefixtures("there")
def test_other_commands(run: Command, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    pool = "sampler={pooled: {base: {dafl: {batch: 12}}, round: 12, every: 1}}"
    given = (f"teacher={weights}", "student.model=digits_cnn", "budget.steps=4", "budget.batch=12")
    for words in (
        ("teach", "model=digits_cnn", "data=digits", "budget.steps=5", "--out", weights),
        ("distill", *given, pool, "--out", tmp_path / "student"),
        ("evaluate", f"weights={weights}", "data=digits"),
        ("synthesize", "shader", f"teacher={weights}", "n=12", "--out", tmp_path / "bank"),
        ("scout", weights, "draws.rows=32", "draws.learn=2", "samplers=[uniform, energy, {dfad: {batch: 12}}]"),
    ):
        said = run(*words)
        assert said.status == 0, said.err


# -- the engine's step -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """The data; what waited from the second draw to the fifth is in `found`: steps, and no log point."""

    waits: list[str] = field(hash=False)
    found: list[str] = field(default_factory=lambda: ["never got there"], hash=False)
    name: ClassVar[str] = "watched"
    data_free: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False
    base: ClassVar[Real] = Real()

    def init(self, problem: Problem, seed: int) -> State:
        return State(base=self.base.init(problem, seed), draws=0)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        state.draws += 1
        if state.draws == 2:
            self.waits.clear()
        if state.draws == 5:
            self.found[:] = self.waits
        return self.base.draw(state.base, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)


PAIRS = [["bn1", "bn1"], ["conv3", "conv3"]]
OPTIONS: dict[str, dict[str, Any]] = {"features": {"pairs": PAIRS}, "attention": {"pairs": PAIRS}}
OBJECTIVES = {name: {name: OPTIONS.get(name, {})} for name in LOSSES if name != "peers"}  # of schemes, with edges


def steps(objective: Objective, **optimiser: Any) -> list[str]:
    """What waited in a few steps of a run there."""
    spec = InputSpec((1, 8, 8), 10)
    with stand_in() as waits:
        teacher, student = (Probe(build("digits_cnn", spec, width=width), spec, DEVICE) for width in (3, 2))
        sampler = Watched(waits)
        budget = Budget(batch=8, steps=6)
        training = train(
            Problem(teacher, student, spec, DEVICE), sampler, objective, budget, Optimiser(**optimiser), 0, log_points=1
        )
        assert training.status == "ok"
    return sampler.found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_loss_waits(name: str) -> None:
    assert steps(config.objective(OBJECTIVES[name])) == []


@pytest.mark.parametrize("optimiser", [{"name": "sgd"}, {"name": "adamw"}, {"clip": 1.0}], ids=str)
def test_no_optimiser_waits(optimiser: dict[str, Any]) -> None:
    assert steps(config.objective({"kl": {}}), **optimiser) == []


def test_a_step_that_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def costly(self: Any, state: Any, batch: Batch, loss: Tensor) -> None:
        del self, state, batch
        assert loss.sum().item() >= 0

    monkeypatch.setattr(Real, "observe", costly)
    assert "_local_scalar_dense" in steps(config.objective({"kl": {}}))
