"""What every sampler promises, asked of each one and of composites of composites."""

import ast
import atexit
import dataclasses
import importlib
import inspect
import io
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import generators
import samplers
from dfkd.interfaces import Sampler, Trained, is_data_free, parts, walk
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.types import Batch
from generators.sn_gan_training import SNGAN
from samplers import (
    CMI,
    DAFL,
    DFAD,
    DFQ,
    GAN,
    MAD,
    NAYER,
    SSDKD,
    ZSKT,
    Adversarial,
    Augmented,
    Balanced,
    CutMix,
    DeadLeaves,
    DeepInversion,
    Diffusion,
    Energy,
    FastDFKD,
    Gaussian,
    Generative,
    Mixture,
    Mixup,
    MosaicKD,
    OneImage,
    OutOfDomain,
    Pooled,
    PreDFKD,
    Prioritised,
    Real,
    Robust,
    Shader,
    Smoothed,
    SpaceshipNet,
    Spectrum,
    SRe2L,
    Uniform,
)

from ..stand_in import DEVICE, stand_in

MakeProblem = Callable[..., Problem]

INVERSION = DeepInversion(steps=2, batch=8)
GENERATIVE = Generative(latent=8, width="small", batch=10, student_steps=2)
SSD = SSDKD(capacity=12, steps=2, latent=6, batch=6, warmup=1, every=2)
SPACESHIP = SpaceshipNet(latent=6, steps=2, batch=10, every=2, capacity=20)
FAST = FastDFKD(steps=2, latent=6, batch=6, warmup=1, every=2)
LABELLED = NAYER(steps=2, batch=12, length=6, noise=8, every=2, rounds=1, warmup=1, warmup_rounds=2, renew=1)


def saved_generator(classes: int | None) -> str:
    """The file of a generator of 8x8 grey images that has learnt nothing yet."""
    settings = SNGAN(latent=6, width=4, critic_width=4)
    shape = (1, 8, 8)
    trainee = settings.init(shape, classes, (0.0, 1.0), 1, torch.device("cpu"), seed=5)
    trained_on = {"source": "digits", "digest": "0", "size": None, "limit": None}
    about = {"kind": "sn_gan", "shape": shape, "low": 0.0, "high": 1.0, "classes": classes, "class_names": None}
    about |= {"options": dataclasses.asdict(settings), "trained_on": trained_on, "steps": 0, "seed": 5}
    return str(trainee.save(SAVED / str(classes), about))


SAVED = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, SAVED, ignore_errors=True)
PLAIN, CLASSES = saved_generator(None), saved_generator(10)
TINY = SAVED / "diffusion"  # the fixture below fills it
DIFFUSION = Diffusion(str(TINY), steps=2, batch=8)

