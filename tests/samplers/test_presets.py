"""The presets of all recipes and of their variants are the published ones, whole; what is not as published is said."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dfkd import config
from dfkd.interfaces import HasPreset, Preset, Sampler, preset_of
from dfkd.losses import KL, LogitL1, combine
from dfkd.plan import Settings, as_published, check_presets
from dfkd.registry import SAMPLERS, find
from dfkd.schedule import Budget, Optimiser
from dfkd.types import InputSpec
from samplers import (
    CMI,
    DAFL,
    DFAD,
    DFQ,
    MAD,
    NAYER,
    SSDKD,
    ZSKT,
    DeepInversion,
    Diffusion,
    FastDFKD,
    MosaicKD,
    Pooled,
    PreDFKD,
    SpaceshipNet,
    SRe2L,
    Uniform,
)

HAVE_PRESETS = [name for name in SAMPLERS if isinstance(find("sampler", name, SAMPLERS), HasPreset)]
SPEC = InputSpec((3, 32, 32), 10)


def sgd(learning_rate: float, weight_decay: float, schedule: str = "cosine", *milestones: float) -> Optimiser:
    """Momentum 0.9; along a cosine to 0 unless told (METHODS 3, defaults)."""
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": False, "decay": 0.1, "warmup": 0.0, "clip": None}
    return Optimiser(
        "sgd", learning_rate, weight_decay=weight_decay, schedule=schedule, milestones=milestones, **settings
    )


def adam(learning_rate: float, weight_decay: float, schedule: str, clip: float | None = None) -> Optimiser:
    return Optimiser("adamw", learning_rate, weight_decay=weight_decay, schedule=schedule, clip=clip)


def kl(temperature: float, weight: float = 1.0) -> dict[str, Any]:
    return {"kl": (weight, KL(temperature=temperature))}


def l1(weight: float) -> dict[str, Any]:
    return {"logit_l1": (weight, LogitL1())}


PUBLISHED: dict[str, tuple[Sampler, dict[str, Any], Optimiser, int, int | None]] = {
    # objective for ten classes (of which a mean is a tenth of our sum: METHODS 1.4), optimiser, batch, steps; then the
    # section of METHODS that they are from
    "dafl": (DAFL(), kl(1), adam(2e-3, 0.0, "constant"), 512, 200 * 120),  # 3.1, MNIST
    "dafl cifar10": (DAFL.cifar10(), kl(1), sgd(0.1, 5e-4, "steps", 800 / 2000, 1600 / 2000), 1024, 2000 * 120),  # 3.1
    "dafl cifar100": (DAFL.cifar100(), kl(1), sgd(0.1, 5e-4, "steps", 0.4, 0.8), 1024, 2000 * 120),  # 3.1: "same"
    "dfad": (DFAD(), l1(1 / 10), sgd(0.01, 1e-4, "constant"), 512, 40 * 50 * 5),  # 3.2, MNIST; decay: authors' code
    "dfad cifar": (DFAD.cifar(), l1(1 / 10), sgd(0.1, 5e-4, "steps", 100 / 500, 200 / 500), 256, 500 * 50 * 5),  # 3.2
    "zskt": (ZSKT(), kl(1, 1 / 10), adam(2e-3, 0.0, "cosine", clip=5.0), 128, 80_000 * 10),  # 3.3
    "dfq": (DFQ(), kl(1), sgd(0.1, 1e-4), 256, 200 * 40 * 10),  # 3.4
    "mad": (MAD(), kl(1), sgd(0.1, 1e-4), 256, 200 * 40 * 10),  # 3.11: as 3.4
    # 3.5: temperature 3; the paper's 250 epochs of 195 steps, times 0.1 at 100 and 200; decay and momentum are ours
    "deep_inversion": (DeepInversion(), kl(3), sgd(0.1, 5e-4, "steps", 100 / 250, 200 / 250), 256, 250 * 195),
    "deep_inversion cifar10": (DeepInversion.cifar10(), kl(3), sgd(0.1, 5e-4, "steps", 0.4, 0.8), 256, 250 * 195),
    "sre2l": (SRe2L(), kl(20), adam(1e-3, 0.01, "cosine"), 1024, None),  # 3.6
    "cmi": (CMI(), kl(20), sgd(0.1, 1e-4), 128, 200 * 400),  # 3.7
    "fast_dfkd": (FastDFKD(), kl(20), sgd(0.2, 1e-4), 256, 200 * 400),  # 3.8
    "nayer": (NAYER(), kl(20), sgd(0.2, 1e-4), 512, 300 * 400),  # 3.9, 20 more without
    "pre_dfkd": (
        PreDFKD(),
        l1(1 / 10),
        sgd(0.1, 5e-4),
        1024 + 128,
        400 * 36 * 10,
    ),  # 3.10
    "ssd_kd": (SSDKD(), kl(20), sgd(0.2, 1e-4), 256, None),  # 3.12: on 3.8
    "spaceshipnet": (SpaceshipNet(), kl(30, 1 / 10), sgd(0.1, 1e-4), 256, 200 * 2000),  # 3.13
    "mosaic_kd": (MosaicKD("digits"), kl(1), sgd(0.1, 1e-4), 256 + 256, 200 * (50_000 // 256) * 5),  # 3.14
    # 3.16: 240 epochs of 50 000 images; 100 of 200 000, times 0.1 at 30, 60, 90
    "diffusion led": (Diffusion("m", guidance=1.0), kl(30), sgd(0.2, 5e-4), 256, 240 * 196),
    "diffusion": (Diffusion("m"), kl(10), sgd(0.1, 1e-4, "steps", 0.3, 0.6, 0.9), 256, 100 * 782),
}


def test_all_recipes_are_here() -> None:
    assert {name.partition(" ")[0] for name in PUBLISHED} == set(HAVE_PRESETS)
    without = {"deep_inversion imagenet", "deep_inversion imagenet_adaptive"}
    assert {f"{name} {variant}" for name, variant in variants()} - set(PUBLISHED) == without


@pytest.mark.parametrize("name", PUBLISHED)
def test_is_the_published_one(name: str) -> None:
    sampler, objective, optimiser, batch, steps = PUBLISHED[name]
    preset = preset_of(sampler)
    assert preset is not None
    assert preset.terms(10) == objective
    assert Optimiser(**preset.optimiser) == optimiser
    assert (preset.batch, preset.steps) == (batch, steps)
    Budget(batch=preset.batch, steps=preset.steps or 1)
    assert as_published(sampler, SPEC, combine(kl(4)), Optimiser(), Budget(steps=7)) == (
        combine(objective),
        optimiser,
        Budget(steps=7, batch=batch),
    )


def test_a_training_that_is_not_public_is_not_another_ones() -> None:
    """METHODS 3.5: no student code was released; the paper's numbers above are for CIFAR-10."""
    assert preset_of(DeepInversion.imagenet()) is None
    assert preset_of(Pooled(DeepInversion.imagenet())) is None


