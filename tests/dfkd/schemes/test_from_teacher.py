"""Students that start between a fresh network and their teacher: where, whether exactly, and what is refused."""

import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd import Budget, Evaluation, models
from dfkd.fidelity import recalibrated
from dfkd.problem import Problem
from dfkd.rng import derive, initialised
from dfkd.schemes import Ensemble, FromTeacher, Together
from dfkd.schemes.mean_teacher import MeanTeacher
from dfkd.schemes.mutual import Mutual
from dfkd.schemes.offline import make_problem, make_student, make_trained
from dfkd.schemes.one import ONE
from dfkd.schemes.statistics import estimate_statistics
from dfkd.types import Batch, InputSpec
from samplers import Pooled, Uniform

SPEC = InputSpec((1, 8, 8), 4)
Command = Callable[..., Any]


def fresh() -> nn.Module:
    return models.build("digits_cnn", SPEC, width=3)


def teacher(**options: Any) -> nn.Module:
    with initialised(8):
        module = models.build("digits_cnn", SPEC, **{"width": 3} | options)
        for _ in range(3):
            module.train()(torch.rand(16, *SPEC.shape))
    return module.eval()


def started(share: float, seed: int = 5) -> dict[str, Tensor]:
    return make_student(FromTeacher(fresh, share), SPEC, seed, teacher()).state_dict()


def test_at_1_it_is_the_teacher_bit_for_bit() -> None:
    wanted = teacher().state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in started(1.0).items())
    assert float(wanted["bn1.num_batches_tracked"]) == 3.0


def test_at_0_it_is_a_fresh_student_bit_for_bit() -> None:
    wanted = make_student(fresh, SPEC, 5).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in started(0.0).items())


@pytest.mark.parametrize("share", [0.25, 0.875])
def test_between_a_fresh_network_and_the_teacher(share: float) -> None:
    ours, theirs = make_student(fresh, SPEC, 5).state_dict(), teacher().state_dict()
    for key, value in started(share).items():
        if key.endswith("num_batches_tracked"):
            assert torch.equal(value, ours[key])
        else:
            torch.testing.assert_close(value, share * theirs[key] + (1.0 - share) * ours[key])
    assert not torch.equal(started(share)["conv1.weight"], started(share, seed=6)["conv1.weight"])


def test_the_teacher_and_what_it_starts_from_are_left_alone() -> None:
    module, whole = fresh(), teacher()
    before = [{key: value.clone() for key, value in net.state_dict().items()} for net in (module, whole)]
    make_student(FromTeacher(module, 0.5), SPEC, 0, whole)
    for net, old in zip((module, whole), before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in net.state_dict().items())


def test_without_a_teacher_it_is_the_architecture_alone() -> None:
    wanted = make_student(fresh, SPEC, 5).state_dict()
    found = make_student(FromTeacher(fresh, 1.0), SPEC, 5).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    assert pickle.loads(pickle.dumps(FromTeacher("digits_cnn", 0.5))) == FromTeacher("digits_cnn", 0.5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (teacher(width=4), r"found \(3, 1, 3, 3\) of the student and \(4, 1, 3, 3\) of the teacher at 'conv1.weight'"),
        (teacher(norm="group"), r"found \(3,\) of the student and nothing of the teacher at 'bn1.running_mean'"),
        (Ensemble([teacher()]), "found .* of the student and nothing of the teacher at 'conv1.weight'"),
        (nn.Sequential(), "found .* of the student and nothing of the teacher"),
    ],
)
def test_another_architecture_is_refused_by_its_first_key(other: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=f"from_teacher: expected a student of the teacher's architecture, {message}"):
        make_student(FromTeacher(fresh, 0.5), SPEC, 0, other)
    more = teacher()
    more.add_module("late", nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"found nothing of the student and \(2, 2\) of the teacher at 'late.weight'"):
        make_student(FromTeacher(fresh, 0.5), SPEC, 0, more)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True])
