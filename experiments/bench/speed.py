"""How long a step takes on a device: plainly, with each switch, in the engine, in synthesis; and how long it must take
at least, and the most memory it needs.

no paper. A limit is what the operations of a step, or the numbers it must move, take at rates measured beside it.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.engine import Budget, Optimiser
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.problem import Problem
from dfkd.registry import SAMPLERS, find
from dfkd.runtime import tf32

from .accuracy import inverted
from .checks import failure, left_out, uncompilable
from .lent import LAUNCH_BOUND, SEED, Lent, noise, problem_of, trained
from .protocol import NO_TIME, Row
from .steps import SWITCHES, Stepper, Switches, precision_of, seconds_of, stepper, take
from .usage import Peak, peak, resident

__all__ = ["SYNTHESIS", "engine", "limit_of", "limits", "rates", "steps", "synthesis", "work_of"]

COMPARED = 5
"""Steps after which the loss is compared with the plain step's."""

LOSSES = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 5e-2}
"""By how much of itself that loss may differ."""


def steps(lent: Lent, teacher: str, student: str, names: list[str], seconds: float) -> Iterator[Row]:
    """Seconds a plain step takes, and its ratio to one with each switch, blocks of both in turn."""
    until = time.monotonic() + seconds
    problem = problem_of(lent, torch.device("cpu"), teacher, student)
    models = problem.teacher.module, problem.student.module
    x = noise(lent, lent.batch).x.to(lent.device)
    length = 2 if lent.small else 20
    with SWITCHES["plain"].applied():
        plain = stepper(*models, x, SWITCHES["plain"])
        told = take(plain, COMPARED)
        seconds_of(plain, length, lent.device)
    for name in names:
        switches = SWITCHES[name]
        row: Row = {"student": student, "batch": lent.batch, "switches": name}
        why = switches.possible(lent.device)
        if switches.compiled:
            why = why or uncompilable(lent.device, precision_of(switches))
        if why:
            yield row | left_out(why)
        elif time.monotonic() > until:
            yield row | {"result": NO_TIME}
        else:
            try:
                least = limit_of(lent, teacher, student, precision_of(switches))
                yield row | beside_limit(_beside(lent, (*models, x), switches, plain, told, length), least)
            except Exception as error:  # a switch that does not work here is a row, the next one may
                yield row | failure(error)


def _beside(
    lent: Lent,
    given: tuple[nn.Module, nn.Module, Tensor],
    switches: Switches,
    plain: Stepper,
    told: list[float],
    length: int,
) -> Row:
    with switches.applied(), peak(lent.device) as held:
        began = time.perf_counter()
        step = stepper(*given, switches)
        losses = take(step, COMPARED)
        first = time.perf_counter() - began
        seconds_of(step, length, lent.device)
    times: list[tuple[float, float]] = []
    for _ in range(3 if lent.small else 9):
        with SWITCHES["plain"].applied():
            one = seconds_of(plain, length, lent.device)
        with switches.applied():
            times.append((one, seconds_of(step, length, lent.device)))
    close = abs(losses[-1] - told[-1]) <= LOSSES[precision_of(switches)] * abs(told[-1])
    return {
        "seconds": median(b for _, b in times),
        "plain_seconds": median(a for a, _ in times),
        "speedup": median(a / b for a, b in times),
        "speedup_min": min(a / b for a, b in times),
        "speedup_max": max(a / b for a, b in times),
        "first_steps_seconds": first,
        "peak_bytes": held.bytes,
        "steps": COMPARED,
        "loss": losses[-1],
        "plain_loss": told[-1],
        "result": "close" if close else "apart",
    }


