"""How much longer the engine's loop takes than a bare loop that does the same arithmetic: ratios, one thread.

no paper. The engine runs as users run it, through `train`; at each of its log points the bare loop is given the same
number of steps, so blocks alternate within one run. Where the engine lays images out channels last there is a second
bare loop that does too: the ratio to the first is what a user gains, that to the second what the engine adds. Before
that, all must have the same student after a few steps, or there is no result: few, as rounding grows.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dfkd.data import load
from dfkd.engine import Budget, Optimiser, Training, train
from dfkd.losses import KL, combine
from dfkd.models import build
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.types import InputSpec

from .bare import ChannelsLast, Draw, bare_generative, bare_inversion, bare_real, bare_step
from .rows import interval

__all__ = ["NETS", "SAME_LAYOUT", "SOURCES", "completed", "measure", "overhead", "require_equal"]

NETS = {
    "wrn_16_1": (InputSpec((3, 32, 32), 10), 32, 5),
    "digits_cnn": (InputSpec((1, 8, 8), 10), 128, 20),
}
"""Images, rows in a batch, steps in a block."""

CHECKED = {"wrn_16_1": (2, 2), "digits_cnn": (20, 10)}
"""Steps after which both have the same student, and of each inversion there. Few where the teacher is deep: Adam moves
a pixel by a whole step up or down as its gradient's sign says, so that ten steps on, two pixels in five differ where
rounding does."""

SOURCES = ("real", "pooled", "generative")
SAME_LAYOUT = "_same_layout"
"""Added to the name of a row whose bare loop lays out images channels last, as the engine does where they are large."""
SEED, RATE, TEMPERATURE, EVERY = 0, 0.05, 4.0, 5
WARM = 2  # blocks that are run and not counted


def measure(
    net: str, source: str, blocks: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Engine / bare, one ratio for each block, by what is added to the row's name for the bare loop's layout.

    ValueError where the students of a few steps differ.
    """
    require_equal(net, source, *CHECKED[net])
    length = NETS[net][2]
    pair = _pair(net, source, (blocks + WARM) * length)
    ours: list[float] = []
    theirs: dict[str, list[float]] = {layout: [] for layout in pair.loops}
    since = clock()

    def alternate() -> dict[str, float]:
        nonlocal since
        ours.append(clock() - since)
        turns = list(pair.loops.items())
        for layout, loop in turns if len(ours) % 2 else turns[::-1]:  # neither always comes after the engine
            since = clock()
            for _ in range(length):
                loop.step()
            theirs[layout].append(clock() - since)
        since = clock()
        return {}

    pair.train(monitor=alternate, log_points=blocks + WARM)
    assert len(ours) == blocks + WARM
    return {layout: [a / b for a, b in zip(ours[WARM:], bare[WARM:], strict=True)] for layout, bare in theirs.items()}


def require_equal(net: str, source: str, steps: int, inversion: int) -> None:
    """ValueError unless engine and bare loops end `steps` steps with the same student.

    inversion: steps of each inversion in the source `pooled`.
    """
    pair = _pair(net, source, steps, inversion)
    pair.train()
    for layout, loop in pair.loops.items():
        for _ in range(steps):
            loop.step()
        states = pair.problem.student.module.state_dict(), loop.student.state_dict()
        for (name, ours), theirs in zip(states[0].items(), states[1].values(), strict=True):
            if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-4):
                gap = (ours.float() - theirs.float()).abs().max().item()
                raise ValueError(
                    f"{net}, {source}{layout}: expected equal students, found {name} {gap:.2g} apart: the loops differ"
                )