def test_a_share_that_is_none(share: Any) -> None:
    with pytest.raises(ValueError, match="from_teacher: expected a number from 0 to 1, found"):
        FromTeacher("digits_cnn", share)


def distilled(share: float, checkpoint: Path | None = None, stop_at: int = 0, norm: str = "batch", **words: Any) -> Any:
    seen: list[int] = []

    def monitor(problem: Problem) -> dict[str, float]:
        del problem
        seen.append(1)
        if len(seen) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    student = FromTeacher(lambda: models.build("digits_cnn", SPEC, width=3, norm=norm), share)
    budget = Budget(steps=6, batch=8)
    return dfkd.distill(
        teacher(norm=norm), student, Uniform(), spec=SPEC, budget=budget, device="cpu", checkpoint=checkpoint,
        monitor=monitor, **words,
    )  # fmt: skip


def test_a_run_begins_there_and_continues_exactly(tmp_path: Path) -> None:
    whole = distilled(0.5, tmp_path / "whole").student.state_dict()
    assert distilled(0.5, tmp_path / "halved", stop_at=2).training.status == "interrupted"
    halved = distilled(0.5, tmp_path / "halved").student.state_dict()
    assert all(torch.equal(value, halved[key]) for key, value in whole.items())
    with pytest.raises(ValueError, match=r"checkpoint: .* belongs to another run"):
        distilled(0.25, tmp_path / "halved")