def engine(lent: Lent, seconds: float) -> Iterator[Row]:
    """A step of the engine beside the plain step, in each precision, models compiled or not: on uniform noise, and in
    bfloat16 on what our composite draws, whose searches are never compiled.

    In order of what it tells: compiled beside eager for each, in bfloat16 first.
    """
    until = time.monotonic() + seconds
    kinds = [("bfloat16", "uniform"), ("bfloat16", "composite"), ("float32", "uniform")]
    if lent.cuda:
        kinds.append(("tf32", "uniform"))
    for precision, sampler in kinds:
        for teacher, student in LAUNCH_BOUND:
            for compile in (False, True):
                row: Row = {"student": student, "sampler": sampler, "precision": precision, "compile": compile}
                if time.monotonic() > until:
                    yield row | {"result": NO_TIME}
                    continue
                if compile and (why := uncompilable(lent.device, precision)):
                    yield row | left_out(why)
                    continue
                try:
                    least = limit_of(lent, teacher, student, precision)
                    if sampler == "composite":
                        least += _searched(lent, teacher, student, precision)
                    yield row | beside_limit(_engine(lent, teacher, student, precision, compile, sampler), least)
                except Exception as error:
                    yield row | failure(error)


def _drawing(name: str, small: bool) -> Sampler:
    """Uniform noise, or our composite with a bank that is made at the first draw, soon, and never added to."""
    if name == "composite":
        return inverted(small, steps=1, warmup=1, every=None)
    made: Sampler = find("sampler", name, SAMPLERS)()
    return made


def _searched(lent: Lent, teacher: str, student: str, precision: str) -> float:
    """Seconds that the search of a draw of the composite takes at least, by its operations."""
    rows = 2
    problem = problem_of(lent, torch.device("cpu"), teacher, student)
    sampler = _drawing("composite", small=True)
    state = sampler.init(problem, SEED)
    sampler.draw(state, problem, rows)
    operations = _operations(lambda: sampler.draw(state, problem, rows)) * lent.batch // rows
    return operations / _multiplied(lent.device, lent.small, _of_synthesis(precision))


def _of_synthesis(precision: str) -> str:
    """What its convolutions may be rounded to: in a run in bfloat16 torch is as it is set, which for convolutions is
    TF32 unless told."""
    return "tf32" if precision == "bfloat16" else precision


def _engine(lent: Lent, teacher: str, student: str, precision: str, compile: bool, drawn: str) -> Row:
    # on the way from one log point to the next the host waits once and looks whether all is finite
    length, plainly = (2, 2) if lent.small else (50, 10)
    sampler, before = _drawing(drawn, lent.small), resident(lent.device)
    problem = problem_of(lent, lent.device, teacher, student, precision)
    x = noise(lent, lent.batch).x.to(lent.device)
    models = copy.deepcopy(problem.teacher.module), copy.deepcopy(problem.student.module)
    with tf32(False):
        plain = stepper(*models, x, SWITCHES["plain"])
        seconds_of(plain, plainly, lent.device)
    blocks = _Blocks(lent, plain, length, plainly)
    ended = blocks.run(problem, sampler, 3 if lent.small else 5, compile)
    return {
        "seconds": median(b for _, b in blocks.times),
        "plain_seconds": median(a for a, _ in blocks.times),
        "engine_to_plain": median(b / a for a, b in blocks.times),
        "steps": length,
        "peak_bytes": None if blocks.most is None else max(blocks.most - before, 0),
        "result": ended,
    }


class _Blocks:
    """Blocks of a plain step and of the engine that take turns at the engine's log points.

    times: seconds a step: plain, engine. most: bytes held in a block of the engine, where that can be told.
    """

    def __init__(self, lent: Lent, plain: Callable[[], Any], length: int, plainly: int) -> None:
        self._lent, self._plain, self._length, self._plainly = lent, plain, length, plainly
        self.times: list[tuple[float, float]] = []
        self.most: int | None = None
        self._since, self._held = 0.0, Peak()

    def run(self, problem: Problem, sampler: Sampler, blocks: int, compile: bool) -> str:
        """How training ended."""
        points = blocks + 1
        objective, budget = combine({"kl": (1.0, KL(4.0))}), Budget(self._lent.batch, steps=points * self._length)
        with ExitStack() as watching:
            monitor = partial(self._alternate, watching)
            options: dict[str, Any] = {"monitor": monitor, "log_points": points, "compile": compile}
            training = trained(problem, sampler, objective, budget, Optimiser(), SEED, **options)
        if not self.times:
            raise RuntimeError(f"training: expected {points} log points, found too few; it ended {training.status}")
        return training.status

    def _alternate(self, watching: ExitStack) -> dict[str, float]:
        """The engine has waited for the device before it logs. What comes before the first point is not counted."""
        ours = (time.perf_counter() - self._since) / self._length
        watching.close()  # which tells the peak
        if self._held.total is not None:
            self.most = max(self.most or 0, self._held.total)
        with tf32(False):
            plain = seconds_of(self._plain, self._plainly, self._lent.device)
        if self._since:
            self.times.append((plain, ours))
        self._held = watching.enter_context(peak(self._lent.device))
        self._since = time.perf_counter()
        return {}


