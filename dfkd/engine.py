"""The loop that minimises an objective over inputs from a sampler: one step, the run, and its exact continuation.

One step: draw, ask the teacher (unless its answers are carried), ask the student, objective, backward, optimiser,
observe. Nothing in it waits for the device; the loss is summed there and read at log points and checkpoints. There
the run also looks whether loss, parameters and buffers are finite. Where they are not it stops as `diverged`: the
student is put back to the last point that was found finite (the start, at the earliest), `steps` stays at the step that
was reached, and the checkpoint file remains that of the last finite point. A sampler whose search diverged gives images
of NaN, and so ends the run.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd import checkpoint as files
from dfkd.compilation import compiled, compiling
from dfkd.interfaces import Sampler
from dfkd.losses import Evaluated, Objective
from dfkd.problem import PHASES, Problem
from dfkd.rng import derive, initialised
from dfkd.runtime import Bar, Interruption, Stopwatch, agree, arithmetic, clock
from dfkd.schedule import Budget, Optimiser, Stop
from dfkd.types import Batch, Outputs

__all__ = ["Budget", "Optimiser", "Stop", "Training", "train"]

Status = Literal["ok", "diverged", "interrupted"]
Monitor = Callable[[], dict[str, float]]
Signal = Callable[[Any], dict[str, float]]
_SIGNAL = "signal_"  # what the values begin with that a run may be stopped by


@dataclass(frozen=True)
class Training:
    """What a run leaves beside the trained student.

    seconds: all of it but what `monitor` and `signal` took, charged banks included; synthesise_seconds: the part inside
    `init` and `draw`. curve: one line for each log point, loss being the mean since the line before. counts: images
    through the teacher in this run, by phase. flat_at: the step at which all signals were found flat, None where they
    were not, and the run lasted as long as its budget.
    """

    status: Status
    steps: int
    seconds: float
    synthesise_seconds: float
    curve: list[dict[str, float]]
    sampler_state: Any
    counts: dict[str, dict[str, int]]
    flat_at: int | None = None


def train(
    problem: Problem,
    sampler: Sampler,
    objective: Objective,
    budget: Budget,
    optimiser: Optimiser,
    seed: int,
    *,
    student_batchnorm: str = "train",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    identity: str = "",
    monitor: Monitor | None = None,
    signal: Signal | None = None,
    stop: Stop | None = None,
    begin: Callable[[Any], None] | None = None,
    log_points: int = 20,
    compile: bool = False,
    show_progress: bool = False,
) -> Training:
    """Trains `problem.student.module` in place on what the sampler draws; continues `checkpoint` where there is one.

    student_batchnorm: `train` (the batch's statistics, stored ones follow) or `fixed` (stored ones, never moved).
    monitor: called at log points; what it returns joins the curve, its time and images do not count. signal: likewise,
    given the sampler's state, which it leaves as it was; its values called `signal_...` are what `stop` looks at.
    begin: called with the sampler's state before the first step, not where a checkpoint is continued; what it draws is
    the run's, and what it makes of the student is where the run starts. compile: both models through torch.compile
    where they are labelled by and learned from (not in synthesis, not where a loss reads features or slopes, and not
    where a batch is labelled in several BatchNorm modes), and the objective where all its losses are of logits, row by
    row, and train nothing of their own.
    """
    if student_batchnorm not in ("train", "fixed"):
        raise ValueError(f"student_batchnorm: expected train or fixed, found {student_batchnorm!r}")
    if log_points < 1:
        raise ValueError(f"log_points: expected an integer >= 1, found {log_points!r}")
    if stop is not None and signal is None:
        raise ValueError("stop: expected a signal to look at, found none")
    parts = (int(seed), budget, optimiser, student_batchnorm, log_points)
    settings = repr(parts if stop is None else (*parts, stop))
    identity = f"{identity}/{hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()}"
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption().watching())
        # dropout is the only user of the global generator: it gets the run's own, and the caller's is put back
        stack.enter_context(initialised(derive(seed, "student")))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(problem.device.type, enabled=False))
        stack.enter_context(_modes(problem.student.module, "train", student_batchnorm == "fixed"))
        stack.enter_context(_modes(problem.teacher.module, "eval"))  # so that asking it switches nothing
        stack.enter_context(problem.teacher.counting("synthesise"))
        stack.enter_context(problem.student.counting("synthesise"))
        stack.enter_context(arithmetic(problem.student.precision))
        if compile and not objective.input_grad:
            trained = {id(held) for held in (*problem.student.module.parameters(), *problem.student.module.buffers())}
            told = (*problem.teacher.module.parameters(), *problem.teacher.module.buffers())
            shared = any(id(held) in trained for held in told)  # layers of the teacher's own that the student trains
            stack.enter_context(problem.teacher.compiled(budget.batch, fixed=not shared))
            stack.enter_context(problem.student.compiled(budget.batch))
        bar = Bar(sampler.name, show_progress)
        stack.callback(bar.close)
        continued = checkpoint is not None and checkpoint.exists()
        begin = None if continued else begin
        run = _Run(
            problem, sampler, objective, budget, optimiser, seed, log_points, monitor, signal, stop, begin, compile
        )
        if checkpoint is not None and continued:
            run.load_state_dict(files.load(checkpoint, identity, problem.device))

        def save() -> None:
            if checkpoint is not None:
                files.save(checkpoint, run.state_dict(), identity, problem.device)

        status = _loop(run, interruption, bar, save, math.inf if checkpoint is None else checkpoint_seconds)
        return run.result(status)


def _loop(run: "_Run", interruption: Interruption, bar: Bar, save: Callable[[], None], every: float) -> Status:
    """Steps until the budget is spent, SIGTERM came, or something is not finite."""
    saved = time.monotonic()
    while not agree(run.done):
        run.step()
        logging = run.at_log_point
        stopping = agree(interruption.requested)
        saving = stopping or agree(time.monotonic() - saved >= every)
        if (logging or saving) and agree(not run.finite()):
            run.restore()
            return "diverged"
        if logging:
            run.log()
        if saving:
            save()
            saved = time.monotonic()
        if stopping and not run.done:
            return "interrupted"
        bar.update(run.progress)
    save()
    return "ok"


@contextmanager
def _modes(module: nn.Module, mode: Literal["train", "eval"], batchnorm_fixed: bool = False) -> Iterator[None]:
    """Inside, all parts stand in this mode (BatchNorm in `eval` where it is fixed); as before afterwards."""
    before = [(part, part.training) for part in module.modules()]
    for part, _ in before:
        part.training = mode == "train" and not (batchnorm_fixed and isinstance(part, _BatchNorm))
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


class _Run:
    """Everything of a run that changes, and the step that changes it."""

    def __init__(
        self,
        problem: Problem,
        sampler: Sampler,
        objective: Objective,
        budget: Budget,
        optimiser: Optimiser,
        seed: int,
        log_points: int,
        monitor: Monitor | None,
        signal: Signal | None,
        stop: Stop | None,
        begin: Callable[[Any], None] | None,
        compile: bool,
    ) -> None:
        self._problem, self._sampler, self._objective, self._budget = problem, sampler, objective, budget
        self._settings, self._log_points, self._monitor = optimiser, log_points, monitor
        self._signal, self._stop = signal, stop
        # progress at which the rate begins to fall and at which the run ends, where it may stop early
        self._fall, self._end = (1.0 if stop is None else 1.0 / (1.0 + stop.span(optimiser))), 1.0
        self._flat_at: int | None = None
        self._signals: dict[str, list[float]] = {}
        needs = objective.needs
        self._taps = {who: tuple(needs.get(who, ())) for who in ("student", "teacher")}
        self._input_grad, self._uses_teacher = objective.input_grad, objective.uses_teacher
        self._student = problem.student.module
        problem.batch = budget.batch
        self._adapters = objective.init(problem, derive(seed, "adapters"))  # a loss may say better what it needs
        if self._input_grad:
            problem.teacher.require("input_grad", who="objective")
        self._adapters.train()
        self._calls = dict(self._adapters.items())  # which is quicker to look into at every step
        self._compile = compile
        fast = compile and objective.by_row and not self._calls
        self._fast = compiled(objective, problem.device, "objective", last=True) if fast else None
        self._trained = nn.ModuleList([self._student, self._adapters])
        self._parameters = [p for p in self._trained.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("student: expected parameters to train, found none that requires a gradient")
        self._optimiser = optimiser.build(self._parameters)
        self._optimiser.zero_grad()  # of whatever a student comes with
        self._counts_before, self._images_before = _copy(problem.teacher.counts), problem.teacher.images
        self._charged_before = problem.charged_seconds
        self._began, self._paused, self._seconds_before, self._synthesis_before = clock(problem.device), 0.0, 0.0, 0.0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=problem.device)
        self._loss_steps, self._steps, self._logged = 0, 0, 0
        self._curve: list[dict[str, float]] = []
        self._watch = Stopwatch(problem.device)
        self._advance()
        self._watch.start()
        self._state = sampler.init(problem, derive(seed, "sampler"))
        if begin is not None:
            begin(self._state)
        self._watch.stop()
        self._good = _snapshot(self._student)
        self._advance()

    # -- the clock -----------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        return self._problem.progress

    @property
    def done(self) -> bool:
        return self.progress >= self._end

    def _seconds(self, now: float) -> float:
        charged = self._problem.charged_seconds - self._charged_before
        return self._seconds_before + now - self._began - self._paused + charged

    def _images(self) -> int:
        return self._problem.teacher.images - self._images_before

    def _advance(self) -> None:
        """Sets the problem's clock from what was spent; host numbers only."""
        budget, problem = self._budget, self._problem
        problem.progress = budget.progress(self._steps, self._images(), self._seconds(time.perf_counter()))
        problem.horizon = budget.horizon(self._steps, problem.progress)

    # -- one step ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        rate = self._settings.rate(self._problem.progress)
        if self._stop is not None:
            rate = self._settings.held(self._problem.progress, self._fall, self._end)
        self._watch.start()
        try:
            batch = self._sampler.draw(self._state, self._problem, self._budget.batch)
        finally:
            self._watch.stop()
        student, teacher, asked = self._ask(batch)
        evaluated = self._evaluate(student, teacher, asked)
        if self._input_grad:  # not into x, nor through the teacher
            torch.autograd.backward(evaluated.total, inputs=self._parameters)
        elif self._compile:
            with compiling("student's gradient"):
                evaluated.total.backward()
        else:
            evaluated.total.backward()
        if self._settings.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._settings.clip)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad()  # here, so that no draw finds their memory taken, nor what comes after the run
        self._sampler.observe(self._state, batch, evaluated.rows)
        self._loss_sum += evaluated.total.detach()
        self._loss_steps += 1
        self._steps += 1
        self._advance()

    def _ask(self, batch: Batch) -> tuple[Outputs, Outputs, Batch]:
        """Both models' answers, and the batch they belong to (its x a leaf where a loss differentiates in x)."""
        problem = self._problem
        teacher: Outputs | None = None
        if self._input_grad:
            batch = batch.with_x(batch.x.detach().requires_grad_(True))
            with (
                problem.teacher.counting("label"),
                problem.teacher.frozen(),
                problem.teacher.taps(*self._taps["teacher"]),
            ):
                teacher = problem.teacher.label(batch.x, batch.labelling)
        elif self._uses_teacher:
            teacher = problem.label(batch, self._taps["teacher"])
        taps = self._taps["student"]
        if taps:
            with problem.student.taps(*taps):
                student = problem.student.learn(batch.x)
        else:
            student = problem.student.learn(batch.x)
        # where no loss reads the teacher it was not asked: the student's own answers stand in for it
        return student, student.detach() if teacher is None else teacher, batch

    def _evaluate(self, student: Outputs, teacher: Outputs, batch: Batch) -> Evaluated:
        if self._fast is None:
            return self._objective(student, teacher, batch, self._calls)
        evaluated: Evaluated = self._fast(student, teacher, batch)
        return replace(evaluated, rows=evaluated.rows.clone())  # samplers may keep them

    # -- log points ----------------------------------------------------------------------------------------------

    @property
    def at_log_point(self) -> bool:
        return self._problem.progress * self._log_points >= self._logged + 1 - 1e-9

    def finite(self) -> bool:
        """Whether loss, parameters and buffers are; if so the student as it is now becomes the last good one."""
        parts = [self._loss_sum.float(), *self._trained.parameters(), *self._trained.buffers()]
        largest = nn.utils.get_total_norm([part for part in parts if part.is_floating_point()], norm_type=math.inf)
        if not math.isfinite(largest):  # sync
            return False
        self._good = _snapshot(self._student)
        return True

    def restore(self) -> None:
        self._student.load_state_dict(self._good)

    def log(self) -> None:
        """One line of the curve: the mean loss since the last one, what was spent, and what the monitor says."""
        problem, now = self._problem, clock(self._problem.device)
        self._watch.seconds()  # the events of a GPU that it holds are added up and let go
        line: dict[str, float] = {
            "step": self._steps,
            "teacher_images": self._images(),
            "seconds": self._seconds(now),
            "loss": float(self._loss_sum) / self._loss_steps,  # sync
        }
        if self._monitor is not None or self._signal is not None:
            with problem.teacher.counting("evaluate"), problem.student.counting("evaluate"):
                line.update({} if self._monitor is None else self._monitor())
                line.update({} if self._signal is None else self._signal(self._state))
            self._paused += clock(problem.device) - now
        self._curve.append(line)
        self._look_whether_flat()
        self._loss_sum.zero_()
        self._loss_steps = 0
        self._logged = math.floor(problem.progress * self._log_points + 1e-9)

    def _look_whether_flat(self) -> None:
        """Once, before the rate falls anyway: where all signals are flat the fall begins now and ends the run."""
        stop, progress = self._stop, self._problem.progress
        if stop is None or self._flat_at is not None or progress >= self._fall:
            return
        if progress < self._settings.warmup:
            return  # while the rate still rises nothing is flat for good
        for name, value in self._curve[-1].items():
            if name.startswith(_SIGNAL):
                self._signals.setdefault(name, []).append(value)
        if agree(bool(self._signals) and all(stop.flat(values) for values in self._signals.values())):
            self._flat_at, self._fall = self._steps, progress
            self._end = progress * (1.0 + stop.span(self._settings))

    # -- to be saved and put back --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        device, now = self._problem.device, clock(self._problem.device)
        return {
            "student": self._student.state_dict(),
            "adapters": self._adapters.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "sampler": self._state.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "counts": self._counts(),
            "steps": self._steps,
            "seconds": self._seconds(now),
            "synthesise_seconds": self._synthesis(),
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
            "curve": self._curve,
            "logged": self._logged,
            "stop": [self._fall, self._end, self._flat_at, self._signals],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        problem = self._problem
        self._student.load_state_dict(state["student"])
        self._adapters.load_state_dict(state["adapters"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._state.load_state_dict(state["sampler"])
        torch.set_rng_state(state["random"].cpu())  # sync
        if problem.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), problem.device)  # sync
        for phase in PHASES:
            for way, images in state["counts"][phase].items():
                problem.teacher.counts[phase][way] = self._counts_before[phase][way] + images
        self._steps, self._seconds_before = state["steps"], state["seconds"]
        self._synthesis_before, self._watch = state["synthesise_seconds"], Stopwatch(problem.device)
        # what setting up again took is neither this run's time nor charged to it twice
        self._began, self._paused, self._charged_before = clock(problem.device), 0.0, problem.charged_seconds
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_steps, self._logged = state["loss_steps"], state["logged"]
        self._curve = list(state["curve"])
        self._fall, self._end, self._flat_at, self._signals = state["stop"]
        self._good = _snapshot(self._student)
        self._advance()

    def _counts(self) -> dict[str, dict[str, int]]:
        now, before = self._problem.teacher.counts, self._counts_before
        return {phase: {way: now[phase][way] - before[phase][way] for way in now[phase]} for phase in now}

    def _synthesis(self) -> float:
        charged = self._problem.charged_seconds - self._charged_before
        return self._synthesis_before + self._watch.seconds() + charged

    def result(self, status: Status) -> Training:
        seconds = self._seconds(clock(self._problem.device))
        spent = self._synthesis()
        return Training(status, self._steps, seconds, spent, self._curve, self._state, self._counts(), self._flat_at)


def _copy(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {phase: dict(count) for phase, count in counts.items()}


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items() if isinstance(value, Tensor)}
