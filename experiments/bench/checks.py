"""Whether a device computes what it should: every loss and sampler, other precisions, compiled and recorded steps.

no paper. Two students of the same start are compared by how far apart they end, in parts of how far one has moved:
parameters and buffers each, the larger of both. On a CPU (64 images of 32x32) weights that are a step old give 0.13,
images that are a step old 0.02, bfloat16 0.013, another order of sums in float32 1e-5; so float32 finds what bfloat16
may hide. Tolerances are for a few steps, before rounding grows.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dfkd.engine import Budget, Optimiser
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.registry import LOSSES, SAMPLERS, find
from dfkd.runtime import arithmetic, tf32
from dfkd.types import Batch
from samplers.state import State

from .lent import SEED, Lent, noise, problem_of, trained
from .protocol import FAILED, Row, line
from .steps import SWITCHES, Switches, quiet, stepper, take

__all__ = [
    "DRAWN",
    "OPTIONS",
    "SKIP",
    "TOLERANCES",
    "apart",
    "compiled",
    "losses",
    "precisions",
    "recorded",
    "samplers",
    "steps_alone",
    "uncompilable",
    "waits",
]

OPTIONS: dict[str, dict[str, Any]] = {
    "features": {"pairs": (("penultimate", "penultimate"),)},
    "attention": {"pairs": (("layer1", "layer1"),)},
    "jacobian": {"directions": None},
}
"""Of losses that cannot be built without; `jacobian` takes all directions, as it would draw them on the device."""

DRAWN = {"sampled_label": "draws labels on the device, which has other random numbers than a CPU for the same seed"}
"""Losses that cannot be compared, and why."""

SKIP = {"diffusion", "gan", "out_of_domain", "mosaic_kd", "real", "mixup", "cutmix", "one_image"}
"""Samplers that read something; the others are asked for images on the device."""

TOLERANCES = {"float32": 0.003, "tf32": 0.02, "bfloat16": 0.1}
"""In parts of how far the student moved in STEPS steps."""

LEARNING_RATE = 0.05
"""High enough that the weights of one step are not those of the next."""

STEPS = 6
"""Enough that a compiled step is warmed up, recorded and replayed, on images that differ."""

State_ = Mapping[str, Tensor]


def losses(lent: Lent, seconds: float) -> Iterator[Row]:
    """The student after two steps of the engine, here and on the CPU, with every loss of the table."""
    del seconds
    n = 8 if lent.small else 32
    for name in sorted(set(LOSSES) - {"peers"}):  # whose parts come from a scheme
        if name in DRAWN:
            yield {"loss": name, **left_out(DRAWN[name])}
            continue
        try:
            loss = find("loss", name, LOSSES)(**OPTIONS.get(name, {}))
            objective = combine({"only": (1.0, loss)})
            after, told, ended = [], [], []
            for device in (torch.device("cpu"), lent.device):
                problem = problem_of(lent, device, "wrn-16-1", "wrn-16-1")
                budget, optimiser = Budget(batch=n, steps=2), Optimiser(learning_rate=1e-3)
                with tf32(False):
                    result = trained(problem, noise(lent, n), objective, budget, optimiser, SEED, log_points=1)
                after.append([p.detach().cpu() for p in problem.student.module.state_dict().values()])  # sync
                told.append(result.curve[-1]["loss"] if result.curve else None)
                ended.append(result.status)
            pairs = [(a.float(), b.float()) for a, b in zip(*after, strict=True)]
            close = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
            row: Row = {"loss": name, "cpu": told[0], "there": told[1]}
            row["largest_gap"] = max(float((a - b).abs().max()) for a, b in pairs)
            row["result"] = "diverged" if "diverged" in ended else "close" if close else "apart"
            yield row | ({"ended": ended} if "diverged" in ended else {})
        except Exception as error:  # the next one may work
            yield {"loss": name, **failure(error)}


def samplers(lent: Lent, seconds: float) -> Iterator[Row]:
    """Two draws of every sampler that reads nothing: there, finite, in the box; and whether the second one waits."""
    del seconds
    from .throughput import ENTRIES

    n = 10 if lent.small else 64
    for name, entry in ENTRIES.items():
        if entry.sampler in SKIP or entry.base in SKIP:
            continue
        try:
            problem = problem_of(lent, lent.device, "wrn-16-1", "wrn-16-1")
            sampler = sampler_of(name, n)
            state = sampler.init(problem, SEED)
            x = sampler.draw(state, problem, n).x
            there = x.device.type == lent.device.type and x.shape[0] == n
            finite, inside = bool(torch.isfinite(x).all()), bool(((x >= 0) & (x <= 1)).all())  # sync
            row: Row = {"sampler": name, "result": "fine" if there and finite and inside else "not fine"}
            if row["result"] != "fine":
                row |= {"there": there, "is_finite": finite, "inside": inside}
            try:
                with quiet(lent.device):
                    sampler.draw(state, problem, n)
            except RuntimeError as error:
                row["waits"] = line(error)
            yield row
        except Exception as error:
            yield {"sampler": name, **failure(error)}


def sampler_of(name: str, n: int) -> Sampler:
    """As for throughput, with two steps of a search."""
    from .throughput import ENTRIES, SIZES, _sampler

    entry = ENTRIES[name]
    return _sampler(entry, replace(SIZES["32x32"], batch=n), None if entry.steps is None else 2, {})


# -- waits -------------------------------------------------------------------------------------------------------------


def waits(lent: Lent, compile: bool, seconds: float) -> Iterator[Row]:
    """Steps of the engine between log points, where torch raises at whatever waits for the device."""
    del seconds
    sampler = find("sampler", "uniform", SAMPLERS)()
    for precision in ("float32", "bfloat16"):
        row: Row = {"precision": precision, "compile": compile, "watched": lent.cuda, "result": "none", "waits": ""}
        if compile and (why := uncompilable(lent.device, precision)):
            yield row | left_out(why)
            continue
        try:
            problem = problem_of(lent, lent.device, "wrn-16-1", "wrn-16-1", precision)
            steps_alone(problem, sampler, lent.batch, compile)
        except RuntimeError as error:
            if "synchroniz" not in str(error).lower():  # torch's word for it
                row |= failure(error)
            else:
                row |= {"result": "waits", "waits": line(error)}
        except Exception as error:
            row |= failure(error)
        yield row


@dataclass(frozen=True)
class _Watched:
    """The base, but from draw `first` to draw `last` whatever waits for the device raises; steps lie in between."""

    base: Sampler
    first: int
    last: int
    name: ClassVar[str] = "watched"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        return State(base=self.base.init(problem, seed), draws=0, watching=None)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        state.draws += 1
        if state.draws == self.first:
            state.watching = ExitStack()
            state.watching.enter_context(quiet(problem.device))
        if state.draws == self.last:
            state.watching.close()
        return self.base.draw(state.base, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)


def steps_alone(problem: Problem, sampler: Sampler, n: int, compile: bool = False) -> None:
    """Steps of the engine between its log points; RuntimeError where one of them waits, on a GPU.

    Compiled ones are watched once they are warmed up and recorded.
    """
    objective = combine({"kl": (1.0, KL(4.0))})
    first = 9 if compile else 3
    watched, budget = _Watched(sampler, first, first + 3), Budget(batch=n, steps=first + 3)
    try:
        trained(problem, watched, objective, budget, Optimiser(), SEED, log_points=1, compile=compile)
    finally:
        if problem.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


# -- students side by side ---------------------------------------------------------------------------------------------


def compiled(lent: Lent, seconds: float) -> Iterator[Row]:
    """Students of compiled models and objective beside those of eager ones, on uniform noise, in each precision."""
    del seconds
    for precision in ("bfloat16", "float32", "tf32"):
        if precision == "tf32" and not lent.cuda:
            yield {"check": "compiled as eager", "precision": precision, **left_out("needs a GPU")}
            continue
        if why := uncompilable(lent.device, precision):
            yield {"check": "compiled as eager", "precision": precision, **left_out(why)}
            continue
        before = _unrecorded()
        rows = _beside(lent, "compiled as eager", (precision, False), (precision, True), TOLERANCES[precision])
        for row in rows:
            more = {name: count - before[name] for name, count in _unrecorded().items()}
            well = row.get("result") != "close" or not any(more.values())
            yield {**row, **more, **({} if well else {"result": "not recorded"})}


def _unrecorded() -> dict[str, int]:
    """How often torch has, in this process, not recorded a graph that it was to record, or cut a function in two."""
    from torch._dynamo.utils import counters  # has no public name; importing it takes a second

    return {
        "cudagraph_skips": int(counters["inductor"]["cudagraph_skips"]),
        "graph_breaks": int(sum(counters["graph_break"].values())),
    }


@cache  # for a process
def uncompilable(device: torch.device, precision: str) -> str:
    """Why one layer cannot go through torch.compile in this precision on a GPU; empty where it can, and on a CPU.

    Some versions of torch refuse to read their older switches of TF32 where the newer ones were set, which both
    float32 in full and TF32 are.
    """
    return _refused(device, precision) if device.type == "cuda" else ""


def _refused(device: torch.device, precision: str) -> str:
    layer, x = nn.Conv2d(3, 4, 3).to(device), torch.ones(2, 3, 8, 8, device=device)
    rounded = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    try:
        with arithmetic(precision), rounded:
            torch.compile(layer)(x).sum().backward()
    except Exception as error:  # torch's compiler fails in ways of its own
        failure(error)  # what is no matter of compiling is raised there
        return f"torch.compile cannot in {precision}: {line(error)}"
    return ""


def precisions(lent: Lent, seconds: float) -> Iterator[Row]:
    """Students in TF32 and in bfloat16 beside those in float32; a gap of zero says that nothing was rounded."""
    del seconds
    for precision in ("tf32", "bfloat16"):
        check = f"{precision} as float32"
        if precision == "tf32" and not lent.cuda:
            yield {"check": check, "precision": precision, **left_out("needs a GPU")}
            continue
        yield from _beside(lent, check, ("float32", False), (precision, False), TOLERANCES[precision])


def _beside(lent: Lent, check: str, one: tuple[str, bool], other: tuple[str, bool], most: float) -> Iterator[Row]:
    row: Row = {"check": check, "precision": other[0], "steps": STEPS}
    try:
        start, _, _ = student_after(lent, one[0], 0, False)
        (a, losses_a, _), (b, losses_b, ended) = (student_after(lent, p, STEPS, c) for p, c in (one, other))
        yield row | _compared(start, a, b, losses_a, losses_b, most) | ({} if ended == "ok" else {"ended": ended})
    except Exception as error:
        yield row | failure(error)


def student_after(lent: Lent, precision: str, steps: int, compile: bool) -> tuple[dict[str, Tensor], list[float], str]:
    """The student's state on the CPU, the loss of each step, and how training ended; 0 steps: as it begins."""
    problem = problem_of(lent, lent.device, "wrn-16-1", "wrn-16-1", precision)
    found: list[float] = []
    ended = "ok"
    if steps:
        sampler = find("sampler", "uniform", SAMPLERS)()
        objective, budget = combine({"kl": (1.0, KL(4.0))}), Budget(batch=lent.batch, steps=steps)
        optimiser = Optimiser(learning_rate=LEARNING_RATE, schedule="constant")
        result = trained(problem, sampler, objective, budget, optimiser, SEED, log_points=steps, compile=compile)
        found, ended = [point["loss"] for point in result.curve], result.status
    return state_of(problem.student.module), found, ended


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """As it is now, float32 on the CPU."""
    return {key: value.detach().float().cpu().clone() for key, value in module.state_dict().items()}  # sync


