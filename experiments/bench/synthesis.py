"""What a student step and a synthesis step of each recipe take, in steps of a bare loop over the same networks.

no paper. One thread, WRN-40-2 teaches WRN-16-1, 32 images of 3x32x32 a step. The engine and the samplers run as users
run them; between any two of their steps the bare loop makes one, so what else the machine does is the same for both.
A bare student step: the teacher's forward pass, the student's two, SGD. A bare synthesis step: the teacher's two
passes with BatchNorm's statistics, cross-entropy, Adam on the images; once with a teacher that gathers gradients of its
weights, as most public code has it, and once with a frozen one, which is quicker. The bare loops are float32 and not
compiled, whatever ours is.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dfkd.engine import Budget, Optimiser, train
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.models import build
from dfkd.naming import unknown
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.types import InputSpec

from .bare import bare_step, bare_synthesis
from .goals import Step, goal
from .overhead import completed
from .rows import Row, interval
from .usage import peak

__all__ = ["BATCH", "NETS", "PARTS", "SPEC", "student_steps", "synthesis", "synthesis_steps"]

NETS = ("wrn_40_2", "wrn_16_1")
SPEC, BATCH = InputSpec((3, 32, 32), 10), 32
SEED, RATE, TEMPERATURE = 0, 0.05, 20.0
WARM = 1  # pairs that are run and not counted
NEVER = 10**9  # draws from one round to the next where only draws are timed

Clock = Callable[[], float]
Times = tuple[float, ...]
"""Seconds: ours, the bare loop's, and for synthesis those of the bare loop with a frozen teacher."""


@dataclass(frozen=True)
class Part:
    """make: (steps in a round, draws from one to the next) -> the sampler. asks: calls of the teacher in a step of it.

    remembered: images whose features are there before the round begins.
    """

    make: Callable[[int, int], Sampler]
    asks: int = 1
    remembered: int = 0


def _made(name: str, **options: Any) -> Sampler:
    made: Sampler = find("sampler", name, SAMPLERS)(**options)
    return made


def _inverted(steps: int, every: int) -> Sampler:
    """The published search for CIFAR-10."""
    inversion = replace(find("sampler", "deep_inversion", SAMPLERS).cifar10(), steps=steps, batch=BATCH)
    return _made("pooled", base=inversion, round=BATCH, every=every)


PARTS: dict[str, Part] = {
    # without a bank a step of the generator is a round
    "dfq": Part(lambda steps, every: _made("dfq", batch=BATCH, student_steps=every)),
    "deep_inversion": Part(lambda steps, every: _made("augmented", base=_inverted(steps, every), flip=True)),
    "deep_inversion, labels kept": Part(_inverted),
    "cmi": Part(lambda steps, every: _made("cmi", batch=BATCH, steps=steps, every=every), asks=2),
    "cmi, 4096 negatives": Part(
        lambda steps, every: _made("cmi", batch=BATCH, steps=steps, every=every), asks=2, remembered=4096
    ),
    "fast_dfkd": Part(lambda steps, every: _made("fast_dfkd", batch=BATCH, steps=steps, every=every, warmup=0)),
    "nayer": Part(lambda steps, every: _made("nayer", batch=BATCH, steps=steps, every=every, rounds=1, warmup=0)),
}
SAME_STUDENT_STEP = ("cmi, 4096 negatives",)
SAME_SYNTHESIS_STEP = ("deep_inversion, labels kept",)


def synthesis(
    pairs: int = 9,
    clock: Clock = time.perf_counter,
    only: Sequence[str] | None = None,
    precision: str = "float32",
    compile: bool = False,
) -> Iterator[Row]:
    """Every row of the table, as it is measured. ValueError for a sampler that is not in it.

    precision: of the student steps, `float32` or `bfloat16`; compile: whether they go through torch.compile. With
    either they are measured alone: synthesis is float32 and as it is in all.
    """
    for name in only or ():
        if name not in PARTS:
            raise unknown("sampler", name, list(PARTS))
    torch.set_num_threads(1)
    return _measured(pairs, clock, only or tuple(PARTS), precision, compile)


def _measured(pairs: int, clock: Clock, names: Sequence[str], precision: str, compile: bool) -> Iterator[Row]:
    for name in names:
        if name not in SAME_STUDENT_STEP:
            yield _row(name, "student", partial(student_steps, precision=precision, compile=compile), pairs, clock)
        if name not in SAME_SYNTHESIS_STEP and precision == "float32" and not compile:
            yield _row(name, "synthesis", synthesis_steps, pairs, clock)


