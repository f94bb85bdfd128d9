"""Several students on one device: runs in one, two and four processes, and four students stacked into one.

no paper. The images of a stacked step, and the teacher's answers to them, are those of all its students.
"""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

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


def stacked(lent: Lent, seconds: float) -> Iterator[Row]:
    """A step of four students, stacked or one by one, eager or recorded: seconds, and whether all end as one by one."""
    until = time.monotonic() + seconds
    steps, length = 4, 2 if lent.small else 20
    teacher = problem_of(lent, torch.device("cpu"), *PAIR).teacher.module
    students = []
    for place in range(RUNS):
        with initialised(derive(SEED, "several", place)):
            students.append(build(lent.net(PAIR[1]), lent.spec))
    starts = [state_of(student) for student in students]
    x = noise(lent, lent.batch).x.to(lent.device)
    told: list[dict[str, Tensor]] = []
    for kind, one, record in (
        ("one by one", False, False),
        ("stacked", True, False),
        ("one by one, recorded", False, True),
        ("stacked, recorded", True, True),
    ):
        row: Row = {"students": RUNS, "of": PAIR[1], "batch": lent.batch, "kind": kind}
        if record and not lent.cuda:
            yield row | left_out("needs a GPU")
            continue
        if time.monotonic() > until:
            yield row | {"result": NO_TIME}
            continue
        try:
            with tf32(False):
                step = Together(teacher, students, x, one)
                if record:
                    step.record()
                take(step, steps)
                states = step.states()
                told = told or states
                gap = max(apart(*three) for three in zip(starts, told, states, strict=True))
                seconds_of(step, length, lent.device)
                took = median(seconds_of(step, length, lent.device) for _ in range(3 if lent.small else 7))
            row |= {"seconds": took, "seconds_each": took / RUNS, "steps": steps, "gap": gap}
            most = TOLERANCES["float32"]
            yield row | {"tolerance": most, "result": "close" if gap <= most else "apart"}
        except Exception as error:
            yield row | failure(error)


# -- sharing -----------------------------------------------------------------------------------------------------------


def shared(lent: Lent, seconds: float) -> Iterator[Row]:
    """The same four runs in one, two and four processes: steps of a student a second, of all together."""
    until, alone = time.monotonic() + seconds, 0.0
    steps = 4 if lent.small else 200
    for processes in (1, 2, 4):
        row: Row = {"processes": processes, "runs": RUNS, "steps_each": steps, "of": PAIR[1], "batch": lent.batch}
        if time.monotonic() > until:
            yield row | {"result": NO_TIME}
            continue
        try:
            took = _side_by_side(lent, processes, steps)
            rate = RUNS * steps / took
            alone = alone or rate
            yield row | {"seconds": took, "steps_per_second": rate, "to_one_process": rate / alone, "result": "ok"}
        except Exception as error:
            yield row | failure(error)


def _side_by_side(lent: Lent, processes: int, steps: int) -> float:
    """Seconds from when all are told to begin until all have ended; what they need before is not in it."""
    given = json.dumps({"lent": lent.as_plain(), "runs": RUNS // processes, "steps": steps})
    code = "from experiments.bench.several import work; work()"
    begun = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    try:
        for process in begun:
            _say(process, given)
        for process in begun:
            _hear(process, "ready")
        since = time.perf_counter()
        for process in begun:
            _say(process, "go")
        for process in begun:
            _hear(process, "done")
        return time.perf_counter() - since
    finally:
        for process in begun:
            process.kill()
            process.communicate()


def _say(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def _hear(process: "subprocess.Popen[str]", expected: str) -> None:
    assert process.stdout is not None
    found = process.stdout.readline().strip()
    if found != expected:
        raise RuntimeError(f"process: expected {expected}, found {found or 'that it ended'}")


def work() -> None:
    """One process of those: warms up, says so, waits, and does its runs one after another."""
    given = json.loads(sys.stdin.readline())
    lent = Lent.of(given["lent"])
    lent.make_current()
    run: Callable[[int], Any] = _run_of(lent)
    run(2 if lent.small else 20)
    print("ready", flush=True)
    if sys.stdin.readline().strip() == "go":
        for _ in range(given["runs"]):
            run(given["steps"])
        print("done", flush=True)


def _run_of(lent: Lent) -> Callable[[int], Any]:
    sampler = find("sampler", "uniform", SAMPLERS)()
    objective = combine({"kl": (1.0, KL(4.0))})

    def run(steps: int) -> Any:
        problem = problem_of(lent, lent.device, *PAIR)
        return trained(
            problem, sampler, objective, Budget(batch=lent.batch, steps=steps), Optimiser(), SEED, log_points=1
        )

    return run
