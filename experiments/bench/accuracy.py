"""How accurate students are after how long, on CIFAR-10; runs that are cut go on where they were.

no paper. Seconds are those of the run's budget, set-up, synthesis and all; measuring the accuracy is not in them, nor
is compiling, which a few steps before the run do (`compile_seconds`).
"""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.data.arrays import Splits
from dfkd.data.npz import read_npz
from dfkd.engine import Budget, Optimiser, Training
from dfkd.fidelity import columns
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.models import build, load_teacher, save
from dfkd.plan import as_published
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import initialised
from dfkd.schemes.offline import distill
from dfkd.schemes.supervised import teach
from dfkd.types import InputSpec
from samplers import Adversarial, Augmented, DeepInversion, Pooled

from .checks import failure
from .lent import SEED, Fixed, Lent
from .protocol import Row, Unfinished, Write, line

__all__ = [
    "MEAN",
    "PAIRS",
    "RECIPES",
    "SHORT",
    "SPENT",
    "STD",
    "accuracy",
    "check",
    "inverted",
    "rows_to_train",
    "teacher",
    "teachers_wait",
]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the published CIFAR-10 ResNets normalise by."""

PAIRS = (("resnet56", "resnet20", False), ("wrn-40-2", "wrn-16-1", True), ("resnet34", "resnet18", True))
"""Teacher, student, whether the teacher is trained here."""

SIDE, CLASSES = 32, 10


SHORT = 600.0
"""Seconds of a run below which warm-ups are shorter than published; what a recipe was is in the run's first row."""

SHORTER: dict[str, dict[str, Any]] = {
    # published: 200 rounds of 40 steps before the first draw, minutes
    "nayer": {"warmup": 2, "warmup_rounds": 2},
}

BRIEF: dict[str, dict[str, Any]] = {
    "fast_dfkd": {"steps": 1, "warmup": 0},
    "nayer": {"steps": 1, "rounds": 1, "warmup": 0},
    "cmi": {"steps": 1},
}
"""What makes the first draw quick, for steps whose batches alone matter."""

SPENT = "budget spent before the first draw"
"""The `result` of a run whose one step began when its seconds were over."""

AHEAD = 3
"""Steps in which all is compiled and recorded."""

LEAST_TO_TRAIN = 1000
"""Rows with fewer of which no teacher is trained."""


def inverted(small: bool, steps: int, warmup: int, every: int | None) -> Sampler:
    """Ours: inverted images, cropped, mirrored, with a search for disagreement."""
    inversion = DeepInversion(steps=steps, batch=8 if small else 256)
    bank = Pooled(base=inversion, round=inversion.batch, every=every, warmup=warmup)
    return Adversarial(base=Augmented(base=bank, flip=True), steps=2)


def _composite(small: bool, seconds: float) -> Sampler:
    if not seconds:
        return inverted(small, steps=1, warmup=1, every=None)
    # four rounds are a third of a run of 90 seconds
    warmup = 1 if small or seconds < SHORT else 4
    return inverted(small, steps=2 if small else 200, warmup=warmup, every=10 if small else 100)


def _recipe(name: str, small: bool, seconds: float, **options: Any) -> Sampler:
    options["batchnorm"] = "auto"
    if seconds < SHORT:
        options |= SHORTER.get(name, {})
    if small:
        options |= {"batch": 10} | ({"every": 5, "warmup": 1} if "every" in options else {})
    if not seconds:
        options |= BRIEF.get(name, {})
    made: Sampler = find("sampler", name, SAMPLERS)(**options)
    return made


RECIPES: dict[str, Callable[[bool, float], Sampler]] = {
    "composite": _composite,
    "fast_dfkd": partial(_recipe, "fast_dfkd", every=400),
    "nayer": partial(_recipe, "nayer", every=400),
    "dfq": partial(_recipe, "dfq"),
    "cmi": partial(_recipe, "cmi", every=400),
}
"""Whether sizes are tiny, and a run's seconds (0: what draws alike, as soon as can be) -> ours, and published ones by
the registry."""


def check(lent: Lent) -> list[str]:
    """What is left out for want of a file, a line each. ValueError where one is given and is not what is asked for."""
    missing = []
    if lent.data is None:
        missing.append("data: none given, so no accuracy is measured")
    else:
        _read(lent)
        if why := teachers_wait(lent):
            missing.append(why)
    if lent.teacher is None:
        missing.append(f"teacher: none given, so {PAIRS[0][0]} to {PAIRS[0][1]} is left out of accuracy")
    else:
        load_teacher(PAIRS[0][0], InputSpec((3, SIDE, SIDE), CLASSES), lent.teacher, (MEAN, STD))
    return missing


def rows_to_train(lent: Lent) -> int:
    """How many rows to train on the file has; only its labels are looked at."""
    if lent.data is None or not Path(lent.data).is_file():
        return 0
    with np.load(lent.data, allow_pickle=False) as file:
        return len(file["y_train"]) if "y_train" in file else 0


