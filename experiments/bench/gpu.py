"""What a GPU is to be asked in the minutes that one is lent: the most telling first, each part on its own.

no paper. In order: whether the numbers are those of the CPU and whether a step waits for the device; how long a step of
launch-bound nets takes plainly and with each switch, and in the engine; what the machine can copy and multiply; how
accurate students are after how long. Needs torch, numpy, safetensors and scipy, and of this repository the work tree:
neither diffusers nor pydantic, typer or yaml. `small` is the same order with tiny sizes, for any machine.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.data import load
from dfkd.engine import Budget, Optimiser, train
from dfkd.fidelity import columns
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.models import build, load_teacher, save
from dfkd.plan import as_published
from dfkd.problem import PRECISIONS, Probe, Problem
from dfkd.registry import LOSSES, SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.runtime import tf32
from dfkd.schemes.offline import distill
from dfkd.schemes.supervised import teach
from dfkd.types import Batch, InputSpec
from samplers import Adversarial, Augmented, DeepInversion, Pooled
from samplers.state import State

from .protocol import Part, Row
from .steps import SWITCHES, quiet, seconds_of, stepper

__all__ = ["RECIPES", "Lent", "parts"]

SEED = 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the published CIFAR-10 ResNets normalise by."""

LAUNCH_BOUND = (("wrn-40-2", "wrn-16-1"), ("resnet56", "resnet20"))
PAIRS = (("resnet56", "resnet20", False, 3), ("wrn-40-2", "wrn-16-1", True, 1), ("resnet34", "resnet18", True, 1))
"""Teacher, student, whether the teacher is trained here, and its runs' weight in sharing the time that is left."""

OPTIONS: dict[str, dict[str, Any]] = {
    "features": {"pairs": (("penultimate", "penultimate"),)},
    "attention": {"pairs": (("layer1", "layer1"),)},
}
"""Of losses that cannot be built without."""

SKIP = {"diffusion", "gan", "out_of_domain", "mosaic_kd", "real", "mixup", "cutmix", "one_image"}
"""Samplers that read something; the others are asked for images on the device."""


@dataclass(frozen=True)
class Lent:
    """device: `cuda` or `cpu`. data: an .npz of CIFAR-10, None where there is none (test images alone will do for the
    first pair). teacher: weights of resnet56. folder: for teachers that are trained here. small: tiny sizes."""

    device: torch.device
    folder: Path
    data: str | None = None
    teacher: Path | None = None
    small: bool = False

    @property
    def spec(self) -> InputSpec:
        return InputSpec((3, 8, 8) if self.small else (3, 32, 32), 10)

    @property
    def batch(self) -> int:
        return 8 if self.small else 256

    def net(self, name: str) -> str:
        """The smallest of its kind, where sizes are tiny."""
        return ("resnet8" if name.startswith("resnet") else "wrn-10-1") if self.small else name


def parts(lent: Lent) -> list[Part]:
    """In order of what they tell; times to accuracy last, each with an equal share of what is left.

    Compiling comes after what needs none and is broken off: it may take longer than all that was measured before it.
    """
    small, eager = lent.small, [name for name, switches in SWITCHES.items() if not switches.compiled]
    compiled = [name for name in SWITCHES if name not in eager]
    found = [
        Part("losses and an engine step, as on a CPU", 1 if small else 20, partial(_losses, lent)),
        Part("samplers on the device", 1 if small else 30, partial(_samplers, lent)),
        Part("no waits in a step", 1 if small else 10, partial(_waits, lent)),
    ]
    for teacher, student in LAUNCH_BOUND:
        measure = partial(_speed, lent, teacher, student, eager)
        found.append(Part(f"speed of a step, {student}", 1 if small else 60, measure, 0.2))
    found.append(Part("speed of the engine", 1 if small else 30, partial(_engine, lent, False)))
    found.append(Part("rates of copies and products, limits of a step", 1 if small else 10, partial(_rates, lent)))
    for teacher, student in LAUNCH_BOUND:
        measure = partial(_speed, lent, teacher, student, compiled)
        found.append(Part(f"speed of a compiled step, {student}", 1 if small else 120, measure, 0.15, cut=True))
    compiled_engine = partial(_engine, lent, True)
    found.append(Part("speed of the compiled engine", 1 if small else 120, compiled_engine, 0.15, cut=True))
    weights = [weight for *_, weight in PAIRS for _ in RECIPES]
    for teacher, student, trained, weight in PAIRS:
        if trained:
            measure = partial(_teacher, lent, teacher)
            found.append(Part(f"a teacher, {teacher}", 1 if small else 120, measure, 0.25))
        for recipe in RECIPES:
            measure = partial(_accuracy, lent, recipe, teacher, student, trained)
            share = weight / sum(weights)
            found.append(Part(f"accuracy, {teacher} to {student}, {recipe}", 2 if small else 60, measure, share))
            del weights[0]
    return found


