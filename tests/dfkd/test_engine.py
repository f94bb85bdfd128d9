"""The engine against a loop by hand, its budgets and rates, divergence, and what it leaves alone."""

import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from dfkd import checkpoint, runtime
from dfkd.engine import Budget, Optimiser, Training, train
from dfkd.losses import KL, LabelCrossEntropy, Objective, combine
from dfkd.problem import Probe, Problem
from dfkd.rng import Stream, derive, initialised
from dfkd.runtime import Bar
from dfkd.types import Batch, InputSpec, Outputs

SPEC = InputSpec((1, 4, 4), 3)
CPU = torch.device("cpu")


def net(seed: int, dropout: float = 0.0) -> nn.Sequential:
    with initialised(seed):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(64, 3),
        )


def problem(student_seed: int = 2, dropout: float = 0.0) -> Problem:
    teacher, student = Probe(net(1), SPEC), Probe(net(student_seed, dropout), SPEC, name="student")
    return Problem(teacher, student, SPEC, CPU)


@dataclass(frozen=True)
class Toy:
    """Uniform noise with labels; `spoil` and `after` are for the tests that need something to happen at a draw."""

    labelled: bool = True
    carried: bool = False
    mode: Literal["eval", "batch"] = "eval"
    spoil: int = 0  # the draw from which pixels are NaN
    signal_at: int = 0
    seen: list[Any] = field(default_factory=list, hash=False, compare=False)
    name: ClassVar[str] = "toy"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> Stream:
        return Stream(seed, problem.device)

    def draw(self, state: Stream, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn
        x = torch.rand(n, *problem.spec.shape, generator=state.advance())
        if self.spoil and state.step >= self.spoil:
            x = torch.full_like(x, torch.nan)
        if state.step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.seen.append(
            {
                "progress": problem.progress,
                "horizon": problem.horizon,
                "phase": problem.teacher.phase,
                "grad": torch.is_grad_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
            }
        )
        y = (x.sum(dim=(1, 2, 3)).nan_to_num().long() % 3) if self.labelled else None
        batch = Batch(x, y=y, labelling=((n, self.mode),))
        if self.carried:
            with torch.no_grad(), problem.teacher.counting("label"):
                batch = replace(batch, teacher=problem.teacher(x, self.mode))
        return batch

    def observe(self, state: Stream, batch: Batch, loss: Tensor) -> None:
        assert loss.shape == (len(batch),)
        assert not loss.requires_grad
        self.seen[-1]["observed"] = (state.step, loss.mean().item())


SGD = Optimiser(learning_rate=0.1, nesterov=True)
KL4 = combine({"kl": (1.0, KL(4.0))})


def by_hand(steps: int, batchnorm: str = "train", clip: float | None = None, n: int = 16) -> tuple[nn.Module, Tensor]:
    """The same run written out: plain torch, torch's own cosine schedule, a divergence of torch's own."""
    teacher, student = net(1).eval(), net(2).train()
    if batchnorm == "fixed":
        student[1].eval()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    stream, losses = Stream(derive(0, "sampler")), []
    for _ in range(steps):
        x = torch.rand(n, 1, 4, 4, generator=stream.advance())
        with torch.no_grad():
            target = log_softmax(teacher(x) / 4.0, dim=1)
        loss = 16.0 * kl_div(log_softmax(student(x) / 4.0, dim=1), target, log_target=True, reduction="batchmean")
        optimiser.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(student.parameters(), clip)
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    return student, torch.stack(losses)


def run(p: Problem, sampler: Any = None, steps: int = 20, **options: Any) -> Training:
    budget = options.pop("budget", Budget(batch=16, steps=steps))
    objective, optimiser = options.pop("objective", KL4), options.pop("optimiser", SGD)
    return train(p, sampler or Toy(), objective, budget, optimiser, options.pop("seed", 0), **options)


def assert_same(a: nn.Module, b: nn.Module, exactly: bool = True) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        if exactly:
            assert torch.equal(value, theirs[key]), key
        else:
            torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5)


# -- one step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batchnorm", "clip"), [("train", None), ("fixed", None), ("train", 0.05)])
def test_equals_the_loop_by_hand(batchnorm: str, clip: float | None) -> None:
    p = problem()
    training = run(p, student_batchnorm=batchnorm, optimiser=replace(SGD, clip=clip))
    student, losses = by_hand(20, batchnorm, clip)
    assert_same(p.student.module, student, exactly=False)
    torch.testing.assert_close(torch.tensor([line["loss"] for line in training.curve]), losses)
    assert (training.status, training.steps) == ("ok", 20)
    moved = p.student.module[1].running_mean  # type: ignore[index]
    assert bool(moved.abs().max() > 0) is (batchnorm == "train")


