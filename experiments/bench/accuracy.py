"""How accurate students are after how long, on CIFAR-10; runs that are cut go on where they were.

no paper. Seconds are those of the run's budget, set-up, synthesis and all; measuring the accuracy is not in them.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dfkd.data import Dataset, load
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

from .lent import SEED, Lent
from .protocol import Row, Unfinished, Write, line

__all__ = ["MEAN", "PAIRS", "RECIPES", "STD", "accuracy", "check", "teacher"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the published CIFAR-10 ResNets normalise by."""

PAIRS = (("resnet56", "resnet20", False), ("wrn-40-2", "wrn-16-1", True), ("resnet34", "resnet18", True))
"""Teacher, student, whether the teacher is trained here."""

SIDE, CLASSES = 32, 10


def _inverted(small: bool) -> Sampler:
    inversion = DeepInversion(steps=2 if small else 200, batch=8 if small else 256)
    bank = Pooled(base=inversion, round=inversion.batch, every=10 if small else 100, warmup=1 if small else 4)
    return Adversarial(base=Augmented(base=bank, flip=True), steps=2)


def _recipe(name: str, small: bool, **options: Any) -> Sampler:
    tiny = {"batch": 10} | ({"every": 5, "warmup": 1} if "every" in options else {})
    made: Sampler = find("sampler", name, SAMPLERS)(**(options | tiny if small else options))
    return made


RECIPES: dict[str, Callable[[bool], Sampler]] = {
    "composite": _inverted,
    "fast_dfkd": lambda small: _recipe("fast_dfkd", small, batchnorm="auto", every=400),
    "nayer": lambda small: _recipe("nayer", small, batchnorm="auto", every=400),
    "dfq": lambda small: _recipe("dfq", small, batchnorm="auto"),
    "cmi": lambda small: _recipe("cmi", small, batchnorm="auto", every=400),
}
"""Ours (inverted images, cropped, mirrored, with a search for disagreement) and published ones, by the registry."""


def check(lent: Lent) -> list[str]:
    """What is left out for want of a file, a line each. ValueError where one is given and is not what is asked for."""
    missing = []
    if lent.data is None:
        missing.append("data: none given, so no accuracy is measured")
    else:
        _read(lent)
    if lent.teacher is None:
        missing.append(f"teacher: none given, so {PAIRS[0][0]} to {PAIRS[0][1]} is left out of accuracy")
    else:
        load_teacher(PAIRS[0][0], InputSpec((3, SIDE, SIDE), CLASSES), lent.teacher, (MEAN, STD))
    return missing


def _read(lent: Lent) -> Dataset:
    """Images and classes of CIFAR-10's shape, with rows to test on."""
    if lent.data is None:
        raise ValueError("data: expected a file of CIFAR-10, found none")
    if not Path(lent.data).is_file():
        raise ValueError(f"data: expected an .npz file, found nothing at {lent.data}")
    data = load(lent.data)
    shape, classes = data.spec.shape, data.spec.num_classes
    if classes != CLASSES or (not lent.small and shape != (3, SIDE, SIDE)):
        found = f"{tuple(shape)} and {classes}"
        raise ValueError(f"data: expected images (3, {SIDE}, {SIDE}) of {CLASSES} classes, found {found}")
    if data.require_test("data").y is None:
        raise ValueError(f"data: expected classes of the rows to test on, found none in {lent.data}")
    return data


