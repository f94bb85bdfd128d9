"""Losses as measures: whatever can be measured is, and what cannot be is found before any work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dfkd
from dfkd import models
from dfkd.fidelity.distances import distance_name
from dfkd.interfaces import Loss
from dfkd.losses import Attention, Features, Peers, RKDAngle, RKDDistance
from dfkd.plan import Evaluation
from dfkd.registry import LOSSES, find
from dfkd.types import InputSpec
from samplers import Uniform

SPEC = InputSpec((1, 8, 8), 10)


def compared(losses: dict[str, Loss], out: Path, **words: Any) -> dict[str, float | None]:
    evaluate = Evaluation(columns=("uniform",), rows=12, losses=losses, **words)
    budget = dfkd.Budget(steps=1, batch=4)
    made = dfkd.compare(
        net(), "digits_cnn", [Uniform()], spec=SPEC, budget=budget, seeds=[0], evaluate=evaluate, device="cpu", out=out
    )
    return {line.metric: line.value for line in made.lines if line.metric.startswith("loss@")}


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return models.build("digits_cnn", SPEC).eval()


def test_every_loss_of_the_table_measures(tmp_path: Path) -> None:
    """But `peers`, which is about nodes that are trained together; noise has no labels to measure by."""
    own: dict[str, Loss] = {"features": Features((("conv2", "conv2"),)), "attention": Attention((("conv2", "conv2"),))}
    losses = {name: own[name] if name in own else find("loss", name, LOSSES)() for name in LOSSES if name != "peers"}
    found = compared(losses, tmp_path / "out")
    assert found.keys() == {distance_name(name) for name in losses}
    assert {name for name, value in found.items() if value is None} == {"loss@label_ce"}
    assert all(value >= 0 for value in found.values() if value is not None)


@pytest.mark.parametrize(
    ("losses", "message", "rows"),
    [
        ({"angles": RKDAngle()}, "losses.angles: rkd_angle: needs batches of at least 3 rows, found 2", 2),
        (
            {"angles": RKDAngle(max_bytes=2**20)},
            "losses.angles: rkd_angle: the angles of 1000 rows need .* more than max_bytes=1048576; set rows=",
            1000,
        ),
        (
            {"far": RKDDistance(teacher="convs")},
            "losses.far: module path of the teacher: unknown 'convs'; the nearest is 'conv",
            1000,
        ),
        ({"peers": Peers((("a", "b"),))}, "losses.peers: ", 1000),
    ],
)
def test_what_cannot_be_measured_is_named_before_any_work(
    losses: dict[str, Loss], message: str, rows: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        compared(losses, tmp_path / "out", feature_rows=rows)
    assert not (tmp_path / "out").exists()