def test_the_clip_of_the_test_above_bites() -> None:
    free, clipped = by_hand(5)[0], by_hand(5, clip=0.05)[0]
    assert not torch.allclose(next(free.parameters()), next(clipped.parameters()))


def test_asks_the_sampler_under_the_agreed_conditions() -> None:
    sampler, p = Toy(), problem()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        run(p, sampler, steps=4)
    assert [seen["progress"] for seen in sampler.seen] == [0.0, 0.25, 0.5, 0.75]
    for step, seen in enumerate(sampler.seen, start=1):
        assert (seen["phase"], seen["grad"], seen["autocast"], seen["horizon"]) == ("synthesise", True, False, 4)
        assert seen["observed"][0] == step


def test_observes_the_rows_losses() -> None:
    sampler = Toy()
    training = run(problem(), sampler, steps=20)
    observed = [seen["observed"][1] for seen in sampler.seen]
    assert observed == pytest.approx([line["loss"] for line in training.curve], rel=1e-5)


def test_leaves_the_teacher_the_modes_and_the_generators_as_they_were() -> None:
    p = problem(dropout=0.3)
    p.teacher.module.train()
    p.student.module[1].eval()  # type: ignore[index]
    before = {key: value.clone() for key, value in p.teacher.module.state_dict().items()}
    modes = [part.training for part in (*p.teacher.module.modules(), *p.student.module.modules())]
    random, handler = torch.get_rng_state(), signal.getsignal(signal.SIGTERM)
    run(p, Toy(mode="batch"), steps=3)
    for key, value in p.teacher.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(q.grad is None and q.requires_grad for q in p.teacher.module.parameters())
    assert [part.training for part in (*p.teacher.module.modules(), *p.student.module.modules())] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert torch.is_grad_enabled()


class Slow(Toy):
    """Its draw is a search that does not end, in a process that is asked to, time and again."""

    def draw(self, *arguments: Any, **options: Any) -> Batch:
        if self.seen:
            for _ in range(6000):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
        return super().draw(*arguments, **options)


def test_a_step_that_takes_long_is_given_up_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was saved before stands, and the handler is as it was."""
    monkeypatch.setattr(runtime, "PATIENCE", 0.2)
    handler, file = signal.getsignal(signal.SIGTERM), tmp_path / "checkpoint"
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(problem(), Slow(), steps=3, checkpoint=file, checkpoint_seconds=0.0)
    assert 0.2 < time.monotonic() - began < 50.0
    assert signal.getsignal(signal.SIGTERM) is handler
    sampler = Toy()
    assert run(problem(), sampler, steps=3, checkpoint=file).steps == 3
    assert len(sampler.seen) == 2  # the first step was not made again


def test_saving_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the process is asked to end meanwhile, once the run has seen that it is to."""
    monkeypatch.setattr(runtime, "PATIENCE", 0.05)
    save, file = checkpoint.save, tmp_path / "checkpoint"

    def slowly(*words: Any) -> None:
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        save(*words)

    monkeypatch.setattr(checkpoint, "save", slowly)
    try:
        status: str = run(problem(), Toy(signal_at=2), steps=5, checkpoint=file).status
    except KeyboardInterrupt:
        status = "given up"
    assert status == "interrupted"
    monkeypatch.undo()
    sampler = Toy()
    assert run(problem(), sampler, steps=5, checkpoint=file).steps == 5
    assert len(sampler.seen) == 3


def test_gradients_that_a_student_comes_with_count_for_nothing_and_none_are_left() -> None:
    plain, given = problem(), problem()
    for parameter in given.student.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    seen: list[bool] = []

    class Looking(Toy):
        def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
            seen.append(any(q.grad is not None for q in problem.student.module.parameters()))
            return super().draw(state, problem, n, learn)

    for one in (plain, given):
        run(one, Looking(mode="batch"), steps=3)
    assert seen == [False] * 6
    for left, expected in zip(given.student.module.parameters(), plain.student.module.parameters(), strict=True):
        assert torch.equal(left, expected)
        assert left.grad is None