# -- synthesis ---------------------------------------------------------------------------------------------------------

NEVER = 10**9


@dataclass(frozen=True)
class Search:
    """make: (steps, images) -> a sampler whose every draw of so many images takes so many steps. long, short: steps of
    two draws, whose difference is steps alone; the same of a tiny run and for counting operations. draws: made between
    two looks at the clock."""

    make: Callable[[int, int], Sampler]
    long: int
    short: int
    few: tuple[int, int] = (2, 1)
    draws: int = 1


def _generating(name: str) -> Callable[..., Sampler]:
    made: Callable[..., Sampler] = find("sampler", name, SAMPLERS)
    return made


SYNTHESIS = {
    "deep_inversion": Search(lambda steps, n: _generating("deep_inversion")(steps=steps, batch=n), 20, 4),
    "fast_dfkd": Search(
        lambda steps, n: _generating("fast_dfkd")(steps=steps, batch=n, every=1, warmup=0, capacity=n), 20, 4
    ),
    # one step before a draw or, but for the first draw, none
    "dfq": Search(
        lambda steps, n: _generating("dfq")(batch=n, student_steps=1 if steps else NEVER), 1, 0, few=(1, 0), draws=10
    ),
}


def synthesis(lent: Lent, seconds: float) -> Iterator[Row]:
    """Seconds that a step of synthesis takes, beside its operations' limit, and the most memory of a draw; eager, as it
    always is."""
    until = time.monotonic() + seconds
    for precision in ("float32", "tf32") if lent.cuda else ("float32",):
        for teacher, student in reversed(LAUNCH_BOUND):
            for name, search in SYNTHESIS.items():
                row: Row = {"student": student, "sampler": name, "precision": precision}
                if time.monotonic() > until:
                    yield row | {"result": NO_TIME}
                    continue
                try:
                    with tf32(precision == "tf32"):
                        measured = _search_step(lent, teacher, student, search)
                    least = measured["operations"] / _multiplied(lent.device, lent.small, precision)
                    yield row | beside_limit(measured, least)
                except Exception as error:  # the next one may work
                    yield row | failure(error)


def _search_step(lent: Lent, teacher: str, student: str, search: Search) -> Row:
    """The difference of a draw of many steps and one of few, over the difference of their steps."""
    n = max(10, lent.batch)  # each class once
    steps = search.few if lent.small else (search.long, search.short)
    problem = problem_of(lent, lent.device, teacher, student)
    long, short = (_draw(problem, search, count, n) for count in steps)
    with peak(lent.device) as held:
        long()
    long(), short()
    times = [
        [seconds_of(draw, search.draws, lent.device) for draw in (long, short)] for _ in range(3 if lent.small else 5)
    ]
    took = median(a - b for a, b in times) / (steps[0] - steps[1])
    operations = _work_of_search(lent, teacher, student, search) * n
    return {
        "batch": n,
        "seconds": took,
        "operations": operations,
        "peak_bytes": held.bytes,
        "result": "ok" if took > 0.0 else "lost among other times",
    }


def _draw(problem: Problem, search: Search, steps: int, n: int) -> Callable[[], Any]:
    problem.teacher.module.eval()
    sampler = search.make(steps, n)
    state = sampler.init(problem, SEED)
    return lambda: sampler.draw(state, problem, n)


def _work_of_search(lent: Lent, teacher: str, student: str, search: Search) -> int:
    """Operations of a step, of one image: those of a draw of a step more."""
    rows, found = 10, list[int]()
    for steps in search.few:
        draw = _draw(problem_of(lent, torch.device("cpu"), teacher, student), search, steps, rows)
        draw()
        found.append(_operations(draw))
    return (found[0] - found[1]) // (search.few[0] - search.few[1]) // rows


