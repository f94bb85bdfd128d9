"""Several students on one device: runs in one, two and four processes, and four students stacked into one.

no paper. The images of a stacked step, and the teacher's answers to them, are those of all its students.
"""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.functional import kl_div, log_softmax

from dfkd.engine import Budget, Optimiser
from dfkd.losses import KL, combine
from dfkd.models import build
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.runtime import tf32

from .checks import TOLERANCES, apart, failure, left_out, state_of
from .lent import SEED, Lent, noise, problem_of, trained
from .protocol import NO_TIME, Row
from .steps import TEMPERATURE, recorded, seconds_of, sgd, take

__all__ = ["Together", "shared", "stacked", "work"]

Process: TypeAlias = "subprocess.Popen[str]"
RUNS = 4
PAIR = ("wrn-40-2", "wrn-16-1")


# -- stacked -----------------------------------------------------------------------------------------------------------


class Together:
    """A step of several students of one architecture on the same images x (n, c, h, w), the teacher asked once.

    stacked: all in one call, by torch.func; else one after another. All models are copied. Called, it gives the sum of
    their losses, 0-d.
    """

    def __init__(
        self, teacher: nn.Module, students: Sequence[nn.Module], x: Tensor, stacked: bool, learning_rate: float = 0.05
    ) -> None:
        device = x.device
        self._x, self._teacher = x, copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        self.students = [copy.deepcopy(student).to(device).train() for student in students]
        self._stacked, self._step = stacked, self._take
        if stacked:
            self._parameters, self._buffers = stack_module_state(self.students)
            self._base = copy.deepcopy(self.students[0]).to("meta")  # its code alone is needed
            parameters: list[Tensor] = list(self._parameters.values())
        else:
            parameters = [p for student in self.students for p in student.parameters()]
        self._optimiser = sgd(parameters, learning_rate)
        self._changed = [*parameters, *(self._buffers.values() if stacked else self._own_buffers())]
        self._keep = False

    def _own_buffers(self) -> list[Tensor]:
        return [buffer for student in self.students for buffer in student.buffers()]

    def record(self) -> None:
        """From here on the whole step is one graph; on a GPU alone."""
        self._keep = True  # gradients stay where they are
        self._step = recorded(self._take, self._changed, self._optimiser, self._x.device)

    def __call__(self) -> Tensor:
        return self._step()

    def _take(self) -> Tensor:
        with torch.no_grad():
            told = log_softmax(self._teacher(self._x) / TEMPERATURE, dim=1)
        self._optimiser.zero_grad(set_to_none=not self._keep)
        if self._stacked:
            logits = torch.vmap(self._call, in_dims=(0, 0, None), randomness="different")(
                self._parameters, self._buffers, self._x
            )
            loss = _loss(logits.flatten(0, 1), told.repeat(len(self.students), 1)) * len(self.students)
            loss.backward()
        else:
            losses = [_loss(student(self._x), told) for student in self.students]
            for one in losses:
                one.backward()
            loss = torch.stack([one.detach() for one in losses]).sum()
        self._optimiser.step()
        return loss.detach()

    def _call(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(self._base, (parameters, buffers), (x,))
        return out

    def states(self) -> list[dict[str, Tensor]]:
        """Of each student: its parameters and buffers, float32 on the CPU."""
        if not self._stacked:
            return [state_of(student) for student in self.students]
        both = {**self._parameters, **self._buffers}
        kept = {key: value.detach().float().cpu() for key, value in both.items()}  # sync
        return [{key: value[place].clone() for key, value in kept.items()} for place in range(len(self.students))]


def _loss(logits: Tensor, told: Tensor) -> Tensor:
    found = log_softmax(logits / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * kl_div(found, told, reduction="batchmean", log_target=True)


KINDS = {
    "one by one": (False, False),
    "stacked": (True, False),
    "one by one, recorded": (False, True),
    "stacked, recorded": (True, True),
}
"""Whether stacked, whether recorded. The others are set beside the first."""


def stacked(lent: Lent, seconds: float) -> Iterator[Row]:
    """A step of four students, stacked or one by one, eager or recorded: whether all end as one by one, and seconds, in
    blocks of all kinds in turn."""
    until = time.monotonic() + seconds
    kinds: dict[str, tuple[Together, Row]] = {}
    with tf32(False):
        for row, step in _kinds(lent, until):
            if step is None:
                yield row
            else:
                kinds[row["kind"]] = step, row
        times = _in_turns({kind: step for kind, (step, _) in kinds.items()}, lent, until)
    for kind, (_, row) in kinds.items():
        if not times[kind]:
            yield row | {"result": NO_TIME}
            continue
        took = median(times[kind])
        found: Row = {"seconds": took, "seconds_each": took / RUNS, "blocks": len(times[kind])}
        if times.get("one by one"):
            ratios = [one / own for one, own in zip(times["one by one"], times[kind], strict=True)]
            found |= {"speedup": median(ratios), "speedup_min": min(ratios), "speedup_max": max(ratios)}
        yield row | found


def _kinds(lent: Lent, until: float) -> Iterator[tuple[Row, Together | None]]:
    """Each kind and how far its students end from those that learn one by one, after a few steps; without a step where
    there is nothing to time."""
    steps, told = 4, list[dict[str, Tensor]]()
    teacher = problem_of(lent, torch.device("cpu"), *PAIR).teacher.module
    students = []
    for place in range(RUNS):
        with initialised(derive(SEED, "several", place)):
            students.append(build(lent.net(PAIR[1]), lent.spec))
    starts = [state_of(student) for student in students]
    x = noise(lent, lent.batch).x.to(lent.device)
    for kind, (one, record) in KINDS.items():
        row: Row = {"students": RUNS, "of": PAIR[1], "batch": lent.batch, "kind": kind, "steps": steps}
        if record and not lent.cuda:
            yield row | left_out("needs a GPU"), None
            continue
        if time.monotonic() > until:
            yield row | {"result": NO_TIME}, None
            continue
        try:
            step = Together(teacher, students, x, one)
            if record:
                step.record()
            take(step, steps)
            states = step.states()
            told = told or states
            gap, most = max(apart(*three) for three in zip(starts, told, states, strict=True)), TOLERANCES["float32"]
            yield row | {"gap": gap, "tolerance": most, "result": "close" if gap <= most else "apart"}, step
        except Exception as error:
            yield row | failure(error), None


def _in_turns(steps: Mapping[str, Callable[[], Any]], lent: Lent, until: float) -> dict[str, list[float]]:
    """Seconds a step: a block of each kind, then again; as many of each."""
    length, found = 2 if lent.small else 20, {kind: list[float]() for kind in steps}
    for step in steps.values():
        seconds_of(step, length, lent.device)
    for _ in range(3 if lent.small else 7):
        if time.monotonic() > until:
            break
        for kind, step in steps.items():
            found[kind].append(seconds_of(step, length, lent.device))
    return found


# -- sharing -----------------------------------------------------------------------------------------------------------


REPEATS = 3


def shared(lent: Lent, seconds: float) -> Iterator[Row]:
    """A run in each of one, two and four processes at a time: steps of a student a second, of all together.

    Four processes are begun once and wait at a log point of their runs; as many as are wanted then go on to their next
    one. So nothing but steps is timed, and the three numbers take turns.
    """
    until = time.monotonic() + seconds
    steps = 4 if lent.small else 200
    about: Row = {"steps_each": steps, "of": PAIR[1], "batch": lent.batch, "precision": _precision(lent)}
    try:
        with _processes(lent, steps) as begun:
            times = _turns(begun, until)
    except Exception as error:  # whatever it is, a row says so
        yield {"processes": RUNS, **about, **failure(error)}
        return
    rates = {count: [count * steps / took for took in own] for count, own in times.items()}
    for count, own in rates.items():
        row: Row = {"processes": count, **about, "repeats": len(own)}
        if not own:
            yield row | {"result": NO_TIME}
            continue
        row |= {"seconds": 1.0 / median(own), "steps_per_second": median(own), "result": "ok"}
        beside = [rate / alone for rate, alone in zip(own, rates[1], strict=True)]
        yield row | {"to_one_process": median(beside), "least": min(beside), "most": max(beside)}


def _turns(begun: Sequence[Process], until: float) -> dict[int, list[float]]:
    """By how many go at a time: seconds until all of them are through with their steps, of each repeat."""
    found: dict[int, list[float]] = {1: [], 2: [], RUNS: []}
    for _ in range(REPEATS):
        if time.monotonic() > until:
            break
        for count, own in found.items():
            since = time.perf_counter()
            for process in begun[:count]:
                _say(process, "go")
            for process in begun[:count]:
                _hear(process, "done")
            own.append(time.perf_counter() - since)
    return found


@contextmanager
def _processes(lent: Lent, steps: int) -> Iterator[list[Process]]:
    """Inside, as many processes as there are runs wait at the first log point of theirs."""
    given = json.dumps({"lent": lent.as_plain(), "steps": steps})
    code = "from experiments.bench.several import work; work()"
    begun = list[Process]()
    try:
        for _ in range(RUNS):
            begun.append(
                subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            _say(begun[-1], given)
        for process in begun:
            _hear(process, "ready")
        yield begun
    finally:
        for process in begun:
            process.kill()
            process.communicate()


def _say(process: Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def _hear(process: Process, expected: str) -> None:
    assert process.stdout is not None
    found = process.stdout.readline().strip()
    if found != expected:
        raise RuntimeError(f"process: expected {expected}, found {found or 'that it ended'}")


def work() -> None:
    """One process of those: at its first log point it says so, and at each it waits to be told to go on."""
    given = json.loads(sys.stdin.readline())
    lent, steps = Lent.of(given["lent"]), given["steps"]
    lent.make_current()
    words = iter(["ready"])

    def wait() -> dict[str, float]:
        print(next(words, "done"), flush=True)
        if sys.stdin.readline().strip() != "go":
            sys.exit()
        return {}

    points = 1 + 3 * REPEATS  # the first process takes every turn
    sampler, problem = find("sampler", "uniform", SAMPLERS)(), problem_of(lent, lent.device, *PAIR, _precision(lent))
    objective, budget = combine({"kl": (1.0, KL(4.0))}), Budget(batch=lent.batch, steps=points * steps)
    trained(problem, sampler, objective, budget, Optimiser(), SEED, log_points=points, monitor=wait)


def _precision(lent: Lent) -> str:
    """As runs have it where nothing else is asked for."""
    return "bfloat16" if lent.cuda else "float32"