def accuracy(
    lent: Lent, recipe: str, teacher: str, student: str, here: bool, seed: int, seconds: float, write: Write
) -> None:
    """Accuracy on test at 20 points of a run of `lent.run_seconds`, each written as it comes; seconds are kept outside.

    here: the teacher was trained on the spot. A run that is told to end (SIGTERM) saves, and goes on from there when it
    is asked for again: Unfinished.
    """
    del seconds
    data = _read(lent)
    spec, test = data.spec, data.require_test("data")
    assert test.y is not None
    rows = 64 if lent.small else None
    x, y = test.x[:rows], test.y[:rows]
    asked = _taught(lent, teacher, spec) if here else _published(lent, teacher, spec)
    about: Row = {"pair": f"{teacher} to {student}", "recipe": recipe, "seed": seed}
    saved = _file(lent, f"{about['pair']} {recipe} {seed} {lent.run_seconds}", ".ckpt")
    own = _right(Probe(asked, spec, lent.device), x, y, spec)
    write(
        {**about, "teacher_accuracy": own, "rows": len(x), "run_seconds": lent.run_seconds, "continued": saved.exists()}
    )
    shared = (
        combine({"kl": (1.0, KL(4.0))}),
        Optimiser(learning_rate=0.1),
        Budget(batch=lent.batch, seconds=lent.run_seconds),
    )

    def monitor(problem: Problem) -> dict[str, float]:
        right = _right(problem.student, x, y, spec)
        spent = problem.progress * lent.run_seconds
        write({**about, "seconds": spent, "accuracy": right, "teacher_images": problem.teacher.images})
        return {"accuracy": right}

    def once(compile: bool) -> Training:
        sampler = RECIPES[recipe](lent.small)
        objective, optimiser, budget = as_published(sampler, spec, *shared)
        return distill(
            asked,
            lent.net(student),
            sampler,
            spec=spec,
            objective=objective,
            budget=replace(budget, batch=lent.batch, steps=None, teacher_images=None, seconds=lent.run_seconds),
            optimiser=optimiser,
            seed=seed,
            device=lent.device,
            checkpoint=saved,
            identity=recipe,
            monitor=monitor,
            compile=compile,
        ).training

    training, compiled = _compiled(lent, once, about, write)
    last = training.curve[-1] if training.curve else {}
    ended: Row = {"ended": training.status, "steps": training.steps, "seconds": training.seconds, "compiled": compiled}
    ended |= {"synthesise_seconds": training.synthesise_seconds, "loss": last.get("loss")}
    ended["curve"] = [[point["seconds"], point["accuracy"]] for point in training.curve]
    write({**about, **ended, "accuracy": last.get("accuracy")})
    _judge(training, saved)


def _compiled(lent: Lent, once: Callable[[bool], Training], about: Row, write: Write) -> tuple[Training, bool]:
    """The run through torch.compile on a GPU, without where that fails, which is a row; whether it was with."""
    if lent.cuda:
        try:
            return once(True), True
        except Exception as error:  # torch's compiler fails in ways of its own
            write({**about, "result": "uncompiled", "why": line(error)})
    return once(False), False


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
    """Of this device, size and commit, and of these data."""
    about = json.dumps([what, lent.data, lent.teacher], default=str)
    digest = hashlib.blake2b(about.encode(), digest_size=4).hexdigest()
    return lent.folder / f"{lent.stamp}-{what.replace(' ', '-')}-{digest}{suffix}"


def _weights(lent: Lent, name: str) -> Path:
    return _file(lent, f"{lent.net(name)} {lent.run_seconds}", ".safetensors")


def teacher(lent: Lent, name: str, seconds: float, write: Write) -> None:
    """Trains a teacher on labelled rows for `lent.run_seconds`; its file serves all recipes, another time too."""
    del seconds
    data = _read(lent)
    about: Row = {"teacher": name}
    saved = _file(lent, f"teacher {name} {lent.run_seconds}", ".ckpt")
    found: list[nn.Module] = []
    real = find("sampler", "real", SAMPLERS)(data=lent.data)

    def once(compile: bool) -> Training:
        module, training = teach(
            lent.net(name),
            find("sampler", "augmented", SAMPLERS)(base=real, flip=True),
            spec=data.spec,
            budget=Budget(batch=lent.batch, seconds=lent.run_seconds),
            optimiser=Optimiser(learning_rate=0.1, nesterov=True, warmup=0.05),
            seed=SEED,
            device=lent.device,
            compile=compile,
            checkpoint=saved,
        )
        found[:] = [module]
        return training

    training, compiled = _compiled(lent, once, about, write)
    ended: Row = {"ended": training.status, "steps": training.steps, "seconds": training.seconds, "compiled": compiled}
    write({**about, **ended})
    if training.status == "ok":
        lent.folder.mkdir(parents=True, exist_ok=True)
        save(_weights(lent, name), found[0].cpu(), reference=lent.net(name), spec=data.spec)  # sync
    _judge(training, saved)


def _taught(lent: Lent, name: str, spec: InputSpec) -> nn.Module:
    file = _weights(lent, name)
    if not file.exists():
        raise ValueError(f"teacher: expected {file}, which an earlier part writes, found none")
    return load_teacher(None, spec, file)