def test_dropout_draws_from_the_runs_own_stream() -> None:
    students = []
    for before in (0, 1):
        torch.manual_seed(before)
        p = problem(dropout=0.5)
        run(p, steps=3)
        students.append(p.student.module)
    assert_same(students[0], students[1])
    p = problem(dropout=0.0)
    run(p, steps=3)
    assert not torch.equal(p.student.module[0].weight, students[0][0].weight)  # type: ignore[index]


def test_counts_what_the_teacher_was_asked() -> None:
    p = problem()
    p.teacher.counts["label"]["forward"] = 1000  # of an earlier run
    training = run(p, steps=5)
    assert training.counts["label"] == {"forward": 80, "backward": 0}
    assert training.counts["synthesise"] == {"forward": 0, "backward": 0}
    assert p.teacher.counts["label"]["forward"] == 1080
    assert [line["teacher_images"] for line in training.curve] == [16, 32, 48, 64, 80]


def test_carried_answers_are_not_asked_again() -> None:
    carried, plain = problem(), problem()
    training = run(carried, Toy(carried=True), steps=5)
    assert training.counts["label"]["forward"] == 80  # by the sampler, once
    run(plain, steps=5)
    assert_same(carried.student.module, plain.student.module)


def test_a_teacher_that_no_loss_reads_is_not_asked() -> None:
    p = problem()
    training = run(p, objective=combine({"label": (1.0, LabelCrossEntropy())}), steps=5)
    assert training.counts["label"] == {"forward": 0, "backward": 0}
    assert training.curve[-1]["loss"] > 0


def test_labels_where_a_loss_needs_them() -> None:
    with pytest.raises(ValueError, match="label_ce: needs ground-truth labels"):
        run(problem(), Toy(labelled=False), objective=combine({"label": (1.0, LabelCrossEntropy())}), steps=2)


def test_a_student_without_parameters_is_refused() -> None:
    p = problem()
    p.student.module.requires_grad_(False)
    with pytest.raises(ValueError, match="student: expected parameters to train"):
        run(p)


# -- losses that need more than logits -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tapped:
    """Mean squared distance of two tapped maps, the student's through a trained factor where it is `adapted`."""

    adapted: bool = False
    input_grad: ClassVar[bool] = False
    scale: ClassVar[float] = 1.0
    coupled: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"student": ("0",), "teacher": ("0",)}

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del problem, seed
        return Factor() if self.adapted else None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        return (student.features["0"] - teacher.features["0"]).square().mean(dim=(1, 2, 3))


class Factor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        del batch
        return (self.factor * student.features["0"] - teacher.features["0"]).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Slopes:
    """Squared distance of the input gradients of ln sum exp of the logits; both keep their graph to x."""

    input_grad: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0
    coupled: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"student": (), "teacher": ()}

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del problem, seed
        return None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        (ours,) = torch.autograd.grad(student.logits.logsumexp(dim=1).sum(), batch.x, create_graph=True)
        (theirs,) = torch.autograd.grad(teacher.logits.logsumexp(dim=1).sum(), batch.x, create_graph=True)
        return (ours - theirs).square().sum(dim=(1, 2, 3))


def test_taps_reach_the_loss_and_leave_no_hook() -> None:
    p = problem()
    run(p, objective=combine({"tapped": (1.0, Tapped())}), steps=30)
    ours, theirs, first = (next(module.parameters()) for module in (p.student.module, p.teacher.module, net(2)))
    assert (ours - theirs).square().mean() < 0.5 * (first - theirs).square().mean()
    assert not any(part._forward_hooks for probe in (p.student, p.teacher) for part in probe.module.modules())


def test_adapters_are_trained_with_the_student() -> None:
    p, factors = problem(), []
    objective = combine({"tapped": (1.0, Tapped(adapted=True))})
    init = Objective.init

    def noted(self: Objective, problem: Problem, seed: int) -> nn.ModuleDict:
        factors.append(init(self, problem, seed))
        return factors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "init", noted)
        run(p, objective=objective, steps=10)
    assert next(factors[0].parameters()) != 2.0


def test_input_gradients_of_both_models() -> None:
    p = problem()
    training = run(p, Toy(), objective=combine({"slopes": (1.0, Slopes())}), steps=30)
    assert training.curve[-1]["loss"] < 0.7 * training.curve[0]["loss"]
    asked = 16 * 30
    assert training.counts["label"] == {"forward": asked, "backward": asked}  # once each: the student's step adds none
    assert all(q.grad is None for q in p.teacher.module.parameters())


