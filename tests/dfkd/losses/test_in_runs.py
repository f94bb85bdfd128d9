"""Losses that read more than logits within whole runs: they learn, leave nothing behind, and continue exactly."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd import config, models
from dfkd.problem import Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import initialised
from dfkd.schemes.offline import Distilled
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 4)
STEPS = 6
PAIRS = [["bn2", "bn1"], ["conv3", "conv3"], ["penultimate", "penultimate"]]  # maps of two sizes, widths that differ
OBJECTIVES: dict[str, dict[str, Any]] = {
    "features": {"kl": {}, "features": {"pairs": PAIRS, "weight": 10.0}},
    "attention": {"kl": {}, "attention": {"pairs": PAIRS[:2], "weight": 1000.0}},
    "jacobian": {"kl": {}, "jacobian": {"directions": 2}},
    "jacobian as it learns": {"jacobian": {"student_mode": "train"}},
    "class_gradient": {"kl": {}, "class_gradient": {}},
    "all": {"features": {"pairs": PAIRS[:1]}, "attention": {"pairs": PAIRS[1:2]}, "jacobian": {}, "class_gradient": {}},
}
EVERY = pytest.mark.parametrize("name", OBJECTIVES)


def net(seed: int, width: int) -> nn.Module:
    with initialised(seed):
        return models.build("digits_cnn", SPEC, width=width)


def run(name: str, checkpoint: Path | None = None, stop_at: int = 0, steps: int = STEPS) -> Distilled:
    """Ends by a signal where the curve has so many lines: one for each step."""
    lines: list[int] = []

    def monitor(problem: Problem) -> dict[str, float]:
        del problem
        lines.append(1)
        if len(lines) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return dfkd.distill(
        net(1, width=3),
        net(2, width=2),
        find("sampler", "uniform", SAMPLERS)(),
        spec=SPEC,
        objective=config.objective(OBJECTIVES[name]),
        budget=dfkd.Budget(batch=8, steps=steps),
        device="cpu",
        checkpoint=checkpoint,
        monitor=monitor,
    )


def saved(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["ranks"][0]
    return {key: state[key] for key in ("student", "adapters", "optimiser", "sampler", "counts", "steps")}


def flat(state: Any, where: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by their place."""
    if not isinstance(state, (dict, list)):
        return {where: state}
    entries = state.items() if isinstance(state, dict) else enumerate(state)
    return {place: leaf for key, part in entries for place, leaf in flat(part, f"{where}/{key}").items()}


@EVERY
def test_interrupted_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    expected = run(name, whole)
    stopped = run(name, halved, stop_at=2)
    assert stopped.training.status == "interrupted"
    assert 2 <= stopped.training.steps < STEPS
    resumed = run(name, halved)
    assert resumed.training.status == expected.training.status == "ok"
    found, wanted = flat(saved(halved)), flat(saved(whole))
    assert found.keys() == wanted.keys()
    for place, value in wanted.items():
        same = torch.equal(found[place], value) if isinstance(value, Tensor) else found[place] == value
        assert same, place
    assert resumed.training.counts == expected.training.counts


@EVERY
def test_the_student_is_left_as_it_would_be_built(name: str) -> None:
    done = run(name, steps=2)
    assert done.student.state_dict().keys() == net(2, width=2).state_dict().keys()
    for probe in (done.problem.teacher, done.problem.student):
        hooks = [(part._forward_hooks, part._forward_pre_hooks) for part in probe.module.modules()]
        assert not any(before or after for before, after in hooks)
    untaught = net(1, width=3).state_dict()
    assert all(torch.equal(value, untaught[key]) for key, value in done.problem.teacher.module.state_dict().items())


def test_what_is_saved_has_adapters_and_streams(tmp_path: Path) -> None:
    run("all", tmp_path / "state", steps=3)
    adapters = saved(tmp_path / "state")["adapters"]
    assert {key for key in adapters if key.startswith("features")} == {
        "features.adapters.0.weight",
        "features.adapters.0.bias",
    }
    assert adapters["jacobian._extra_state"]["step"] == 3
    run("all", tmp_path / "shorter", steps=1)
    less = saved(tmp_path / "shorter")["adapters"]
    assert not torch.equal(less["features.adapters.0.weight"], adapters["features.adapters.0.weight"])  # it is trained
    first = config.objective(OBJECTIVES["all"]).init(run("all", steps=1).problem, 0)["features"]
    assert adapters["features.adapters.0.weight"].shape == first.adapters[0].weight.shape == (3, 4, 1, 1)  # type: ignore[union-attr, index]


@pytest.mark.parametrize("name", ["features", "attention"])
def test_it_learns(name: str) -> None:
    """On its own term: lower over the last quarter of a short run than over the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "alone", {name: {"pairs": PAIRS[:2]}})
        curve = [line["loss"] for line in run("alone", steps=80).training.curve]
    assert len(curve) == 20
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