ROWS: dict[str, Sampler] = {
    "real": Real(),
    "real_test": Real(split="test", limit=30),
    "uniform": Uniform(),
    "uniform_eval": Uniform(labelling="eval"),
    "gaussian": Gaussian(mean=0.3, std=0.5),
    "smoothed": Smoothed(sigma=2.0),
    "dead_leaves": DeadLeaves(),
    "dead_leaves_discs": DeadLeaves(shape="disc", least=0.2, cap=20, labelling="batch"),
    "spectrum": Spectrum(),
    "shader": Shader(),
    "shader_short": Shader(layers=(1, 1), contrast=1.0),
    "one_image": OneImage(),
    "out_of_domain": OutOfDomain("digits", limit=60),
    "out_of_domain_kept": OutOfDomain("digits", keep=30, limit=60),
    "diffusion": DIFFUSION,
    "diffusion_resized": replace(DIFFUSION, scheduler="ddim", scale=1.0, resize=True),
    "diffusion_adversarial": replace(
        DIFFUSION, scheduler="ddpm", guidance=0.1, batchnorm="auto", adversarial=1.0, warmup=8, cutmix=True
    ),
    "mixup": Mixup(Real(), alpha=0.3),
    "mixup_noise": Mixup(Uniform()),
    "cutmix": CutMix(Real(), alpha=0.5),
    "deep_inversion": INVERSION,
    "deep_inversion_adaptive": DeepInversion(steps=2, batch=8, adaptive=1.0, total_variation=1e-3, l2=1e-3, roll=0.1),
    "generative": GENERATIVE,
    "dafl": DAFL(latent=8, batch=10, learning_rate=1e-3),
    "dafl_batch": DAFL(latent=8, batch=12, learning_rate=1e-3, student_steps=2, labelling="batch"),
    "dfad": DFAD(latent=8, batch=8, student_steps=2),
    "zskt": ZSKT(latent=8, batch=8, student_steps=3),
    "dfq": DFQ(latent=8, width="small", batch=12, student_steps=2),
    "mad": MAD(latent=8, width="small", batch=8, student_steps=2, batchnorm="auto", learning_rate=0.01),
    "cmi": CMI(steps=2, latent=6, batch=6, every=2, features=14, negatives=5, projection=4),
    "nayer": LABELLED,
    "nayer_learned": replace(LABELLED, embeddings="learned", adversarial=0.0, rounds=2, flip=False),
    "sre2l": SRe2L(rounds=2, batch=6, steps=2),
    "fast_dfkd": FAST,
    "pre_dfkd": PreDFKD(
        remembered=0.3, latent=8, batch=10, student_steps=2, memory_steps=1, memory_new=4, memory_old=3
    ),
    "ssd_kd": SSD,
    "spaceshipnet": SPACESHIP,
    "mosaic_kd": MosaicKD("digits", limit=60, latent=8, width="small", batch=10, student_steps=2, critic=4, flip=False),
    "gan": GAN(PLAIN),
    "gan_classes": GAN(CLASSES, labelling="batch"),
    "gan_even": GAN(PLAIN, balance=True, multiple=2),
    "gan_search": GAN(PLAIN, steps=2, batch=8),
    "gan_search_classes": GAN(CLASSES, steps=2, batch=6, batchnorm="auto", balance=True, multiple=2),
    "gan_adversarial": GAN(CLASSES, labels=False, steps=2, batch=8, one_hot=0.0, adversarial=1.0),
    "fast_dfkd_plain": replace(FAST, adversarial=0.0, meta="reptile", crop=0, flip=False, warmup=0, redraw_at=2),
    "adversarial": Adversarial(Gaussian(), steps=2),
    "adversarial_all": Adversarial(Real(), steps=1, fraction=1.0, divergence="l1", random_start=True),
    "mixture": Mixture((Uniform(), Real()), weights=(1.0, 3.0)),
    "pooled": Pooled(INVERSION, round=6, every=2, warmup=2, capacity=18),
    "pooled_random": Pooled(Real(), round=5, every=1, capacity=12, evict="random"),
    "pooled_noise": Pooled(Uniform(), round=6, every=None),
    "pooled_diffusion": Pooled(DIFFUSION, round=6, every=2),
    "prioritised": Prioritised(INVERSION, round=6, every=2, warmup=2, capacity=18),
    "augmented": Augmented(Real(), crop=2, flip=True, roll=1),
    "augmented_colours": Augmented(
        Uniform(), 1, area=0.5, degrees=20, flip_vertical=True, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5
    ),
    "balanced": Balanced(Real(), multiple=3),
    "balanced_noise": Balanced(Uniform(), multiple=2),
    "energy": Energy(steps=3, buffer=32, batch=8),
    "energy_class": Energy(steps=2, buffer=21, batch=8, class_conditional=True, batchnorm="auto", total_variation=0.1),
    "energy_metropolis": Energy(steps=2, step=0.01, noise=0.1, buffer=16, batch=8, metropolis=True),
    "robust": Robust((Uniform(), Real()), rate=0.1, floor=0.1),
    "balanced_leaves": Balanced(DeadLeaves(), multiple=2),
    "balanced_spectrum": Balanced(Spectrum(), multiple=2),
    "balanced_shader": Balanced(Shader(), multiple=2),
    "balanced_one_image": Balanced(OneImage(), multiple=2),
    "balanced_elsewhere": Balanced(OutOfDomain("digits", limit=60), multiple=2),
    # composites of composites
    "mixture_images": Mixture((Shader(), CutMix(OneImage()), Pooled(DeadLeaves(), round=6, every=None))),
    "adversarial_pooled": Adversarial(Pooled(INVERSION, round=6, every=2), steps=2, fraction=0.5),
    "mixture_three": Mixture((Uniform(), Mixup(Real()), Pooled(GENERATIVE, round=6, every=2)), weights=(2.0, 1.0, 1.0)),
    "mixture_prioritised": Mixture((Prioritised(Uniform(labelling="eval"), round=6, every=2), Real())),
    "mixture_banks": Mixture((SSD, SPACESHIP)),
    "mixture_nested": Mixture((Mixture((Real(), Gaussian())), Pooled(Real(), round=6), Smoothed())),
    "mixture_equal": Mixture((Smoothed(), Smoothed())),
    "balanced_augmented": Balanced(Augmented(Uniform(labelling="eval"))),
    "pooled_adversarial": Pooled(Adversarial(Gaussian(), steps=1), round=6, every=2),
    "pooled_mixture": Pooled(Mixture((Mixup(Real()), Real())), round=6, every=1),
    "pooled_pooled": Pooled(Pooled(Uniform(labelling="eval"), round=7), round=5, every=1),
    "adversarial_modes": Adversarial(Mixture((Uniform(), Real(), Gaussian())), steps=1, fraction=0.7),
    "cutmix_generative": CutMix(GENERATIVE),
    "mixture_online": Mixture((ZSKT(latent=8, batch=6, student_steps=2), Pooled(MAD(latent=8, batch=8), round=6))),
    "augmented_mixture": Augmented(Mixture((Uniform(), Real()))),
    "robust_nested": Robust((Robust((Real(), Gaussian())), Pooled(Energy(steps=1, buffer=8, batch=8), round=6))),
    "adversarial_robust": Adversarial(Robust((Real(), Smoothed())), steps=1),
    "mixture_gan": Mixture((GAN(CLASSES), Real()), weights=(1.0, 4.0)),
    "adversarial_gan": Adversarial(Pooled(Augmented(GAN(CLASSES), crop=1), round=6, every=2), steps=1),
    "balanced_gan": Balanced(GAN(PLAIN), multiple=2),
    "mixup_pooled": Mixup(Pooled(Balanced(Real()), round=6, every=2)),
}
ONLINE = "dafl|dfad|zskt|dfq|mad|online|pre_dfkd|mosaic_kd"
"""Rows with a generator that learns beside the student."""
COLOUR = (
    "dead_leaves",
    "spectrum",
    "shader",
    "one_image",
    "out_of_domain",
    "diffusion_resized",
    "uniform",
    "smoothed",
    "generative",
    "dafl",
    "zskt",
    "pre_dfkd",
    "mosaic_kd",
    "ssd_kd",
    "spaceshipnet",
    "deep_inversion",
    "pooled_adversarial",
    "balanced_augmented",
    "augmented_colours",
)
SIZES = (7, 1, 20)