# -- correctness ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fixed:
    """The same images at every draw, here or there. x (n, c, h, w) lies on the CPU."""

    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    name: ClassVar[str] = "fixed"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        del seed
        return State(x=self.x.to(problem.device), y=self.y.to(problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del problem, learn
        return Batch(state.x[:n], y=state.y[:n])

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def problem_of(lent: Lent, device: torch.device, teacher: str, student: str, precision: str = "float32") -> Problem:
    """Both networks with the same weights on any device; the teacher has seen a little noise."""
    spec = lent.spec
    with initialised(derive(SEED, teacher, student)):
        nets = [build(lent.net(name), spec) for name in (teacher, student)]
        with torch.no_grad():
            nets[0](torch.rand(16, *spec.shape))
    probes = [Probe(net, spec, device, name, precision) for net, name in zip(nets, ("teacher", "student"), strict=True)]
    return Problem(probes[0], probes[1], spec, device, seed=SEED)


def _noise(lent: Lent, n: int) -> _Fixed:
    rng = torch.Generator().manual_seed(SEED)
    return _Fixed(torch.rand(n, *lent.spec.shape, generator=rng), torch.arange(n) % lent.spec.num_classes)


def _losses(lent: Lent, seconds: float) -> Iterator[Row]:
    """The student after two steps of the engine, here and on the CPU, with every loss of the table."""
    del seconds
    n = 8 if lent.small else 32
    for name in sorted(set(LOSSES) - {"peers"}):  # whose parts come from a scheme
        try:
            loss = find("loss", name, LOSSES)(**OPTIONS.get(name, {}))
            objective = combine({"only": (1.0, loss)})
            after, told = [], []
            for device in (torch.device("cpu"), lent.device):
                problem = problem_of(lent, device, "wrn-16-1", "wrn-16-1")
                with tf32(False):
                    result = train(
                        problem,
                        _noise(lent, n),
                        objective,
                        Budget(batch=n, steps=2),
                        Optimiser(learning_rate=1e-3),
                        SEED,
                        log_points=1,
                    )
                after.append([p.detach().cpu() for p in problem.student.module.state_dict().values()])  # sync
                told.append(result.curve[-1]["loss"])
            gap = max(float((a.float() - b.float()).abs().max()) for a, b in zip(*after, strict=True))
            close = all(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4) for a, b in zip(*after, strict=True))
            yield {"loss": name, "cpu": told[0], "device": told[1], "largest_gap": gap, "close": close}
        except (ValueError, RuntimeError, TypeError) as error:
            yield {"loss": name, "why": _line(error)}


def _samplers(lent: Lent, seconds: float) -> Iterator[Row]:
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
            fine = bool(torch.isfinite(x).all()) and x.device.type == lent.device.type and x.shape[0] == n
            row: Row = {"sampler": name, "fine": fine and bool(((x >= 0) & (x <= 1)).all())}
            try:
                with quiet(lent.device):
                    sampler.draw(state, problem, n)
            except RuntimeError as error:
                row["waits"] = _line(error)
            yield row
        except (ValueError, RuntimeError, TypeError) as error:
            yield {"sampler": name, "why": _line(error)}


def sampler_of(name: str, n: int) -> Sampler:
    """As for throughput, with two steps of a search."""
    from .throughput import ENTRIES, SIZES, _sampler

    entry = ENTRIES[name]
    return _sampler(entry, replace(SIZES["32x32"], batch=n), None if entry.steps is None else 2, {})


def _waits(lent: Lent, seconds: float) -> Iterator[Row]:
    """Steps of the engine between log points, where torch raises at whatever waits for the device."""
    del seconds
    sampler = find("sampler", "uniform", SAMPLERS)()
    for precision in ("float32", "bfloat16"):
        problem = problem_of(lent, lent.device, "wrn-16-1", "wrn-16-1", precision)
        waits = ""
        try:
            steps_alone(problem, sampler, lent.batch)
        except RuntimeError as error:
            waits = _line(error)
        yield {"precision": precision, "waits": waits, "watched": lent.device.type == "cuda"}


@dataclass(frozen=True)
class _Watched:
    """The base, but from the third draw to the sixth whatever waits for the device raises; steps lie in between."""

    base: Sampler
    name: ClassVar[str] = "watched"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        return State(base=self.base.init(problem, seed), draws=0, watching=None)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        state.draws += 1
        if state.draws == 3:
            state.watching = ExitStack()
            state.watching.enter_context(quiet(problem.device))
        if state.draws == 6:
            state.watching.close()
        return self.base.draw(state.base, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)


def steps_alone(problem: Problem, sampler: Sampler, n: int) -> None:
    """Steps of the engine between its log points; RuntimeError where one of them waits, on a GPU."""
    objective = combine({"kl": (1.0, KL(4.0))})
    try:
        train(problem, _Watched(sampler), objective, Budget(batch=n, steps=6), Optimiser(), SEED, log_points=1)
    finally:
        if problem.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


# -- speed ---------------------------------------------------------------------------------------------------------


def _speed(lent: Lent, teacher: str, student: str, names: list[str], seconds: float) -> Iterator[Row]:
    """Seconds a plain step takes, and its ratio to one with each switch, blocks of both in turn."""
    problem = problem_of(lent, torch.device("cpu"), teacher, student)
    models = problem.teacher.module, problem.student.module
    x = _noise(lent, lent.batch).x.to(lent.device)
    blocks, length = (3, 2) if lent.small else (9, 20)
    until = time.monotonic() + seconds
    with tf32(False):
        plain = stepper(*models, x, SWITCHES["plain"])
        seconds_of(plain, length, lent.device)
    for name in names:
        switches = SWITCHES[name]
        if why := switches.possible(lent.device):
            yield {"switches": name, "why": why}
            continue
        if time.monotonic() > until:
            yield {"switches": name, "why": "no time left"}
            continue
        try:
            with tf32(switches.tf32):
                step = stepper(*models, x, switches)
                began = time.perf_counter()
                seconds_of(step, 3, lent.device)
                first = time.perf_counter() - began
            times: list[tuple[float, float]] = []
            for _ in range(blocks):
                with tf32(False):
                    one = seconds_of(plain, length, lent.device)
                with tf32(switches.tf32):
                    times.append((one, seconds_of(step, length, lent.device)))
            yield {
                "student": student,
                "batch": lent.batch,
                "switches": name,
                "seconds": median(b for _, b in times),
                "plain_seconds": median(a for a, _ in times),
                "speedup": median(a / b for a, b in times),
                "speedup_min": min(a / b for a, b in times),
                "speedup_max": max(a / b for a, b in times),
                "first_three_seconds": first,
                "loss": float(step()),  # sync
            }
        except Exception as error:  # a switch that does not work here is a row, the next one may
            yield {"switches": name, "why": _line(error)}


def _engine(lent: Lent, compile: bool, seconds: float) -> Iterator[Row]:
    """A step of the engine on uniform noise beside the plain step, in each precision, models compiled or not."""
    del seconds
    blocks, length = (3, 2) if lent.small else (7, 20)
    sampler = find("sampler", "uniform", SAMPLERS)()
    for teacher, student in LAUNCH_BOUND:
        for precision in PRECISIONS:
            if precision == "tf32" and lent.device.type != "cuda":
                continue
            problem = problem_of(lent, lent.device, teacher, student, precision)
            x = _noise(lent, lent.batch).x.to(lent.device)
            models = copy.deepcopy(problem.teacher.module), copy.deepcopy(problem.student.module)
            with tf32(False):
                plain = stepper(*models, x, SWITCHES["plain"])
                seconds_of(plain, length, lent.device)
                times = _engine_blocks(lent, problem, sampler, plain, blocks, length, compile)
            yield {
                "student": student,
                "precision": precision,
                "compile": compile,
                "seconds": median(b for _, b in times),
                "plain_seconds": median(a for a, _ in times),
                "engine_to_plain": median(b / a for a, b in times),
            }


def _engine_blocks(
    lent: Lent,
    problem: Problem,
    sampler: Sampler,
    plain: Callable[[], Any],
    blocks: int,
    length: int,
    compile: bool,
) -> list[tuple[float, float]]:
    """Seconds a step: plain, engine; of blocks that take turns at the engine's log points."""
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
    train(problem, sampler, objective, budget, Optimiser(), SEED, **options)
    return found[1:]


def _rates(lent: Lent, seconds: float) -> Iterator[Row]:
    """Bytes a second of a copy on the device, read and written; operations a second of square products; and how long a
    step of each pair would take at these rates alone."""
    del seconds
    n = 2**20 if lent.small else 2**30
    a, b = (torch.empty(n, dtype=torch.uint8, device=lent.device) for _ in range(2))
    copied = 2 * n / _best(lambda: b.copy_(a), lent.device)
    yield {"copy": "on the device", "bytes_per_second": copied}
    rates: dict[str, float] = {}
    side = 256 if lent.small else 8192
    kinds = {"float32": (torch.float32, False), "tf32": (torch.float32, True), "bfloat16": (torch.bfloat16, False)}
    for name, (dtype, rounded) in kinds.items():
        if rounded and lent.device.type != "cuda":
            yield {"product": name, "why": "needs a GPU"}
            continue
        rng = torch.Generator().manual_seed(SEED)
        left, right = (torch.randn(side, side, generator=rng).to(lent.device, dtype) for _ in range(2))
        with tf32(rounded):
            took = _best(partial(torch.mm, left, right), lent.device)
        rates[name] = 2 * side**3 / took
        yield {"product": name, "side": side, "operations_per_second": rates[name]}
    for teacher, student in LAUNCH_BOUND:
        operations, values = work_of(lent, teacher, student)
        for name, rate in rates.items():
            moved = values * (2 if name == "bfloat16" else 4)
            limits = {"by_operations": operations / rate, "by_bytes": moved / copied}
            yield {"limit": student, "precision": name, "operations": operations, "bytes": moved, **limits}


def work_of(lent: Lent, teacher: str, student: str) -> tuple[int, int]:
    """Of a step: operations of convolutions and products, and how many numbers must at least be moved.

    The second counts what convolutions and linear layers give alone, as all else can be done while it is at hand: each
    number is written once and read once, and in the student's backward pass read once more, and its slope written and
    read once.
    """
    problem = problem_of(lent, torch.device("cpu"), teacher, student)
    x = _noise(lent, 2).x
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


# -- time to accuracy ----------------------------------------------------------------------------------------------


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


def _accuracy(lent: Lent, recipe: str, teacher: str, student: str, here: bool, seconds: float) -> Iterator[Row]:
    """Accuracy on test at 20 points of a run of so many seconds. here: the teacher was trained on the spot."""
    if lent.data is None:
        raise ValueError("data: expected a file of CIFAR-10, found none")
    began, data = time.monotonic(), load(lent.data)
    test = data.require_test("data")
    if test.y is None:
        raise ValueError(f"data: expected classes of the rows to test on, found none in {lent.data}")
    rows = 64 if lent.small else None
    x, y = test.x[:rows], test.y[:rows]
    asked = _taught(lent, teacher, data.spec) if here else _published(lent, teacher, data.spec)
    spec = data.spec

    def right(probe: Probe) -> float:
        return (columns.logits(probe, x, spec).argmax(dim=1) == y).double().mean().item()  # sync

    own = right(Probe(asked, spec, lent.device))
    yield {"recipe": recipe, "teacher": teacher, "student": student, "teacher_accuracy": own, "rows": len(x)}
    sampler = RECIPES[recipe](lent.small)
    left = max(1.0, seconds - (time.monotonic() - began))
    shared = combine({"kl": (1.0, KL(4.0))}), Optimiser(learning_rate=0.1), Budget(batch=lent.batch, seconds=left)
    objective, optimiser, budget = as_published(sampler, spec, *shared)
    budget = replace(budget, batch=lent.batch)
    distilled = distill(
        asked,
        lent.net(student),
        sampler,
        spec=spec,
        objective=objective,
        budget=budget,
        optimiser=optimiser,
        seed=SEED,
        device=lent.device,
        monitor=lambda problem: {"accuracy": right(problem.student)},
    )
    training = distilled.training
    for point in training.curve:
        yield {key: point[key] for key in ("step", "seconds", "loss", "accuracy", "teacher_images")}
    last = training.curve[-1]["accuracy"] if training.curve else None
    yield {
        "recipe": recipe,
        "student": student,
        "ended": training.status,
        "steps": training.steps,
        "seconds": training.seconds,
        "synthesise_seconds": training.synthesise_seconds,
        "accuracy": last,
    }


def _published(lent: Lent, name: str, spec: InputSpec) -> nn.Module:
    """The teacher from its file; of a tiny run, one that has learnt nothing."""
    if lent.small:
        with initialised(SEED):
            return build(lent.net(name), spec).eval()
    if lent.teacher is None:
        raise ValueError(f"teacher: expected a file with the weights of {name}, found none")
    return load_teacher(name, spec, lent.teacher, (MEAN, STD))


def _file(lent: Lent, name: str) -> Path:
    return lent.folder / f"{lent.net(name)}.safetensors"


def _teacher(lent: Lent, name: str, seconds: float) -> Iterator[Row]:
    """Trains a teacher on labelled rows for four fifths of the time; its file serves all recipes, another time too."""
    if lent.data is None:
        raise ValueError("data: expected a file of CIFAR-10, found none")
    data = load(lent.data)
    spec = data.spec
    shown = find("sampler", "augmented", SAMPLERS)(base=find("sampler", "real", SAMPLERS)(data=lent.data), flip=True)
    module, training = teach(
        lent.net(name),
        shown,
        spec=spec,
        budget=Budget(batch=lent.batch, seconds=0.8 * seconds),
        optimiser=Optimiser(learning_rate=0.1, nesterov=True, warmup=0.05),
        seed=SEED,
        device=lent.device,
    )
    lent.folder.mkdir(parents=True, exist_ok=True)
    save(_file(lent, name), module.cpu(), reference=lent.net(name), spec=spec)  # sync
    yield {"teacher": name, "steps": training.steps, "seconds": training.seconds, "ended": training.status}


def _taught(lent: Lent, name: str, spec: InputSpec) -> nn.Module:
    file = _file(lent, name)
    if not file.exists():
        raise ValueError(f"teacher: expected {file}, which an earlier part writes, found none")
    return load_teacher(None, spec, file)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