def overhead(blocks: int = 21, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Medians and the ends of their intervals, for each net, source and layout of the bare loop."""
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for net in NETS:
        for source in SOURCES:
            for layout, ratios in measure(net, source, blocks, clock).items():
                low, median, high = interval(ratios)
                name = f"{net}_{source}{layout}"
                found |= {name: round(median, 4), f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}
    return found


def completed(result: Training) -> None:
    """KeyboardInterrupt where a run was told to stop; ValueError where it diverged: neither is a measurement."""
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status != "ok":
        raise ValueError(f"training: expected a run that ends well, found one that {result.status}")


@dataclass(frozen=True)
class _Loop:
    """A bare loop's step, and the student that it moves."""

    step: Callable[[], None]
    student: nn.Module


@dataclass(frozen=True)
class _Pair:
    """The same run several times: what the engine trains, and the bare loops by layout."""

    problem: Problem
    sampler: Any
    budget: Budget
    loops: Mapping[str, _Loop]

    def train(self, **options: Any) -> None:
        completed(
            train(
                self.problem,
                self.sampler,
                combine({"kl": (1.0, KL(TEMPERATURE))}),
                self.budget,
                Optimiser(learning_rate=RATE, nesterov=True),
                SEED,
                **options,
            )
        )


def _pair(net: str, source: str, steps: int, inversion: int = 10) -> _Pair:
    spec, batch, _ = NETS[net]
    problem = _problem(net, spec)
    sampler = _sampler(source, spec, batch, inversion)
    loops = {"": _loop(problem, sampler, source, batch, steps, channels_last=False)}
    if problem.teacher.channels_last:
        loops[SAME_LAYOUT] = _loop(problem, sampler, source, batch, steps, channels_last=True)
    return _Pair(problem, sampler, Budget(batch=batch, steps=steps), loops)


def _loop(problem: Problem, sampler: Any, source: str, batch: int, steps: int, channels_last: bool) -> _Loop:
    """With copies of both networks. On a CPU the engine lays out images alone, not weights; so is it done here."""
    teacher, student = copy.deepcopy(problem.teacher.module), copy.deepcopy(problem.student.module)
    teacher.eval().requires_grad_(False)
    student.train()
    if channels_last:
        teacher, student = ChannelsLast(teacher).eval(), ChannelsLast(student)
    draw = _bare(sampler, source, problem, teacher, student)
    return _Loop(bare_step(teacher, student, draw, batch, steps, RATE, TEMPERATURE), student)


def _problem(net: str, spec: InputSpec) -> Problem:
    """A teacher and a student of the same kind; the teacher has seen a little noise, so its statistics are its own."""
    with initialised(derive(SEED, net)):
        teacher, student = build(net, spec), build(net, spec)
        with torch.no_grad():
            for _ in range(20):
                teacher(torch.rand(64, *spec.shape))
    probes = Probe(teacher, spec), Probe(student, spec, name="student")
    return Problem(*probes, spec, torch.device("cpu"), seed=SEED)


def _sampler(source: str, spec: InputSpec, batch: int, inversion: int) -> Any:
    def make(name: str, **options: Any) -> Any:
        return find("sampler", name, SAMPLERS)(**options)

    if source == "real":
        return make("real", data="digits" if spec.channels == 1 else _noise_file(spec))
    if source == "pooled":
        # every option that the bare loop has written out, so that another default changes nothing here
        plain = {"total_variation": 0.0, "l2": 0.0, "roll": 0.0, "flip": False, "adaptive": 0.0}
        inverted = make("deep_inversion", steps=inversion, batch=batch, learning_rate=0.05, **plain)
        return make("pooled", base=inverted, round=batch, every=EVERY, capacity=4 * batch)
    rates = {"learning_rate": 1e-3, "adversarial": 1.0, "one_hot": 1.0, "balance": 20.0}
    return make("generative", latent=64, width="small", batch=batch, generator_steps=1, student_steps=EVERY, **rates)


def _noise_file(spec: InputSpec) -> str:
    """An .npz of 2000 random images: what is in them costs nothing."""
    path = Path(tempfile.gettempdir()) / f"dfkd-bench-{'x'.join(map(str, spec.shape))}.npz"
    rng = np.random.default_rng(SEED)
    channels_last = (spec.height, spec.width, spec.channels)
    x = rng.integers(0, 256, (2000, *channels_last), dtype=np.uint8)
    y = np.arange(2000) % spec.num_classes
    classes = np.array([f"class {c}" for c in range(spec.num_classes)])
    np.savez(path, x_train=x, y_train=y, x_test=x[:100], y_test=y[:100], classes=classes)
    return str(path)


def _bare(sampler: Any, source: str, problem: Problem, teacher: nn.Module, student: nn.Module) -> Draw:
    """The same source by hand, from the seeds, the generator and the scale that the sampler itself starts with."""
    state = sampler.init(problem, derive(SEED, "sampler"))
    if source == "real":
        return bare_real(load(sampler.data).train.x, state.seed)
    spec = problem.spec
    if source == "pooled":
        options = {"round": sampler.round, "every": EVERY, "capacity": sampler.capacity, "steps": sampler.base.steps}
        seeds = state.stream.seed, state.base.stream.seed
        scale = next(term for term in state.base.terms if term is not None)
        return bare_inversion(teacher, spec.shape, spec.num_classes, seeds, scale, options)
    options = {"latent": sampler.latent, "batch": sampler.batch, "student_steps": EVERY}
    scale = next(term for term in state.terms if term is not None)
    return bare_generative(teacher, student, state.generator, state.stream.seed, scale, options)