@pytest.fixture(scope="module", autouse=True)
def tiny_diffusion() -> None:
    """A pipeline of ten classes and none, with random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
            attention_head_dim=4,
            num_class_embeds=11,
        )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(TINY, safe_serialization=True)


GPU = torch.cuda.is_available()
each_row = pytest.mark.parametrize("row", ROWS)


def begin(sampler: Sampler, problem: Problem, seed: int = 3) -> Callable[..., Batch]:
    """draw(n, learn=True) of a run of its own."""
    state = sampler.init(problem, seed)

    def draw(n: int, learn: bool = True) -> Batch:
        batch = sampler.draw(state, problem, n, learn)
        if learn:
            sampler.observe(state, batch, torch.arange(float(n), device=problem.device))
        return batch

    return draw


def tensors(batch: Batch) -> dict[str, Tensor]:
    """All a batch says, by name."""
    found = {name: getattr(batch, name) for name in ("x", "y", "target", "weight", "source", "known")}
    found |= {f"info.{key}": value for key, value in batch.info.items()}
    if batch.teacher is not None:
        found["logits"] = batch.teacher.logits
    return {name: value for name, value in found.items() if value is not None}


def assert_same(one: Batch, other: Batch) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert one.labelling == other.labelling
    for name in a:
        assert torch.equal(a[name], b[name]), name


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a state_dict holds, by path."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else None
    if items is None:
        yield path, tree.clone() if isinstance(tree, Tensor) else tree
        return
    for key, value in items:
        yield from leaves(value, f"{path}/{key}")


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Which paths of two flat states differ."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and bool(a == b)

    return {path for path in before.keys() | after.keys() if not same(before.get(path, ...), after.get(path, ...))}


# -- the tables ----------------------------------------------------------------------------------------------------


def test_every_sampler_has_a_row_and_its_name() -> None:
    assert {sampler.name for sampler in ROWS.values()} == set(SAMPLERS)
    for name in SAMPLERS:
        assert find("sampler", name, SAMPLERS).name == name


def test_the_package_lists_what_the_table_lists() -> None:
    assert {find("sampler", name, SAMPLERS) for name in SAMPLERS} == {
        getattr(samplers, name) for name in samplers.__all__
    }
    files = {path.stem for path in Path(samplers.__path__[0]).glob("*.py")}
    assert files - {"__init__", "bank", "checks", "state"} == {
        place.partition(":")[0].partition(".")[2] for place in SAMPLERS.values()
    }


# -- what is drawn -------------------------------------------------------------------------------------------------


BOXES: dict[str, dict[str, Any]] = {
    "unit box": {},
    "other box": {"low": -1.0, "high": 2.0},
    "colour": {"shape": (3, 16, 16)},
}
DRAWN = [(row, box) for row in ROWS for box in BOXES if box != "colour" or row in COLOUR]


@pytest.mark.parametrize(("row", "box"), DRAWN)
def test_draws_images_of_the_spec(row: str, box: str, make_problem: MakeProblem) -> None:
    problem = make_problem(**BOXES[box])
    draw, spec = begin(ROWS[row], problem), problem.spec
    for n in SIZES:
        batch = draw(n)
        assert batch.x.shape == (n, *spec.shape)
        assert batch.x.dtype == torch.float32
        assert batch.x.device == problem.device
        assert torch.isfinite(batch.x).all()
        assert batch.x.min() >= spec.low
        assert batch.x.max() <= spec.high
        assert batch.x.max() - batch.x.min() > 0.05 * spec.span  # pixels of the box, not a thousandth of it
        assert sum(rows for rows, _ in batch.labelling) == n
        assert not any(value.requires_grad or value.grad_fn is not None for value in tensors(batch).values())
        assert all(value.ndim == 0 for value in batch.info.values())
    assert torch.is_grad_enabled()


# which of y, target and source a row's batches carry; the others are None
HAVE_Y = "real real_test mixup cutmix adversarial_all pooled_random augmented balanced mixup_pooled pooled_mixture"
HAVE_TARGET = (
    "deep_inversion deep_inversion_adaptive pooled prioritised adversarial_pooled energy_class ssd_kd "
    "spaceshipnet mixture_banks fast_dfkd fast_dfkd_plain cmi nayer nayer_learned "
    "gan_classes gan_search gan_search_classes gan_adversarial adversarial_gan mixture_gan "
    "diffusion diffusion_resized diffusion_adversarial pooled_diffusion"
)
HAVE_SOURCE = (
    "mixture mixture_images mixture_prioritised mixture_banks pre_dfkd mosaic_kd mixture_three mixture_nested "
    "mixture_equal pooled_mixture adversarial_modes augmented_mixture mixture_online robust robust_nested "
    "adversarial_robust mixture_gan"
)


@each_row
def test_columns_are_of_their_kind(row: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    batch, k = begin(ROWS[row], problem)(20), 10
    for column, rows in (("y", HAVE_Y), ("target", HAVE_TARGET), ("source", HAVE_SOURCE)):
        assert (getattr(batch, column) is not None) == (row in rows.split()), column
    if batch.y is not None:
        assert not is_data_free(ROWS[row])  # ground truth comes from data only
        if batch.y.ndim == 1:
            assert batch.y.dtype == torch.int64
            assert ((batch.y >= 0) & (batch.y < k)).all()
        else:
            assert batch.y.shape == (20, k)
            torch.testing.assert_close(batch.y.sum(dim=1), torch.ones(20))
    if batch.target is not None:
        assert batch.target.dtype == torch.int64
        assert ((batch.target >= -1) & (batch.target < k)).all()
    if batch.source is not None:
        assert batch.source.dtype == torch.int64
    if isinstance(ROWS[row], Mixture):
        assert batch.source is not None
        assert set(batch.source.tolist()) == set(range(len(list(parts(ROWS[row])))))


@each_row
def test_refuses_no_rows(row: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    sampler = ROWS[row]
    state = sampler.init(problem, 1)
    with pytest.raises(ValueError, match="n: expected an integer >= 1, found 0"):
        sampler.draw(state, problem, 0)


# -- chance --------------------------------------------------------------------------------------------------------


@each_row
def test_repeats_for_its_seed_and_differs_for_another(row: str, make_problem: MakeProblem) -> None:
    first, again = (begin(ROWS[row], make_problem()) for _ in range(2))
    other = begin(ROWS[row], make_problem(), seed=4)
    seen: list[Tensor] = []
    for n in (*SIZES, 7):
        batch = first(n)
        assert_same(batch, again(n))
        assert not torch.equal(batch.x, other(n).x) or n == 1  # a single row may be met twice
        seen.append(batch.x)
    assert not torch.equal(seen[0], seen[3])  # the stream moves on


@each_row
def test_leaves_the_global_generators_alone(row: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    draw = begin(ROWS[row], problem)
    for n in SIZES:
        draw(n)
        draw(n, learn=False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))  # noqa: NPY002


@each_row
def test_does_not_ask_the_global_generators(row: str, make_problem: MakeProblem) -> None:
    torch.manual_seed(1)
    one = begin(ROWS[row], make_problem())
    a = [one(n) for n in SIZES]
    torch.manual_seed(2)
    other = begin(ROWS[row], make_problem())
    for first, n in zip(a, SIZES, strict=True):
        assert_same(first, other(n))


@each_row
def test_settings_serve_two_runs_at_once(row: str, make_problem: MakeProblem) -> None:
    alone = [[draw(n) for n in SIZES] for draw in (begin(ROWS[row], make_problem(), seed) for seed in (5, 6))]
    problem = make_problem()
    together = [begin(ROWS[row], problem, seed) for seed in (5, 6)]
    for step, n in enumerate(SIZES):
        for run in (0, 1):
            assert_same(alone[run][step], together[run](n))


@each_row
def test_equal_parts_of_a_mixture_differ(row: str, make_problem: MakeProblem) -> None:
    x = begin(Mixture((ROWS[row], ROWS[row])), make_problem())(16).x
    assert not torch.equal(x[:8], x[8:])


ALONE = [row for row, sampler in ROWS.items() if not any(part.uses_student for part in walk(sampler))]


def test_most_samplers_need_no_student() -> None:
    assert set(ROWS) - set(ALONE) == {
        row
        for row in ROWS
        if re.search(
            "adversarial|adaptive|generative|three|prioritised|ssd_kd|spaceshipnet|banks|energy|robust"
            f"|{ONLINE}|fast_dfkd$|cmi|nayer$",
            row,
        )
    }


@pytest.mark.parametrize("row", ALONE)
def test_depends_on_the_student_and_the_clock_only_where_it_says_so(row: str, make_problem: MakeProblem) -> None:
    problem, other = make_problem(), make_problem(student_seed=9)
    other.progress, other.horizon = 0.7, 50
    one, two = begin(ROWS[row], problem), begin(ROWS[row], other)
    for n in SIZES:
        assert_same(one(n), two(n))
    assert sum(sum(counts.values()) for counts in problem.student.counts.values()) == 0


# -- state ---------------------------------------------------------------------------------------------------------


@each_row
def test_resumes_exactly(row: str, make_problem: MakeProblem) -> None:
    sampler, problem = ROWS[row], make_problem()
    state = sampler.init(problem, 3)
    for n in (7, 20, 1):
        sampler.observe(state, sampler.draw(state, problem, n), torch.ones(n))
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    whole = [sampler.draw(state, problem, n) for n in (5, 8, 1, 20)]
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    problem = make_problem()
    state = sampler.init(problem, 99)  # another seed: all that matters is in what was saved
    state.load_state_dict(saved)
    assert not moved(dict(leaves(saved)), dict(leaves(state.state_dict())))
    for n, batch in zip((5, 8, 1, 20), whole, strict=True):
        assert_same(batch, sampler.draw(state, problem, n))


@each_row
def test_a_saved_state_is_a_snapshot(row: str, make_problem: MakeProblem) -> None:
    sampler, problem = ROWS[row], make_problem()
    state = sampler.init(problem, 3)
    sampler.draw(state, problem, 7)
    saved = state.state_dict()
    before = dict(leaves(saved))
    for _ in range(3):
        sampler.draw(state, problem, 7)
    assert not moved(before, dict(leaves(saved)))


@each_row
def test_only_the_stream_moves_where_nothing_is_learnt(row: str, make_problem: MakeProblem) -> None:
    sampler, problem = ROWS[row], make_problem()
    state = sampler.init(problem, 3)
    for learnt in range(3):
        before = dict(leaves(state.state_dict()))
        batches = [sampler.draw(state, problem, n, learn=False) for n in SIZES]
        changed = moved(before, dict(leaves(state.state_dict())))
        assert {path.rsplit("/", 1)[1] for path in changed} <= {"step", "drawn"}, (learnt, changed)
        assert changed, "the stream has not moved"
        assert [len(batch) for batch in batches] == list(SIZES)
        for _ in range(2):
            sampler.draw(state, problem, 7)


# -- the models ----------------------------------------------------------------------------------------------------


def portrait(module: nn.Module) -> dict[str, Any]:
    """All that a sampler could change of a model."""
    found: dict[str, Any] = dict(leaves(module.state_dict()))
    for name, parameter in module.named_parameters():
        found[f"grad {name}"] = None if parameter.grad is None else parameter.grad.clone()
        found[f"asks {name}"] = parameter.requires_grad
    for name, part in module.named_modules():
        found[f"mode {name}"] = part.training
        found[f"tracks {name}"] = getattr(part, "track_running_stats", None)
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        found[f"hooks {name}"] = str([len(table) for table in hooks])
    return found


@each_row
def test_leaves_both_models_as_they_were(row: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    nets = problem.teacher.module, problem.student.module
    for net in nets:
        parameters = list(net.parameters())
        parameters[0].requires_grad_(False)
        for parameter in parameters[2:]:
            parameter.grad = torch.full_like(parameter, 0.5)
        next(iter(net.children())).eval()  # a mixed state of modes, that one call of train() or eval() would destroy
    before = [portrait(net) for net in nets]
    draw = begin(ROWS[row], problem)
    for n in SIZES:
        draw(n)
        draw(n, learn=False)
    for net, then in zip(nets, before, strict=True):
        assert not moved(then, portrait(net))


class Tally(nn.Module):
    """A model that counts for itself what it is asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forwards, self.backwards = net, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)
            x.register_hook(self._backward)
        return self.net(x)  # type: ignore[no-any-return]

    def _backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@each_row