def test_a_tap_that_is_not_there_is_named() -> None:
    @dataclass(frozen=True)
    class Misspelt(Tapped):
        needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"student": ("00",), "teacher": ()}

    with pytest.raises(ValueError, match="module path of the student: unknown '00'; the nearest is '0'"):
        run(problem(), objective=combine({"tapped": (1.0, Misspelt())}))


# -- budgets and rates -----------------------------------------------------------------------------------------------


def test_a_budget_of_teacher_images() -> None:
    training = run(problem(), budget=Budget(batch=16, teacher_images=100))
    assert training.steps == 7  # the first step at or past 100
    assert training.curve[-1]["teacher_images"] == 112


def test_a_budget_of_seconds() -> None:
    training = run(problem(), budget=Budget(batch=16, seconds=0.2))
    assert training.status == "ok"
    assert 0.2 <= training.seconds < 5.0
    assert training.curve[-1]["seconds"] >= 0.2
    assert 0.0 < training.synthesise_seconds < training.seconds


def test_the_first_limit_ends_the_run() -> None:
    assert run(problem(), budget=Budget(batch=16, steps=50, teacher_images=64)).steps == 4
    assert run(problem(), budget=Budget(batch=16, steps=3, teacher_images=64, seconds=1e6)).steps == 3


def test_the_monitor_joins_the_curve_and_costs_nothing() -> None:
    p = problem()
    calls: list[str] = []

    def monitor() -> dict[str, float]:
        with torch.no_grad():
            p.teacher(torch.zeros(8, 1, 4, 4))
        calls.append(p.teacher.phase)
        return {"agreement": 0.5}

    training = run(p, budget=Budget(batch=16, teacher_images=160), monitor=monitor, log_points=5)
    assert [line["step"] for line in training.curve] == [2, 4, 6, 8, 10]
    assert calls == ["evaluate"] * 5
    assert all(line["agreement"] == 0.5 for line in training.curve)
    assert training.counts["evaluate"]["forward"] == 40
    seconds = [line["seconds"] for line in training.curve]
    assert seconds == sorted(seconds)


def test_more_log_points_than_steps_give_one_line_per_step() -> None:
    training = run(problem(), steps=3, log_points=100)
    assert [line["step"] for line in training.curve] == [1, 2, 3]


@pytest.mark.parametrize("steps", [7, 200, 1000])
def test_the_last_rate_follows_the_configured_length(steps: int) -> None:
    last = (steps - 1) / steps
    assert Optimiser(learning_rate=0.3).rate(last) == pytest.approx(0.15 * (1 + math.cos(math.pi * last)))
    assert Optimiser(learning_rate=0.3).rate(0.0) == 0.3
    assert Optimiser(learning_rate=0.3).rate(1.0) == pytest.approx(0.0, abs=1e-12)
    assert Optimiser(learning_rate=0.3, schedule="constant").rate(last) == 0.3


def test_warm_up_rises_linearly_and_joins_the_schedule() -> None:
    optimiser = Optimiser(learning_rate=1.0, warmup=0.2)
    assert optimiser.rate(0.0) == pytest.approx(0.01)
    assert optimiser.rate(0.1) == pytest.approx(0.505)
    assert optimiser.rate(0.2) == pytest.approx(1.0)
    assert optimiser.rate(0.6) == pytest.approx(0.5)


def test_steps_are_torchs_own() -> None:
    parameter, steps = nn.Parameter(torch.zeros(1)), 500
    theirs = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(theirs, milestones=[100, 200], gamma=0.1)
    ours = Optimiser(learning_rate=0.3, schedule="steps", milestones=(0.2, 0.4))
    for step in range(steps):
        assert ours.rate(step / steps) == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()
    assert ours.rate(1.0) == pytest.approx(0.003)
    assert Optimiser(learning_rate=1.0, schedule="steps", milestones=(0.5,), decay=0.25).rate(0.5) == 0.25


def test_one_cycle_is_torchs_own() -> None:
    parameter, steps = nn.Parameter(torch.zeros(1)), 100
    theirs = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.5, total_steps=steps + 1)
    ours = Optimiser(learning_rate=0.5, schedule="one_cycle")
    rates = []
    for _ in range(steps + 1):
        rates.append(theirs.param_groups[0]["lr"])
        theirs.step()
        if len(rates) <= steps:
            schedule.step()
    assert max(rates) == pytest.approx(ours.rate(0.3), rel=1e-3)
    # torch rounds the turning point to a step
    assert [ours.rate(step / steps) for step in range(steps + 1)] == pytest.approx(rates, rel=0.05, abs=2e-3)