@pytest.mark.parametrize("name", [name for name in PUBLISHED if 1 / 10 in next(iter(PUBLISHED[name][1].values()))])
def test_a_mean_over_classes_is_one_for_any_number_of_them(name: str) -> None:
    preset = preset_of(PUBLISHED[name][0])
    assert preset is not None
    for k in (10, 100):
        ((weight, _),) = preset.terms(k).values()
        assert weight == pytest.approx(1 / k)


# -- what is not as published is said ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [DAFL(batch=64), DAFL.cifar10(), DFAD.cifar(), ZSKT(batch=64), DFAD(batch=64)])
def test_a_batch_that_is_not_the_presets(sampler: Sampler, recwarn: pytest.WarningsRecorder) -> None:
    preset = preset_of(sampler)
    assert preset is not None
    check_presets({"mine": Pooled(sampler)})
    said = [str(warning.message) for warning in recwarn if "leaves out" not in str(warning.message)]
    if preset.made == preset.batch:
        assert said == []
    else:
        (line,) = said
        assert line.startswith(
            f"mine: batch 64 of the generator and the preset's {preset.batch} of the student disagree"
        )
        assert line.endswith(f"say batch: {preset.batch}, or train without preset")


def test_what_a_preset_leaves_out() -> None:
    teacher = nn.Identity()
    with pytest.warns(UserWarning, match=r"zskt: its preset leaves out attention transfer, .* weight 250"):
        Settings(teacher, "resnet20", {"zskt": ZSKT()}, SPEC, preset=True)
    with pytest.warns(UserWarning, match="ours: its preset leaves out the constraint on activation regions"):
        Settings(teacher, "resnet20", {"ours": SpaceshipNet()}, SPEC, preset=True)
    for name in set(HAVE_PRESETS) - {"zskt", "spaceshipnet"}:
        Settings(teacher, "resnet20", {name: PUBLISHED[name][0]}, SPEC, preset=True)  # a warning would be an error
    Settings(teacher, "resnet20", {"zskt": ZSKT(batch=64), "uniform": Uniform()}, SPEC)
    Settings(teacher, "resnet20", {"uniform": Uniform()}, SPEC, preset=True)