def student_steps(
    name: str, pairs: int, clock: Clock = time.perf_counter, precision: str = "float32", compile: bool = False
) -> list[Times]:
    """A step of the engine in which nothing is made, beside a bare one on images that are there."""
    problem = _problem(precision)
    teacher, student = copy.deepcopy(problem.teacher.module), copy.deepcopy(problem.student.module)
    teacher.eval().requires_grad_(False)
    student.train()
    x = torch.rand(BATCH, *SPEC.shape, generator=torch.Generator().manual_seed(SEED))

    def draw(n: int) -> tuple[Tensor, None]:
        return x[:n], None

    steps = pairs + WARM + 1  # the first makes the images
    bare = bare_step(teacher, student, draw, BATCH, steps, RATE, TEMPERATURE)
    found: list[Times] = []
    since = clock()

    def alternate() -> dict[str, float]:
        nonlocal since
        ours = clock() - since
        found.append((ours, _timed(bare, clock)))
        since = clock()
        return {}

    completed(
        train(
            problem,
            PARTS[name].make(1, NEVER),
            combine({"kl": (1.0, KL(TEMPERATURE))}),
            Budget(batch=BATCH, steps=steps),
            Optimiser(learning_rate=RATE, nesterov=True),
            SEED,
            monitor=alternate,
            log_points=steps,
            compile=compile,
        )
    )
    assert len(found) == steps
    return found[WARM + 1 :]


def synthesis_steps(name: str, pairs: int, clock: Clock = time.perf_counter) -> list[Times]:
    """From one step's first question to the teacher to the next one's, so that a round's begin and end do not count."""
    part, problem = PARTS[name], _problem()
    sampler = part.make(pairs + WARM + 1, 1)
    state = sampler.init(problem, derive(SEED, "sampler"))
    if part.remembered:
        _remember(state, part.remembered)
    loops = [
        bare_synthesis(copy.deepcopy(problem.teacher.module).requires_grad_(thawed), (BATCH, *SPEC.shape))
        for thawed in (True, False)
    ]
    found: list[Times] = []
    since, asked = 0.0, 0

    def alternate(*_: Any) -> None:
        nonlocal since, asked
        ours, first = clock() - since, asked == 0
        asked += 1
        if (asked - 1) % part.asks or len(found) == pairs + WARM:
            return
        if not first:
            found.append((ours, *(_timed(bare, clock) for bare in loops)))
        since = clock()

    handle = problem.teacher.module.register_forward_pre_hook(alternate)
    try:
        while len(found) < pairs + WARM:  # one draw is enough, but where a step is a round
            sampler.draw(state, problem, 1)
    finally:
        handle.remove()
    return found[WARM:]


def _row(sampler: str, step: Step, measure: Callable[..., list[Times]], pairs: int, clock: Clock) -> Row:
    with peak(torch.device("cpu")) as held:
        times = measure(sampler, pairs, clock)
    ours, bare, *frozen = ([entry[side] for entry in times] for side in range(len(times[0])))
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    low, median, high = interval(ratios)
    return Row(
        sampler,
        step,
        median,
        (low, high),
        (min(ratios), max(ratios)),
        interval(ours)[1],
        interval(bare)[1],
        interval([a / b for a, b in zip(ours, frozen[0], strict=True)])[1] if frozen else None,
        len(ratios),
        goal(sampler, step),
        held.total,
    )


def _timed(step: Callable[[], None], clock: Clock) -> float:
    began = clock()
    step()
    return clock() - began


def _problem(precision: str = "float32") -> Problem:
    """Both networks with weights of their own; the teacher has seen noise, so its statistics are not those of none."""
    with initialised(derive(SEED, *NETS)):
        teacher, student = (build(net, SPEC) for net in NETS)
        with torch.no_grad():
            for _ in range(3):
                teacher(torch.rand(BATCH, *SPEC.shape))
    teacher.eval()  # as they stand in the engine
    probes = Probe(teacher, SPEC, precision=precision), Probe(student, SPEC, name="student", precision=precision)
    return Problem(*probes, SPEC, torch.device("cpu"), seed=SEED)


def _remember(state: Any, images: int) -> None:
    """Fills the features that CMI's contrast remembers, as many rounds would. state: of its views of its bank."""
    term = state.base.base.recipe.terms[-1]
    generator = torch.Generator().manual_seed(SEED)
    term.bank = torch.rand(images, *term.bank.shape[1:], generator=generator)
