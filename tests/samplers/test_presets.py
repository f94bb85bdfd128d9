"""Presets of all recipes can be used; those of the generators that learn beside the student are the published ones."""

from typing import Any

import pytest
from torch import nn

from dfkd.interfaces import HasPreset, Preset
from dfkd.losses import KL, LogitL1, combine
from dfkd.plan import Settings
from dfkd.registry import SAMPLERS, find
from dfkd.schedule import Budget, Optimiser
from dfkd.types import InputSpec

HAVE_PRESETS = [name for name in SAMPLERS if isinstance(find("sampler", name, SAMPLERS), HasPreset)]

PUBLISHED: dict[str, tuple[dict[str, Any], Optimiser, int, int]] = {
    # objective, optimiser, batch, steps; a mean over ten classes is a tenth of our sum
    "dafl": (
        {"kl": (1.0, KL(temperature=1.0))},
        Optimiser("adamw", 2e-3, weight_decay=0.0, schedule="constant"),
        512,
        200 * 120,
    ),
    "dfad": (
        {"logit_l1": (1 / 10, LogitL1())},
        Optimiser("sgd", 0.01, weight_decay=1e-4, schedule="constant"),
        512,
        40 * 50 * 5,
    ),
    "zskt": (
        {"kl": (1 / 10, KL(temperature=1.0))},
        Optimiser("adamw", 2e-3, weight_decay=0.0, clip=5.0),
        128,
        80_000 * 10,
    ),
    "dfq": ({"kl": (1.0, KL(temperature=1.0))}, Optimiser("sgd", 0.1, weight_decay=1e-4), 256, 200 * 40 * 10),
    "mad": ({"kl": (1.0, KL(temperature=1.0))}, Optimiser("sgd", 0.1, weight_decay=1e-4), 256, 200 * 40 * 10),
}


@pytest.mark.parametrize("name", ["dfad", "zskt", "pre_dfkd", "spaceshipnet"])
def test_a_mean_over_classes_is_one_for_any_number_of_them(name: str) -> None:
    preset = find("sampler", name, SAMPLERS).preset
    for k in (10, 100):
        ((weight, _),) = preset.terms(k).values()
        assert weight == pytest.approx(1 / k)
        sampler = find("sampler", name, SAMPLERS)()
        settings = Settings(nn.Identity(), "resnet20", {name: sampler}, InputSpec((3, 32, 32), k), preset=True)
        assert settings.training(name)[0] == combine(preset.terms(k))


@pytest.mark.parametrize("name", HAVE_PRESETS)
def test_can_be_used_as_it_stands(name: str) -> None:
    preset = find("sampler", name, SAMPLERS).preset
    if not isinstance(preset, Preset):  # one that depends on the settings
        return
    combine(preset.terms(10))
    Optimiser(**preset.optimiser)
    Budget(batch=preset.batch, steps=preset.steps or 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_is_the_published_one(name: str) -> None:
    preset = find("sampler", name, SAMPLERS).preset
    objective, optimiser, batch, steps = PUBLISHED[name]
    assert preset.terms(10) == objective
    assert Optimiser(**preset.optimiser) == optimiser
    assert (preset.batch, preset.steps) == (batch, steps)