def test_counts_every_image(row: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    tallies = []
    for role in ("teacher", "student"):
        probe = Probe(Tally(getattr(problem, role).module), problem.spec, name=role)
        assert "input_grad" in probe.capabilities  # asked once, and not counted
        assert not probe.flat
        tally = probe.module
        assert isinstance(tally, Tally)
        tally.forwards = tally.backwards = 0
        setattr(problem, role, probe)
        tallies.append((probe, tally))
    draw = begin(ROWS[row], problem)
    for n in (*SIZES, 7):
        draw(n)
    for probe, tally in tallies:
        counted = {way: sum(counts[way] for counts in probe.counts.values()) for way in ("forward", "backward")}
        assert counted == {"forward": tally.forwards, "backward": tally.backwards}


CARRIES = (
    "dafl",
    "zskt",
    "prioritised",
    "balanced_leaves",
    "balanced_spectrum",
    "balanced_shader",
    "balanced_one_image",
    "balanced_elsewhere",
    "balanced_gan",
    "gan_even",
    "gan_search_classes",
    "pooled",
    "pooled_random",
    "balanced",
    "balanced_augmented",
    "pooled_mixture",
    "pooled_pooled",
)


@each_row
def test_carried_answers_are_the_teachers(row: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    draw = begin(ROWS[row], problem)
    for n in SIZES:
        batch = draw(n)
        assert batch.teacher is not None or row not in CARRIES
        if batch.teacher is None:
            continue
        assert batch.teacher.labelling == batch.labelling
        with torch.no_grad():
            asked = problem.teacher.label(batch.x, batch.labelling)
        torch.testing.assert_close(batch.teacher.logits, asked.logits)
        before = problem.teacher.images
        assert problem.label(batch) is batch.teacher  # and are taken for what they are
        assert problem.teacher.images == before


# -- data ----------------------------------------------------------------------------------------------------------

WITHOUT_DATA = """
import pickle, sys
from importlib.abc import MetaPathFinder

class Closed(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] == ["dfkd", "data"] or name in ("sklearn.datasets", "torchvision.datasets", "diffusers"):
            raise ImportError("closed: " + name)

sys.meta_path.insert(0, Closed())
import torch
from torch import nn
from dfkd.problem import Probe, Problem
from dfkd.types import InputSpec

torch.set_num_threads(1)
spec = InputSpec((1, 8, 8), 10)
def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)
    )
problem = Problem(Probe(net(), spec), Probe(net(), spec), spec, torch.device("cpu"))
for row, sampler in pickle.loads(bytes.fromhex(sys.stdin.read())).items():
    try:
        state = sampler.init(problem, 1)
        sampler.draw(state, problem, 4)
        print(row, "drawn")
    except ImportError as error:
        print(row, error)
"""


def test_reads_no_data_but_what_it_names() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DATA],
        input=pickle.dumps(ROWS).hex(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said.keys() == ROWS.keys()
    for row, sampler in ROWS.items():
        # a generator's file was made from data, which drawing from it does not read
        reading = [part for part in walk(sampler) if not part.data_free and not isinstance(part, Trained)]
        # diffusers imports torchvision, and that its data sets, so it is closed too
        reader = "diffusers" if any(isinstance(part, Diffusion) for part in walk(sampler)) else "dfkd.data"
        assert said[row] == (f"closed: {reader}" if reading or reader == "diffusers" else "drawn"), row
        assert is_data_free(sampler) == all(part.data_free for part in walk(sampler))


# -- settings and words --------------------------------------------------------------------------------------------


@each_row
def test_settings_are_plain_values(row: str) -> None:
    sampler: Any = ROWS[row]
    assert isinstance(ROWS[row], Sampler)
    field = dataclasses.fields(sampler)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(sampler, field, getattr(sampler, field))
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    assert eval(repr(sampler), dict(vars(samplers))) == sampler
    assert hash(sampler) == hash(dataclasses.replace(sampler))


@pytest.mark.parametrize("name", SAMPLERS)
def test_is_documented(name: str) -> None:
    kind = find("sampler", name, SAMPLERS)
    for field in dataclasses.fields(kind):
        assert re.search(rf"\b{field.name}:\s", kind.__doc__), f"{name}: {field.name} is not documented"
    text = importlib.import_module(kind.__module__).__doc__ or ""
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|doi:|no paper", text)
    assert text.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", SAMPLERS)
def test_methods_have_the_house_words(name: str) -> None:
    kind = find("sampler", name, SAMPLERS)
    words = {
        "init": ["problem", "seed"],
        "draw": ["state", "problem", "n", "learn"],
        "observe": ["state", "batch", "loss"],
    }
    for method, expected in words.items():
        parameters = inspect.signature(getattr(kind, method)).parameters
        assert list(parameters)[1:] == expected
    assert inspect.signature(kind.draw).parameters["learn"].default is True


@pytest.mark.parametrize("name", [n for n in SAMPLERS if any(s.name == n and list(parts(s)) for s in ROWS.values())])
def test_composites_refuse_what_is_no_sampler(name: str) -> None:
    kind = find("sampler", name, SAMPLERS)
    for wrong in ("uniform", 3):
        with pytest.raises(ValueError, match=r"^(base|samplers(\.0)?): expected .*sampler"):
            kind((wrong, wrong) if name in ("mixture", "robust") else wrong)


# -- the source ----------------------------------------------------------------------------------------------------

SOURCES = sorted(path for package in (samplers, generators) for path in Path(package.__path__[0]).rglob("*.py"))
TESTS = sorted(Path(__file__).parents[1].rglob("*.py"))


def calls(path: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call in a file, the name that is called, and its line."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield node, called, lines[(node.end_lineno or node.lineno) - 1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_waits_for_the_device_only_where_marked(path: Path) -> None:
    for node, called, line in calls(path):
        if isinstance(node.func, ast.Attribute) and called in ("item", "cpu", "tolist", "numpy", "synchronize"):
            assert "# sync" in line, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_asks_no_object_what_it_has(path: Path) -> None:
    asked = [node.lineno for node, called, _ in calls(path) if called == "hasattr"]
    assert not asked or path.name == "state.py"


def test_seeds_of_tests_are_constants() -> None:
    clocks = {"time", "time_ns", "now", "today", "perf_counter", "urandom", "getrandbits"}
    for path in TESTS:
        for node, called, _ in calls(path):
            if called not in ("manual_seed", "seed", "default_rng", "Random", "derive", "initialised"):
                continue
            inner = [
                part for part in ast.walk(node) if isinstance(part, (ast.Attribute, ast.Name)) and part is not node.func
            ]
            named = {part.attr if isinstance(part, ast.Attribute) else part.id for part in inner}
            assert not named & clocks, f"{path.name}:{node.lineno}"


# -- the same on a device that is none, and on a GPU ----------------------------------------------------------------


@each_row
def test_never_waits_for_the_device(row: str, make_problem: MakeProblem) -> None:
    """Not while it draws, makes rounds and learns; and nothing of the host's is mixed with what is there."""
    with stand_in() as waits:
        draw = begin(ROWS[row], make_problem(device=DEVICE.type))
        waits.clear()  # to begin with data is read, and networks are made
        drawn = [draw(n) for n in (20, 7, 1, 20)]
        assert waits == []
        for batch in drawn:
            assert {value.device for value in tensors(batch).values()} == {DEVICE}
        draw(8, learn=False)  # may wait: it is for scoring


@pytest.mark.cuda
@pytest.mark.skipif(not GPU, reason="no GPU")
@each_row
def test_on_a_gpu(row: str, make_problem: MakeProblem, no_waits: AbstractContextManager[None]) -> None:
    """Images of the spec, there, twice the same up to rounding, and drawn without waiting for the device."""
    one, two = (begin(ROWS[row], make_problem(device="cuda:0")) for _ in range(2))
    for n in (20, 7, 1):
        a, b = one(n), two(n)
        assert a.x.device.type == "cuda"
        assert a.x.min() >= 0.0
        assert a.x.max() <= 1.0
        if not re.search(
            f"adversarial|inversion|generative|three|pooled|prioritised|ssd_kd|spaceshipnet|banks|energy|robust_nested|gan_search|diffusion|{ONLINE}",
            row,
        ):  # a search amplifies rounding
            torch.testing.assert_close(a.x, b.x)
    with no_waits:
        one(20)


@pytest.mark.cuda
@pytest.mark.skipif(not GPU, reason="no GPU")
@each_row
def test_resumes_on_a_gpu(row: str, make_problem: MakeProblem) -> None:
    sampler, problem = ROWS[row], make_problem(device="cuda:0")
    state = sampler.init(problem, 3)
    sampler.draw(state, problem, 7)
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    expected = sampler.draw(state, problem, 8)
    state = sampler.init(problem, 3)
    state.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    found = sampler.draw(state, problem, 8)
    assert found.x.device == expected.x.device
    assert found.labelling == expected.labelling