def _operations(work: Callable[[], Any]) -> int:
    """Of convolutions and products."""
    with FlopCounterMode(display=False) as counter:
        work()
    found: int = counter.get_total_flops()
    return found


# -- limits ------------------------------------------------------------------------------------------------------------


def beside_limit(row: Row, least: float) -> Row:
    """With the limit, and how many times as long a step took."""
    return {**row, "limit_seconds": least, "to_limit": row["seconds"] / least}


def limit_of(lent: Lent, teacher: str, student: str, precision: str) -> float:
    """Seconds that a step takes at least: by its operations or by what it moves, whichever is more."""
    operations, values = work_of(lent, teacher, student)
    moved = values * (2 if precision == "bfloat16" else 4)
    return max(operations / _multiplied(lent.device, lent.small, precision), moved / _copied(lent.device, lent.small))


def rates(lent: Lent, seconds: float) -> Iterator[Row]:
    """Bytes a second of a copy on the device, read and written; operations a second of square products; and how long a
    step of each pair would take at these rates alone."""
    del seconds
    copied = _copied(lent.device, lent.small)
    yield {"copy": "on the device", "bytes_per_second": copied}
    found: dict[str, float] = {}
    for name in ("float32", "tf32", "bfloat16"):
        if name == "tf32" and not lent.cuda:
            yield {"product": name, **left_out("needs a GPU")}
            continue
        try:
            found[name] = _multiplied(lent.device, lent.small, name)
            yield {"product": name, "side": _side(lent.small), "operations_per_second": found[name]}
        except Exception as error:
            yield {"product": name, **failure(error)}
    yield from limits(lent, copied, found)


def limits(lent: Lent, copied: float, multiplied: dict[str, float]) -> Iterator[Row]:
    """Of each pair and precision: seconds of a step by its operations alone, and by what it moves alone."""
    for teacher, student in LAUNCH_BOUND:
        operations, values = work_of(lent, teacher, student)
        for name, rate in multiplied.items():
            moved = values * (2 if name == "bfloat16" else 4)
            by = {"by_operations": operations / rate, "by_bytes": moved / copied}
            yield {"limit": student, "precision": name, "operations": operations, "bytes": moved, **by}


def _side(small: bool) -> int:
    return 256 if small else 8192


@cache  # a process asks for them again and again
def _copied(device: torch.device, small: bool) -> float:
    n = 2**20 if small else 2**30
    a, b = (torch.empty(n, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * n / _best(lambda: b.copy_(a), device)


@cache
def _multiplied(device: torch.device, small: bool, precision: str) -> float:
    side, dtype = _side(small), torch.bfloat16 if precision == "bfloat16" else torch.float32
    rng = torch.Generator().manual_seed(SEED)
    left, right = (torch.randn(side, side, generator=rng).to(device, dtype) for _ in range(2))
    with tf32(precision == "tf32"):
        return 2 * side**3 / _best(partial(torch.mm, left, right), device)


@cache
def work_of(lent: Lent, teacher: str, student: str) -> tuple[int, int]:
    """Of a step: operations of convolutions and products, and how many numbers must at least be moved.

    The second counts what convolutions and linear layers give alone, as all else can be done while it is at hand: each
    number is written once and read once, and in the student's backward pass read once more, and its slope written and
    read once.
    """
    problem = problem_of(lent, torch.device("cpu"), teacher, student)
    x = noise(lent, 2).x
    moved, handles, times = [0], list[Any](), {"teacher": 2, "student": 5}

    def count(each: int, module: nn.Module, given: Any, out: Tensor) -> None:
        del module, given
        moved[0] += each * out.numel()

    nets = {"teacher": problem.teacher.module.eval(), "student": problem.student.module.train()}
    for name, net in nets.items():
        parts = [part for part in net.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
        handles += [part.register_forward_hook(partial(count, times[name])) for part in parts]
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            nets["teacher"](x)
        nets["student"](x).sum().backward()
    for handle in handles:
        handle.remove()
    share = lent.batch // 2
    return counter.get_total_flops() * share, moved[0] * share


def _best(step: Callable[[], Any], device: torch.device) -> float:
    seconds_of(step, 3, device)
    return min(seconds_of(step, 10, device) for _ in range(5))
