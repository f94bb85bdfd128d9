"""What a GPU is to be asked in the minutes that one is lent: the most telling first, each part on its own.

no paper. In order: whether the numbers are those of the CPU, of eager and of plain steps, and whether a step waits for
the device; how long the engine's step takes, compiled or not; how accurate a ResNet-20 is after how long; then what the
machine can copy and multiply, each switch alone, several students at a time, and more of accuracy. Needs torch, numpy,
safetensors and scipy, and of this repository the work tree: neither diffusers nor pydantic, typer or yaml. `small` is
the same order with tiny sizes, for any machine.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dfkd
import samplers
from dfkd.runtime import describe

from . import checks, speed
from .accuracy import PAIRS, RECIPES, accuracy, check, teacher, teachers_wait
from .checks import OPTIONS, SKIP
from .lent import LAUNCH_BOUND, Lent, problem_of
from .protocol import Part, each
from .steps import SWITCHES

__all__ = ["OPTIONS", "PAIRS", "RECIPES", "SKIP", "Lent", "check", "parts", "problem_of", "served", "stamp", "where"]

START = 10.0
"""Seconds that a process needs before it measures: Python, torch and the device."""

SEEDS = (0, 1, 2)
"""Of the first pair; the others have the first of them."""


def parts(lent: Lent) -> list[Part]:
    """In order of what they tell. What needs a file that is not there is left out.

    What compiles has a process of its own: it may take longer than all that was measured before it, and is broken off.
    """
    from . import several

    eager = [name for name, switches in SWITCHES.items() if not switches.compiled]
    compiled = [name for name in SWITCHES if name not in eager]
    quick, slow = (START, 4 * START) if lent.small else (2 * START, 6 * START)
    found = [
        Part("no waits in a step", quick, each(checks.waits, lent, False), 0.05, group="checks"),
        Part("losses and an engine step, as on a CPU", quick, each(checks.losses, lent), 0.07, group="checks"),
        Part("samplers on the device", quick, each(checks.samplers, lent), 0.06, group="checks"),
        Part("a recorded step, as the plain one", quick, each(checks.recorded, lent), 0.04, group="checks"),
        Part("other precisions, as float32", quick, each(checks.precisions, lent), 0.04, group="checks"),
        Part("compiled students, as eager ones", slow, each(checks.compiled, lent), 0.15, group="compiled"),
        Part("no waits in a compiled step", quick, each(checks.waits, lent, True), 0.05, group="compiled"),
        Part("speed of the engine", slow, each(speed.engine, lent), 0.15),
    ]
    runs = _accuracies(lent)
    found += runs[:1]
    found.append(Part("rates of copies and products, limits of a step", quick, each(speed.rates, lent), 0.08))
    for pair in LAUNCH_BOUND:
        found.append(Part(f"speed of a step, {pair[1]}", slow, each(speed.steps, lent, *pair, eager), 0.12))
    found.append(Part("synthesis steps", quick, each(speed.synthesis, lent), 0.08))
    found.append(Part("four students stacked", quick, each(several.stacked, lent), 0.1))
    found.append(Part("four runs in several processes", slow, each(several.shared, lent), 0.12))
    for pair in LAUNCH_BOUND:
        found.append(Part(f"speed of a compiled step, {pair[1]}", slow, each(speed.steps, lent, *pair, compiled), 0.1))
    return found + runs[1:]


def _accuracies(lent: Lent) -> list[Part]:
    """Each recipe with each pair, then the first pair's other seeds; teachers before who needs them, where there are
    rows to train them on."""
    least = START + (2.0 if lent.small else 30.0)
    most = (
        START + 3.0 * lent.run_seconds + (10.0 if lent.small else 120.0)
    )  # set-up, compiling, measuring beside the run
    if lent.data is None:
        return []
    data, published = lent.names
    settings = {"run_seconds": lent.run_seconds, "data": data}
    untaught = bool(teachers_wait(lent))

    def one(pair: tuple[str, str, bool], recipe: str, seed: int) -> Part:
        asked, student, trained = pair
        measure = partial(accuracy, lent, recipe, asked, student, trained, seed)
        name = f"accuracy, {asked} to {student}, {recipe}" + (f", seed {seed}" if seed else "")
        own = settings if trained else {**settings, "teacher": published}
        return Part(name, least, measure, 0.6, most, settings=own)

    found = []
    for pair in PAIRS:
        if untaught if pair[2] else lent.teacher is None and not lent.small:
            continue
        if pair[2]:
            measure = partial(teacher, lent, pair[0])
            found.append(Part(f"a teacher, {pair[0]}", least, measure, 0.5, most, settings=settings))
        found += [one(pair, recipe, SEEDS[0]) for recipe in RECIPES]
    if lent.teacher is not None or lent.small:
        found += [one(PAIRS[0], recipe, seed) for seed in SEEDS[1:] for recipe in ("composite", "fast_dfkd")]
    return found


def served(plain: Mapping[str, Any]) -> list[Part]:
    """The parts, in a process of their own; its device is the one that is meant where none is named."""
    lent = Lent.of(plain)
    lent.make_current()
    return parts(lent)


def where(device: torch.device, small: bool, commit: str) -> dict[str, str]:
    """What rows are marked with; where there is no commit to be told, it is what the files say."""
    if commit == "unknown":
        commit = _digest()
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else describe()["processor"]
    return {"on": str(on), "size": "small" if small else "full", "commit": commit}


def _digest() -> str:
    """Of all Python files that a part may run."""
    hasher = hashlib.blake2b(digest_size=4)
    for folder in (Path(dfkd.__file__).parent, Path(samplers.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            hasher.update(file.read_bytes())
    return f"files {hasher.hexdigest()}"


def stamp(marks: Mapping[str, str]) -> str:
    """A word for where, for names of files."""
    return hashlib.blake2b(json.dumps(dict(marks), sort_keys=True).encode(), digest_size=4).hexdigest()