def test_adamw_follows_torchs_own() -> None:
    p = problem()
    run(p, steps=6, optimiser=Optimiser(name="adamw", learning_rate=0.01, weight_decay=0.1, schedule="constant"))
    student = net(2).train()
    adam = torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.1)
    stream = Stream(derive(0, "sampler"))
    for _ in range(6):
        x = torch.rand(16, 1, 4, 4, generator=stream.advance())
        target = log_softmax(net(1).eval()(x).detach() / 4.0, dim=1)
        loss = 16.0 * kl_div(log_softmax(student(x) / 4.0, dim=1), target, log_target=True, reduction="batchmean")
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert_same(p.student.module, student, exactly=False)


# -- divergence ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    p, good = problem(), problem()
    path = tmp_path / "run.pt"
    training = run(p, Toy(spoil=9), steps=20, log_points=5, checkpoint=path, checkpoint_seconds=1e9)
    assert training.status == "diverged"
    assert training.steps == 12  # found at the log point after the ninth step
    assert [line["step"] for line in training.curve] == [4, 8]
    assert all(math.isfinite(line["loss"]) for line in training.curve)
    # the student is that of the last finite point: the eighth step of the same run
    run(good, Toy(signal_at=8), steps=20, log_points=5)
    assert_same(p.student.module, good.student.module)
    assert not path.exists()  # nothing had been saved, and nothing bad was