def teachers_wait(lent: Lent) -> str:
    """Why no teacher is trained here; empty where one can be."""
    rows = rows_to_train(lent)
    if rows >= (1 if lent.small else LEAST_TO_TRAIN):
        return ""
    pairs = " and ".join(f"{teacher} to {student}" for teacher, student, here in PAIRS if here)
    return f"data: {rows or 'no'} rows to train on, so {pairs}, whose teachers are trained, are left out of accuracy"


def _read(lent: Lent) -> Splits:
    """Images and classes of CIFAR-10's shape, with rows to test on; of a file that nothing could be done with, none."""
    if lent.data is None:
        raise ValueError("data: expected a file of CIFAR-10, found none")
    path = Path(lent.data)
    if not path.is_file():
        raise ValueError(f"data: expected an .npz file, found nothing at {path}")
    if path.suffix != ".npz":
        raise ValueError(f"data: expected an .npz file, found {path}")
    data = read_npz(path, test_alone=True)
    shape, classes = tuple(data.x_test.shape[1:]), len(data.classes)
    if classes != CLASSES or (not lent.small and shape != (3, SIDE, SIDE)):
        raise ValueError(f"data: expected images (3, {SIDE}, {SIDE}) of {CLASSES} classes, found {shape} and {classes}")
    if lent.teacher is None and not lent.small and not len(data.x_train):
        raise ValueError(f"data: expected images to train teachers on in {path}, or --teacher, found neither")
    return data


def _spec(data: Splits) -> InputSpec:
    c, h, w = data.x_test.shape[1:]
    return InputSpec((c, h, w), len(data.classes), class_names=data.classes)


def accuracy(
    lent: Lent, recipe: str, teacher: str, student: str, here: bool, seed: int, seconds: float, write: Write
) -> None:
    """Accuracy on test at 20 points of a run of `lent.run_seconds`, each written as it comes; seconds are kept outside.

    Points that come have the seconds at which the host was through with the step, which on a GPU the device may be
    behind of; the engine's own, after it has waited, are in the last row's `curve`.

    here: the teacher was trained on the spot. A run that is told to end (SIGTERM) saves, and goes on from there when it
    is asked for again: Unfinished.
    """
    del seconds
    data = _read(lent)
    spec, rows = _spec(data), 64 if lent.small else None
    x, y = data.x_test[:rows], data.y_test[:rows]
    asked = _taught(lent, teacher, spec) if here else _published(lent, teacher, spec)
    about: Row = {"pair": f"{teacher} to {student}", "recipe": recipe, "seed": seed}
    saved = _file(lent, f"{about['pair']} {recipe} {seed} {lent.run_seconds}", ".ckpt")
    own = _right(Probe(asked, spec, lent.device), x, y, spec)
    made = repr(RECIPES[recipe](lent.small, lent.run_seconds))
    first: Row = {"teacher_accuracy": own, "rows": len(x), "run_seconds": lent.run_seconds, "made_by": made}
    write({**about, **first, "continued": saved.exists()})
    shared = (
        combine({"kl": (1.0, KL(4.0))}),
        Optimiser(learning_rate=0.1),
        Budget(batch=lent.batch, seconds=lent.run_seconds),
    )

    def monitor(problem: Problem) -> dict[str, float]:
        right = _right(problem.student, x, y, spec)
        queued = problem.progress * lent.run_seconds
        write({**about, "queued_seconds": queued, "accuracy": right, "teacher_images": problem.teacher.images})
        return {"accuracy": right}

    def once(compile: bool, steps: int | None = None) -> Training:
        """The run, or the first steps of one like it, of which nothing is kept."""
        sampler = RECIPES[recipe](lent.small, 0.0 if steps else lent.run_seconds)
        objective, optimiser, budget = as_published(sampler, spec, *shared)
        seconds = None if steps else lent.run_seconds
        return distill(
            asked,
            lent.net(student),
            sampler,
            spec=spec,
            objective=objective,
            budget=replace(budget, batch=lent.batch, steps=steps, teacher_images=None, seconds=seconds),
            optimiser=optimiser,
            seed=seed,
            device=lent.device,
            checkpoint=None if steps else saved,
            identity=recipe,
            monitor=None if steps else monitor,
            compile=compile,
        ).training

    training, how = _compiled(lent, once, about, write)
    last = training.curve[-1] if training.curve else {}
    ended: Row = {"ended": training.status, "steps": training.steps, "seconds": training.seconds, **how}
    if training.status == "ok" and training.steps <= 1:
        ended["result"] = SPENT
    ended |= {"synthesise_seconds": training.synthesise_seconds, "loss": last.get("loss")}
    ended["curve"] = [[point["seconds"], point["accuracy"]] for point in training.curve]
    write({**about, **ended, "accuracy": last.get("accuracy")})
    _judge(training, saved)


