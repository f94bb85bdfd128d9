"""How long a step takes on a device: plainly, with each switch, in the engine; and how long it must take at least.

no paper. A limit is what the operations of a step, or the numbers it must move, take at rates measured beside it.
"""

import copy
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.engine import Budget, Optimiser
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.registry import SAMPLERS, find
from dfkd.runtime import tf32

from .checks import failure, left_out
from .lent import LAUNCH_BOUND, SEED, Lent, noise, problem_of, trained
from .protocol import NO_TIME, Row
from .steps import SWITCHES, Stepper, Switches, precision_of, seconds_of, stepper, take

__all__ = ["engine", "limit_of", "limits", "rates", "steps", "work_of"]

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
        if why := switches.possible(lent.device):
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
    with switches.applied():
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
        "steps": COMPARED,
        "loss": losses[-1],
        "plain_loss": told[-1],
        "result": "close" if close else "apart",
    }


def engine(lent: Lent, seconds: float) -> Iterator[Row]:
    """A step of the engine on uniform noise beside the plain step, in each precision, models compiled or not.

    In order of what it tells: compiled beside eager for each, in bfloat16 first.
    """
    until = time.monotonic() + seconds
    precisions = ("bfloat16", "float32", "tf32") if lent.cuda else ("bfloat16", "float32")
    for precision in precisions:
        for teacher, student in LAUNCH_BOUND:
            for compile in (False, True):
                row: Row = {"student": student, "precision": precision, "compile": compile}
                if time.monotonic() > until:
                    yield row | {"result": NO_TIME}
                    continue
                try:
                    least = limit_of(lent, teacher, student, precision)
                    yield row | beside_limit(_engine(lent, teacher, student, precision, compile), least)
                except Exception as error:
                    yield row | failure(error)


def _engine(lent: Lent, teacher: str, student: str, precision: str, compile: bool) -> Row:
    length = 2 if lent.small else 10
    sampler = find("sampler", "uniform", SAMPLERS)()
    problem = problem_of(lent, lent.device, teacher, student, precision)
    x = noise(lent, lent.batch).x.to(lent.device)
    models = copy.deepcopy(problem.teacher.module), copy.deepcopy(problem.student.module)
    with tf32(False):
        plain = stepper(*models, x, SWITCHES["plain"])
        seconds_of(plain, length, lent.device)
    times, ended = _blocks(lent, problem, sampler, plain, 3 if lent.small else 7, length, compile)
    return {
        "seconds": median(b for _, b in times),
        "plain_seconds": median(a for a, _ in times),
        "engine_to_plain": median(b / a for a, b in times),
        "result": ended,
    }


def _blocks(
    lent: Lent, problem: Any, sampler: Sampler, plain: Callable[[], Any], blocks: int, length: int, compile: bool
) -> tuple[list[tuple[float, float]], str]:
    """Seconds a step: plain, engine; of blocks that take turns at the engine's log points. And how training ended."""
    found: list[tuple[float, float]] = []
    since = time.perf_counter()

    def alternate() -> dict[str, float]:
        nonlocal since
        ours = (time.perf_counter() - since) / length  # the engine has waited for the device before it logs
        with tf32(False):
            found.append((seconds_of(plain, length, lent.device), ours))
        since = time.perf_counter()
        return {}

    objective = combine({"kl": (1.0, KL(4.0))})
    budget, points = Budget(batch=lent.batch, steps=(blocks + 1) * length), blocks + 1
    options: dict[str, Any] = {"monitor": alternate, "log_points": points, "compile": compile}
    training = trained(problem, sampler, objective, budget, Optimiser(), SEED, **options)
    if len(found) < 2:
        raise RuntimeError(f"training: expected {points} log points, found {len(found)}; it ended {training.status}")
    return found[1:], training.status


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
