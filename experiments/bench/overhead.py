"""How much longer the engine's loop takes than a bare loop that does the same arithmetic: ratios, one thread.

no paper. The engine runs as users run it, through `train`; at each of its log points the bare loop is given the same
number of steps, so blocks alternate within one run. Before that, both must have the same student after a few steps,
or there is no result: few, as rounding grows.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dfkd.data import load
from dfkd.engine import Budget, Optimiser, train
from dfkd.losses import KL, combine
from dfkd.models import build
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.types import InputSpec

from .bare import Draw, bare_generative, bare_inversion, bare_real, bare_step

__all__ = ["NETS", "SOURCES", "interval", "measure", "overhead", "require_equal"]

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
SEED, RATE, TEMPERATURE, EVERY = 0, 0.05, 4.0, 5
WARM = 2  # blocks that are run and not counted


def measure(net: str, source: str, blocks: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Engine / bare, one ratio for each block. ValueError where the students of a few steps differ."""
    require_equal(net, source, *CHECKED[net])
    length = NETS[net][2]
    pair = _pair(net, source, (blocks + WARM) * length)
    ours: list[float] = []
    theirs: list[float] = []
    since = clock()

    def alternate() -> dict[str, float]:
        nonlocal since
        ours.append(clock() - since)
        since = clock()
        for _ in range(length):
            pair.step()
        theirs.append(clock() - since)
        since = clock()
        return {}

    pair.train(monitor=alternate, log_points=blocks + WARM)
    assert len(ours) == blocks + WARM
    return [a / b for a, b in zip(ours[WARM:], theirs[WARM:], strict=True)]


def require_equal(net: str, source: str, steps: int, inversion: int) -> None:
    """ValueError unless engine and bare loop end `steps` steps with the same student.

    inversion: steps of each inversion in the source `pooled`.
    """
    pair = _pair(net, source, steps, inversion)
    pair.train()
    for _ in range(steps):
        pair.step()
    states = pair.problem.student.module.state_dict(), pair.student.state_dict()
    for (name, ours), theirs in zip(states[0].items(), states[1].values(), strict=True):
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-4):
            gap = (ours.float() - theirs.float()).abs().max().item()
            raise ValueError(
                f"{net}, {source}: expected equal students, found {name} {gap:.2g} apart: the loops differ"
            )


def overhead(blocks: int = 21, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Medians and the ends of their 95 % intervals, for each net and source."""
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for net in NETS:
        for source in SOURCES:
            low, median, high = interval(measure(net, source, blocks, clock))
            name = f"{net}_{source}"
            found |= {name: round(median, 4), f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}
    return found


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """(low, median, high): the interval that holds the true median in at least 95 % of repetitions, by order alone."""
    values, n = sorted(ratios), len(ratios)
    tail, below = 0.0, 0  # of a binomial with probability one half
    ways = 1.0
    while below < n // 2 and tail + ways / 2.0**n <= 0.025:
        tail += ways / 2.0**n
        ways *= (n - below) / (below + 1)
        below += 1
    edge = max(below - 1, 0)
    return values[edge], float(np.median(values)), values[n - 1 - edge]


@dataclass(frozen=True)
class _Pair:
    """The same run twice: what the engine trains, and a bare loop's step with the student that it moves."""

    problem: Problem
    sampler: Any
    budget: Budget
    step: Callable[[], None]
    student: nn.Module

    def train(self, **options: Any) -> None:
        result = train(
            self.problem,
            self.sampler,
            combine({"kl": (1.0, KL(TEMPERATURE))}),
            self.budget,
            Optimiser(learning_rate=RATE, nesterov=True),
            SEED,
            **options,
        )
        assert result.status == "ok"


def _pair(net: str, source: str, steps: int, inversion: int = 10) -> _Pair:
    spec, batch, _ = NETS[net]
    problem = _problem(net, spec)
    teacher, student = copy.deepcopy(problem.teacher.module), copy.deepcopy(problem.student.module)
    teacher.eval().requires_grad_(False)
    student.train()
    sampler = _sampler(source, spec, batch, inversion)
    draw = _bare(sampler, source, problem, teacher, student)
    step = bare_step(teacher, student, draw, batch, steps, RATE, TEMPERATURE)
    return _Pair(problem, sampler, Budget(batch=batch, steps=steps), step, student)


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