Once = Callable[[bool, int | None], Training]
"""Whether compiled, and how many steps (None: the run) -> how it went."""


def _compiled(lent: Lent, once: Once, about: Row, write: Write) -> tuple[Training, Row]:
    """The run through torch.compile on a GPU, without where that fails, which is a row; and how it was run.

    A few steps go before, in which all is compiled, so that this is not in the run's seconds, from which its learning
    rate follows; what the run then compiles is found in torch's caches.
    """
    if not lent.cuda:
        return once(False, None), {"compiled": False}
    try:
        seconds = _ahead(lent, once)
        return once(True, None), {"compiled": True, "compile_seconds": seconds}
    except Exception as error:  # torch's compiler fails in ways of its own
        failure(error)  # no run here would go on from what is raised there
        write({**about, "result": "uncompiled", "why": line(error)})
    return once(False, None), {"compiled": False}


def _ahead(lent: Lent, once: Once) -> float:
    """Seconds of those steps."""
    since = time.perf_counter()
    if once(True, AHEAD).status == "interrupted":
        raise Unfinished("was told to end")
    if lent.cuda:
        torch.cuda.synchronize(lent.device)  # sync
    return time.perf_counter() - since


def _judge(training: Training, saved: Path) -> None:
    """Unfinished where it is to go on, RuntimeError where it cannot; the checkpoint of what is through is not kept."""
    if training.status == "interrupted":
        raise Unfinished("was told to end; goes on from its checkpoint")
    if training.status != "ok":
        raise RuntimeError(f"training: expected it to reach its budget, found that it {training.status}")
    with suppress(OSError):
        saved.unlink()


def _right(probe: Probe, x: Tensor, y: Tensor, spec: InputSpec) -> float:
    return (columns.logits(probe, x, spec).argmax(dim=1) == y).double().mean().item()  # sync


def _published(lent: Lent, name: str, spec: InputSpec) -> nn.Module:
    """The teacher from its file; of a tiny run, one that has learnt nothing."""
    if lent.small:
        with initialised(SEED):
            return build(lent.net(name), spec).eval()
    if lent.teacher is None:
        raise ValueError(f"teacher: expected a file with the weights of {name}, found none")
    return load_teacher(name, spec, lent.teacher, (MEAN, STD))


def _file(lent: Lent, what: str, suffix: str) -> Path:
    """Of this device, size and commit, and of files with these names, wherever they lie."""
    about = json.dumps([what, *lent.names])
    digest = hashlib.blake2b(about.encode(), digest_size=4).hexdigest()
    return lent.folder / f"{lent.stamp}-{what.replace(' ', '-')}-{digest}{suffix}"


def _weights(lent: Lent, name: str) -> Path:
    return _file(lent, f"{lent.net(name)} {lent.run_seconds}", ".safetensors")


def teacher(lent: Lent, name: str, seconds: float, write: Write) -> None:
    """Trains a teacher on labelled rows for `lent.run_seconds`; its file serves all recipes, another time too."""
    del seconds
    spec = _spec(_read(lent))
    about: Row = {"teacher": name}
    saved = _file(lent, f"teacher {name} {lent.run_seconds}", ".ckpt")
    found: list[nn.Module] = []
    real = find("sampler", "real", SAMPLERS)(data=lent.data)

    def once(compile: bool, steps: int | None = None) -> Training:
        budget = Budget(batch=lent.batch, steps=steps) if steps else Budget(lent.batch, seconds=lent.run_seconds)
        module, training = teach(
            lent.net(name),
            _noise(spec, lent.batch) if steps else find("sampler", "augmented", SAMPLERS)(base=real, flip=True),
            spec=spec,
            budget=budget,
            optimiser=Optimiser(learning_rate=0.1, nesterov=True, warmup=0.05),
            seed=SEED,
            device=lent.device,
            compile=compile,
            checkpoint=None if steps else saved,
        )
        found[:] = [module]
        return training

    training, how = _compiled(lent, once, about, write)
    write({**about, "ended": training.status, "steps": training.steps, "seconds": training.seconds, **how})
    if training.status == "ok":
        lent.folder.mkdir(parents=True, exist_ok=True)
        save(_weights(lent, name), found[0].cpu(), reference=lent.net(name), spec=spec)  # sync
    _judge(training, saved)


def _taught(lent: Lent, name: str, spec: InputSpec) -> nn.Module:
    file = _weights(lent, name)
    if not file.exists():
        raise ValueError(f"teacher: expected {file}, which an earlier part writes, found none")
    return load_teacher(None, spec, file)


def _noise(spec: InputSpec, n: int) -> Fixed:
    """Labelled rows of the data's shape."""
    rng = torch.Generator().manual_seed(SEED)
    return Fixed(torch.rand(n, *spec.shape, generator=rng), torch.arange(n) % spec.num_classes)