def recorded(lent: Lent, seconds: float) -> Iterator[Row]:
    """A whole step as one graph beside the plain step, after the same number of steps, with and without bfloat16."""
    del seconds
    for name in ("graph", "channels_last, bf16, graph"):
        switches = SWITCHES[name]
        row: Row = {"check": "recorded as plain", "switches": name, "steps": STEPS}
        if why := switches.possible(lent.device):
            yield row | left_out(why)
            continue
        try:
            yield row | _step_beside(lent, replace(switches, graph=False), switches, TOLERANCES["float32"])
        except Exception as error:
            yield row | failure(error)


def _step_beside(lent: Lent, one: Switches, other: Switches, most: float) -> Row:
    problem = problem_of(lent, torch.device("cpu"), "wrn-16-1", "wrn-16-1")
    models = problem.teacher.module, problem.student.module
    x = noise(lent, lent.batch).x.to(lent.device)
    found = []
    for switches in (one, other):
        with switches.applied():
            step = stepper(*models, x, switches, LEARNING_RATE)
            found.append((take(step, STEPS), state_of(step.student)))
    (losses_a, a), (losses_b, b) = found
    return _compared(state_of(models[1]), a, b, losses_a, losses_b, most)


def _compared(
    start: State_, one: State_, other: State_, losses_one: list[float], losses_other: list[float], most: float
) -> Row:
    gap = apart(start, one, other)
    # a NaN is not close
    close = gap <= most and len(losses_one) == len(losses_other)
    return {
        "gap": gap,
        "tolerance": most,
        "losses": [losses_one[-1:], losses_other[-1:]],
        "result": "close" if close else "apart",
    }


def apart(start: State_, one: State_, other: State_) -> float:
    """How far two students that began alike are from each other, in parts of how far the first has moved."""
    gaps = []
    for running in (False, True):
        keys = [key for key in start if ("running_" in key) == running and not key.endswith("num_batches_tracked")]
        if keys:
            a, b, s = (torch.cat([state[key].flatten() for key in keys]) for state in (one, other, start))
            gaps.append(float((a - b).norm() / (a - s).norm().clamp_min(1e-12)))
    return max(gaps) if all(gap == gap for gap in gaps) else float("nan")


# -- words -------------------------------------------------------------------------------------------------------------


def failure(error: Exception) -> Row:
    """The row of what raised; of what the networks here cannot be asked, that it is left out.

    Raised again where the device does not answer any more: whatever this process asked next would fail for no fault of
    its own.
    """
    if isinstance(error, UnsupportedProblem):
        return left_out(line(error))
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()  # sync
        except RuntimeError:  # as torch tells any fault of the device
            raise error from None
    return {"result": FAILED, "why": line(error)}


def left_out(why: str) -> Row:
    return {"result": "left out", "why": why}