def test_the_nearer_the_start_the_nearer_the_student() -> None:
    """After a short training at a small rate, by KL on noise."""
    words: dict[str, Any] = {"optimiser": dfkd.Optimiser(learning_rate=1e-3), "seed": 2}
    x = torch.rand(64, *SPEC.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        target = teacher(norm="group")(x).log_softmax(dim=1)
        apart = [
            float(
                (target.exp() * (target - distilled(share, norm="group", **words).student(x).log_softmax(dim=1))).sum()
            )
            for share in (0.0, 0.5, 1.0)
        ]
    assert apart[2] < 0.1 * apart[1] < 0.1 * apart[0]


STILL: dict[str, Any] = {"optimiser": dfkd.Optimiser(learning_rate=1e-12), "student_batchnorm": "fixed"}
FIRST = 512  # rows that the statistics are of, in draws of 8


def stored(module: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in module.state_dict().items() if "running" in key}


@pytest.mark.parametrize("scheme", [None, Mutual(), MeanTeacher(), MeanTeacher(keeps="online"), ONE("bn1", 2)])
def test_in_between_the_statistics_are_those_of_its_own_layers_on_the_first_draws(scheme: Any) -> None:
    """Weights and statistics stand still: what is stored is what the layers are given, not what the two ends stored."""
    student: Any = FromTeacher(fresh, 0.5)
    words = {"spec": SPEC, "budget": Budget(steps=2, batch=8), "device": "cpu", **STILL}
    done = dfkd.distill(teacher(), student if scheme is None else Together(student, scheme), Uniform("eval"), **words)
    draws = Uniform("eval")
    state = draws.init(done.problem, derive(0, "sampler"))
    x = torch.cat([draws.draw(state, done.problem, 8).x for _ in range(FIRST // 8)])
    wanted, blended = stored(recalibrated(done.student, x, SPEC)), started(0.5, seed=0)
    for key, value in stored(done.student).items():
        torch.testing.assert_close(value, wanted[key], atol=1e-6, rtol=1e-5)
    assert any(float((value - blended[key]).abs().max()) > 0.05 for key, value in wanted.items())
    assert done.training.counts["label"]["forward"] == 2 * 8
    assert done.training.sampler_state.stream.step == FIRST // 8 + 2  # draws of the run


def test_other_members_have_statistics_of_their_own() -> None:
    cohort = make_trained(Together(FromTeacher(fresh, 0.5), Mutual()), SPEC, 5, teacher())
    problem = make_problem(teacher(), cohort, SPEC, device="cpu")
    state = Uniform("eval").init(problem, 1)
    estimate_statistics(problem, Uniform("eval"), state, 300)
    assert state.stream.step == 2
    again = Uniform("eval").init(problem, 1)
    x = torch.cat([Uniform("eval").draw(again, problem, 300).x for _ in range(2)])
    members = list(problem.student.module.get_submodule("members").children())
    assert len(members) == 2
    for member in members:
        for key, value in stored(recalibrated(member, x, SPEC)).items():
            torch.testing.assert_close(stored(member)[key], value)
    one, other = map(stored, members)
    assert not torch.equal(one["bn2.running_var"], other["bn2.running_var"])


@pytest.mark.parametrize(("share", "norm"), [(0.0, "batch"), (1.0, "batch"), (0.5, "group")])
def test_at_both_ends_and_without_batchnorm_nothing_is_estimated(share: float, norm: str) -> None:
    done = distilled(share, norm=norm, **STILL)
    module = models.build("digits_cnn", SPEC, width=3, norm=norm)
    wanted = make_student(FromTeacher(module, share), SPEC, 0, teacher(norm=norm))
    assert all(torch.equal(value, stored(wanted)[key]) for key, value in stored(done.student).items())
    assert done.training.sampler_state.stream.step == 6


@dataclass(frozen=True)
class Nothing(Uniform):
    """Images that are not finite."""

    def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
        batch = super().draw(state, problem, n, learn)
        return batch.with_x(batch.x + torch.nan)


def test_a_sampler_that_finds_nothing_finite_ends_the_run_as_diverged() -> None:
    done = dfkd.distill(
        teacher(), FromTeacher(fresh, 0.5), Pooled(Nothing(), round=8), spec=SPEC, budget=Budget(steps=2, batch=8)
    )  # fmt: skip
    assert done.training.status == "diverged"


def test_in_a_scheme_every_member_starts_there() -> None:
    module = make_trained(Together(FromTeacher(fresh, 0.5), Mutual()), SPEC, 5, teacher())
    wanted = started(0.5)
    assert all(torch.equal(value, wanted[key]) for key, value in module.members[0].state_dict().items())  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="members that start from the same weights stay the same"):
        make_trained(Together(FromTeacher(fresh, 1.0), Mutual()), SPEC, 5, teacher())


def test_in_a_comparison_the_student_at_1_is_the_teacher(tmp_path: Path) -> None:
    found = dfkd.compare(
        teacher(), FromTeacher(fresh, 1.0), [Uniform("eval")], spec=SPEC, seeds=[0],
        budget=Budget(steps=1, batch=4), optimiser=dfkd.Optimiser(learning_rate=1e-12), student_train="fixed",
        evaluate=Evaluation(columns=("uniform",), rows=20), out=tmp_path / "out",
    )  # fmt: skip
    values = {line.metric: line.value for line in found.lines}
    assert values["agreement"] == 1.0
    assert values["kl"] == pytest.approx(0.0, abs=1e-9)
    assert values["cka@penultimate"] == pytest.approx(1.0)


def test_on_the_command_line(run: Command, tmp_path: Path, teachers: tuple[Path, Path]) -> None:
    words = [f"teacher={teachers[0]}", "sampler=uniform", "budget.steps=1", "budget.batch=4", "student.from_teacher=1"]
    words += ["optimiser.learning_rate=1e-12", "student_train=fixed"]
    assert (
        run("distill", *words, "student.model=digits_cnn", "student.options.width=4", "--out", tmp_path / "a").status
        == 0
    )
    first, second = (dfkd.load(path).state_dict() for path in (teachers[0], tmp_path / "a/student.safetensors"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value)
    for changed, part in (
        ("student.options.width=5", "from_teacher: expected a student of the teacher's architecture"),
        ("student.from_teacher=2", "student: from_teacher: expected a number from 0 to 1, found 2.0"),
    ):
        said = run("distill", *words, "student.model=digits_cnn", changed, "--out", tmp_path / "b")
        assert said.status == 2
        assert part in said.err
        assert not (tmp_path / "b").exists()