def test_the_checkpoint_is_never_overwritten_by_a_diverged_run(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    training = run(problem(), Toy(spoil=9), steps=20, log_points=1, checkpoint=path, checkpoint_seconds=0.0)
    assert (training.status, training.steps) == ("diverged", 9)
    saved = torch.load(path, weights_only=True)["ranks"][0]
    assert saved["steps"] == 8
    assert all(value.isfinite().all() for value in saved["student"].values())


def test_a_run_that_never_was_finite_gives_the_first_student_back() -> None:
    p = problem()
    training = run(p, Toy(spoil=1), steps=4)
    assert (training.status, training.curve) == ("diverged", [])
    assert_same(p.student.module, net(2))


def test_a_rate_that_is_too_large_is_found_in_the_parameters() -> None:
    training = run(problem(), optimiser=Optimiser(learning_rate=1e30, schedule="constant"), steps=20)
    assert training.status == "diverged"


# -- interruption ----------------------------------------------------------------------------------------------------


def test_interrupted_and_continued_equals_uninterrupted(tmp_path: Path) -> None:
    whole, parts = problem(dropout=0.3), problem(dropout=0.3)
    path = tmp_path / "run.pt"
    expected = run(whole, steps=20, log_points=7)
    first = run(parts, Toy(signal_at=7), steps=20, log_points=7, checkpoint=path)
    assert (first.status, first.steps) == ("interrupted", 7)
    again = problem(student_seed=9, dropout=0.3)  # its own start must not matter
    again.teacher.counts["label"]["forward"] = 1000  # nor what the teacher was asked before
    second = run(again, Toy(), steps=20, log_points=7, checkpoint=path)
    assert (second.status, second.steps, second.counts) == ("ok", 20, expected.counts)
    assert again.teacher.counts["label"]["forward"] == 1320
    assert_same(again.student.module, whole.student.module)
    assert second.sampler_state.state_dict() == expected.sampler_state.state_dict()
    assert [{**line, "seconds": 0} for line in second.curve] == [{**line, "seconds": 0} for line in expected.curve]
    assert second.seconds > first.seconds
    third = run(problem(student_seed=9, dropout=0.3), Toy(spoil=1), steps=20, log_points=7, checkpoint=path)
    assert (third.status, third.steps, third.curve) == ("ok", 20, second.curve)  # finished: nothing is done again


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"steps": 30},
        {"student_batchnorm": "fixed"},
        {"identity": "teacher b"},
        {"optimiser": replace(SGD, learning_rate=0.2)},
    ],
)
def test_a_checkpoint_belongs_to_one_run(tmp_path: Path, other: dict[str, Any]) -> None:
    path = tmp_path / "run.pt"
    run(problem(), steps=2, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to another run"):
        run(problem(), **{"steps": 2, "checkpoint": path, **other})
    assert path.read_bytes() == before


def test_sigterm_ends_the_run_without_a_checkpoint_too() -> None:
    training = run(problem(), Toy(signal_at=3), steps=20)
    assert (training.status, training.steps) == ("interrupted", 3)


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(), "budget: expected at least one of steps"),
        (lambda: Budget(batch=0, steps=1), "batch: expected an integer >= 1, found 0"),
        (lambda: Budget(steps=0), "steps: expected an integer >= 1, found 0"),
        (lambda: Budget(steps=True), "steps: expected an integer >= 1, found True"),
        (lambda: Budget(teacher_images=-5), "teacher_images: expected an integer >= 1, found -5"),
        (lambda: Budget(seconds=0.0), "seconds: expected a number > 0, found 0.0"),
        (lambda: Budget(seconds=math.nan), "seconds: expected a number > 0, found nan"),
        (lambda: Optimiser(name="sdg"), "optimiser: unknown 'sdg'; the nearest is 'sgd'"),
        (lambda: Optimiser(schedule="cosin"), "schedule: unknown 'cosin'; the nearest is 'cosine'"),
        (lambda: Optimiser(learning_rate=0.0), "learning_rate: expected a number > 0, found 0.0"),
        (lambda: Optimiser(momentum=1.0), "momentum: expected a number >= 0 and < 1, found 1.0"),
        (lambda: Optimiser(momentum=0.0, nesterov=True), "nesterov: expected a momentum > 0"),
        (lambda: Optimiser(weight_decay=-1.0), "weight_decay: expected a number >= 0, found -1.0"),
        (lambda: Optimiser(warmup=1.0), "warmup: expected a number >= 0 and < 1, found 1.0"),
        (lambda: Optimiser(schedule="steps"), r"milestones: expected fractions of the run, such as .* found \(\)"),
        (lambda: Optimiser(milestones=(0.5,)), r"milestones: expected none without schedule steps, found \(0.5,\)"),
        (lambda: Optimiser(schedule="steps", milestones=(0.5, 0.5)), "milestones: expected rising numbers in"),
        (lambda: Optimiser(schedule="steps", milestones=(0.5, 1.0)), "milestones: expected rising numbers in"),
        (lambda: Optimiser(schedule="steps", milestones=(0.0, 0.5)), "milestones: expected rising numbers in"),
        (lambda: Optimiser(schedule="steps", milestones=(0.5,), decay=1.0), "decay: expected a number > 0 and < 1"),
        (lambda: Optimiser(clip=0.0), "clip: expected a number > 0, found 0.0"),
    ],
)
def test_refuses_settings_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_a_mode_the_student_does_not_have() -> None:
    with pytest.raises(ValueError, match="student_batchnorm: expected train or fixed, found 'eval'"):
        run(problem(), student_batchnorm="eval")
    with pytest.raises(ValueError, match="log_points: expected an integer >= 1"):
        run(problem(), log_points=0)


# -- precision, progress ---------------------------------------------------------------------------------------------


def test_bfloat16_asks_both_models_in_it_and_sums_in_float32() -> None:
    teacher = Probe(net(1), SPEC, precision="bfloat16", channels_last=True)
    student = Probe(net(2), SPEC, name="student", precision="bfloat16", channels_last=True)
    dtypes: set[tuple[str, torch.dtype]] = set()
    for probe in (teacher, student):
        probe.module[0].register_forward_hook(  # type: ignore[index]
            lambda _, __, output, name=probe.name: dtypes.add((name, output.dtype))
        )
    p = Problem(teacher, student, SPEC, CPU)
    training = run(p, steps=20)
    assert dtypes == {("teacher", torch.bfloat16), ("student", torch.bfloat16)}
    exact = run(problem(), steps=20)
    assert training.curve[-1]["loss"] == pytest.approx(exact.curve[-1]["loss"], rel=0.1)
    assert all(q.dtype == torch.float32 for q in student.module.parameters())


def test_a_pipe_gets_no_progress_bar(capfd: pytest.CaptureFixture[str]) -> None:
    run(problem(), steps=3, show_progress=True)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_one_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "write", written.append)
    bar = Bar("toy [not markup]", shown=True)
    for seconds, drawn in ((1.9, False), (2.1, True)):
        now[0] = seconds
        bar.update(0.5)
        assert bar.drawn is drawn
    bar.close()
    assert "toy [not markup]" in "".join(written)