def test_distil_says_it_too() -> None:
    settings = {"teacher": "t.safetensors", "student": "lenet5_half", "preset": True}
    with pytest.warns(UserWarning, match="dafl: batch 64 of the generator and the preset's 512 of the student"):
        config.parse(config.DistillConfig, {**settings, "sampler": {"dafl": {"batch": 64}}})
    several = ["uniform", {"dafl": {"label": "mine", "variant": "cifar10", "batch": 64}}]
    with pytest.warns(UserWarning, match="mine: batch 64 of the generator and the preset's 1024 of the student"):
        config.parse(config.DistillConfig, {**settings, "samplers": several})


# -- variants ------------------------------------------------------------------------------------------------------


def variants() -> list[tuple[str, str]]:
    """Of all samplers: the name of each and of the variant."""
    return [(name, v) for name in SAMPLERS for v in getattr(find("sampler", name, SAMPLERS), "variants", ())]


@pytest.mark.parametrize(("name", "variant"), variants())
def test_a_variant_can_be_named_in_a_file_and_changed(name: str, variant: str, tmp_path: Path) -> None:
    published = getattr(find("sampler", name, SAMPLERS), variant)()
    label, sampler = config.sampler({name: {"variant": variant, "label": "mine"}})
    assert (label, sampler) == ("mine", published)
    assert config.sampler(config.dump(sampler))[1] == published  # as it is written beside a run
    (tmp_path / "s.yaml").write_text(f"sampler: {{{name}: {{variant: {variant}, batch: 32}}}}\n")
    changed = config.sampler(config.read_settings([str(tmp_path / "s.yaml")])["sampler"])[1]
    assert changed != published
    assert preset_like(changed) == preset_like(published)


def preset_like(sampler: Sampler) -> Any:
    """A preset without what of it is the sampler's own."""
    preset = preset_of(sampler)
    return preset and (preset.objective, preset.optimiser, preset.batch, preset.steps)


def test_names_the_wrong_variant() -> None:
    with pytest.raises(ValueError, match=r"sampler.dafl.variant: unknown 'cifar11'; the nearest is 'cifar10'"):
        config.sampler({"dafl": {"variant": "cifar11"}})
    with pytest.raises(ValueError, match=r"sampler.dafl.variant: unknown '3'"):
        config.sampler({"dafl": {"variant": 3}})
    with pytest.raises(ValueError, match=r"sampler.uniform: option: unknown 'variant'"):
        config.sampler({"uniform": {"variant": "cifar10"}})
    with pytest.raises(ValueError, match=r"sampler.dafl: option: unknown 'batches'"):
        config.sampler({"dafl": {"variant": "cifar10", "batches": 3}})


def test_a_preset_is_that_of_its_variant_whatever_the_batch() -> None:
    assert isinstance(DAFL().preset, Preset)
    assert preset_like(DAFL(latent=1000, batch=64)) == preset_like(DAFL.cifar10()) != preset_like(DAFL())
