"""Losses on parts: each source of inputs and each member of an ensemble with its own temperature and weight."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd import config, models
from dfkd.losses import (
    CKA,
    DKD,
    FKD,
    KL,
    At,
    Features,
    Jacobian,
    LabelCrossEntropy,
    Objective,
    OfSources,
    RKDAngle,
    SampledLabel,
    combine,
)
from dfkd.losses.parts import check_sources
from dfkd.losses.response import kl_nats
from dfkd.problem import PENULTIMATE, Probe, Problem, UnsupportedProblem
from dfkd.rng import derive, initialised
from dfkd.schemes import Ensemble, Together
from dfkd.schemes.mutual import Mutual
from dfkd.types import Batch, InputSpec, Outputs, UnlabelledBatch
from samplers import Mixture, Mixup, Pooled, Real, Uniform

N, K = 7, 4
SPEC = InputSpec((1, 8, 8), K)
GENERATOR = torch.Generator().manual_seed(51)
STUDENT, TEACHER = 2.0 * torch.randn(2, N, K, generator=GENERATOR)
SOURCE = torch.tensor([0, 2, 1, 0, 1, 2, 0])
X = torch.rand(N, *SPEC.shape, generator=GENERATOR)
BATCH = Batch(X, source=SOURCE)


def answered(logits: Tensor) -> Outputs:
    return Outputs(logits, {PENULTIMATE: logits})


def net(seed: int, width: int = 3) -> nn.Module:
    with initialised(seed):
        return models.build("digits_cnn", SPEC, width=width)


def problem_of(teacher: nn.Module, student: nn.Module) -> Problem:
    return Problem(Probe(teacher, SPEC), Probe(student, SPEC, name="student"), SPEC, torch.device("cpu"))


# -- sources -----------------------------------------------------------------------------------------------------------


def test_each_source_has_its_own_temperature_and_weight() -> None:
    """The mean over all rows of w tau^2 KL at the source's own w and tau, row by row; and its slope."""
    settings = {0: (1.0, 4.0), 1: (0.3, 20.0), 2: (2.0, 1.0)}
    spec = {
        f"part {s}": {"loss": "kl", "sources": [s], "weight": w, "temperature": t} for s, (w, t) in settings.items()
    }
    objective = config.objective(spec)
    student = STUDENT.clone().requires_grad_(True)
    found = objective(answered(student), answered(TEACHER), BATCH)
    slow = torch.zeros(())
    for row, source in enumerate(SOURCE.tolist()):
        weight, tau = settings[source]
        slow = slow + weight * tau**2 * kl_nats(student[row, None], TEACHER[row, None], tau)[0] / N
    torch.testing.assert_close(found.total, slow)
    slopes = [torch.autograd.grad(total, student, retain_graph=True)[0] for total in (found.total, slow)]
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(found.rows.mean(), found.total.detach())


def test_all_sources_together_are_the_loss_itself() -> None:
    both = answered(STUDENT), answered(TEACHER)
    assert torch.equal(OfSources(KL(3.0), (0, 1, 2))(*both, BATCH), KL(3.0)(*both, BATCH))
    torch.testing.assert_close(OfSources(CKA(), (2, 1, 0))(*both, BATCH), CKA()(*both, BATCH))


@pytest.mark.parametrize("loss", [CKA(), FKD(), dfkd.losses.DIST(), dfkd.losses.RKDAngle()], ids=lambda loss: loss.name)
def test_rows_that_depend_on_one_another_do_so_among_their_own(loss: Any) -> None:
    student = STUDENT.clone().requires_grad_(True)
    values = OfSources(loss, (0,))(answered(student), answered(TEACHER), BATCH)
    mine = SOURCE == 0
    alone = loss(answered(STUDENT[mine]), answered(TEACHER[mine]), Batch(X[mine]))
    torch.testing.assert_close(values[mine].detach(), alone)
    assert values[~mine].abs().max() == 0.0
    (slope,) = torch.autograd.grad(values.sum(), student)
    assert slope[~mine].abs().max() == 0.0
    assert slope[mine].abs().max() > 1e-5


def test_a_source_that_drew_nothing_counts_nothing() -> None:
    for loss in (KL(), CKA()):
        assert OfSources(loss, (5,))(answered(STUDENT), answered(TEACHER), BATCH).abs().max() == 0.0


def test_slopes_and_adapters_of_one_source() -> None:
    problem = problem_of(net(1), net(2, width=2))
    x = X.clone().requires_grad_(True)
    given = replace(BATCH, x=x)
    for loss in (Jacobian(), Features((("conv3", "conv3"),))):
        part = OfSources(loss, (1,))
        call, whole = part.init(problem, 3), loss.init(problem, 3)
        assert call is not None
        assert whole is not None
        with problem.student.taps("conv3"), problem.teacher.taps("conv3"):
            answers = problem.student(x), problem.teacher(x)
            values, plain = call(*answers, given), whole(*answers, given)
        torch.testing.assert_close(values, torch.where(SOURCE == 1, plain, 0.0))
        assert plain.min() > 0.0


@pytest.mark.parametrize("sources", [(), "01", (-1,), (True,), (0.5,), 3])
def test_sources_that_are_none(sources: Any) -> None:
    with pytest.raises(ValueError, match="sources: expected places of parts, from 0, found"):
        OfSources(KL(), sources)


def test_inputs_without_sources_and_parts_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="sources: expected inputs from several parts, such as a mixture's"):
        OfSources(KL(), (0,))(answered(STUDENT), answered(TEACHER), Batch(X))
    objective = config.objective({"kl": {}, "on noise": {"loss": "kl", "sources": [0, 2]}})
    message = r"objective.on noise.sources: expected places from 0 to 1, found \[0, 2\], while (mixture|pooled) has 2"
    for sampler in (Mixture((Uniform(), Uniform("eval"))), Pooled(Mixture((Uniform(), Uniform("eval"))))):
        with pytest.raises(ValueError, match=message):
            check_sources(objective.terms, sampler)
    check_sources(objective.terms, Mixture((Uniform(), Uniform("eval"), Uniform())))
    with pytest.raises(ValueError, match=message):
        dfkd.distill(
            net(0), net(1), Mixture((Uniform(), Uniform("eval"))), spec=SPEC, objective=objective, device="cpu"
        )


def test_two_temperatures_in_a_run_continue_exactly(tmp_path: Any) -> None:
    """A loss that draws, on one source, in a mixture of two BatchNorm modes."""
    objective = combine({"kl": (1.0, OfSources(KL(4.0), (0,))), "drawn": (0.5, OfSources(SampledLabel(2.0), (1,)))})
    states = []
    for steps in ((6,), (3, 6)):
        for place, until in enumerate(steps):
            done = run(objective, tmp_path / f"{len(steps)}", until, interrupted=place + 1 < len(steps))
        states.append(done.student.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def run(objective: Objective, checkpoint: Any, steps: int, interrupted: bool) -> Any:
    seen: list[int] = []

    def monitor(problem: Problem) -> dict[str, float]:
        import os
        import signal

        del problem
        seen.append(1)
        if interrupted and len(seen) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    sampler = Mixture((Uniform("eval"), Uniform("batch")))
    budget = dfkd.Budget(steps=6, batch=8)
    words: dict[str, Any] = {"spec": SPEC, "objective": objective, "budget": budget, "device": "cpu"}
    return dfkd.distill(net(1), net(2), sampler, checkpoint=checkpoint, monitor=monitor, **words)


# -- members of an ensemble --------------------------------------------------------------------------------------------


def asked(objective: Objective, problem: Problem) -> Tensor:
    """The total on X."""
    adapters = objective.init(problem, 0)
    with problem.student.taps(*objective.needs["student"]):
        student = problem.student(X)
    teacher = problem.label(Batch(X), objective.needs["teacher"])
    return objective(student, teacher, Batch(X), adapters).total


@pytest.mark.parametrize("name", ["kl", "logit_mse", "hard_label", "dist", "fkd"])
def test_a_term_for_each_member_is_the_mean_over_them_as_teachers(name: str) -> None:
    members, student = [net(1), net(2, width=5), net(3)], net(9)
    found = asked(
        config.objective({name: {"members": [0, 1, 2], "weight": 3.0}}), problem_of(Ensemble(members), student)
    )
    apart = [asked(config.objective({name: {}}), problem_of(member, student)) for member in members]
    torch.testing.assert_close(found, torch.stack(apart).mean() * 3.0)
    assert apart[0] != apart[1]


def test_equal_members_are_one_teacher() -> None:
    student = net(9)
    several = problem_of(Ensemble([net(1) for _ in range(4)]), student)
    one = asked(combine({"kl": (1.0, KL(4.0))}), problem_of(net(1), student))
    torch.testing.assert_close(
        asked(config.objective({"kl": {"temperature": 4.0, "members": [0, 1, 2, 3]}}), several), one
    )


def test_members_may_differ_in_temperature_and_weight() -> None:
    members, student = [net(1), net(2)], net(9)
    spec = {
        "sure": {"loss": "kl", "members": [0], "temperature": 1.0},
        "soft": {"loss": "kl", "members": [1], "temperature": 8.0, "weight": 0.2},
    }
    objective = config.objective(spec)
    assert list(objective.terms) == ["sure of member 0", "soft of member 1"]
    parts = [
        asked(combine({"kl": (w, KL(t))}), problem_of(m, student))
        for m, w, t in zip(members, (1.0, 0.2), (1.0, 8.0), strict=True)
    ]
    torch.testing.assert_close(asked(objective, problem_of(Ensemble(members), student)), parts[0] + parts[1])


def test_slopes_of_a_member(tmp_path: Any) -> None:
    """In a run, with the member of another architecture asked through the ensemble."""
    objective = config.objective(
        {"kl": {}, "jacobian": {"members": [1]}, "features": {"pairs": [["conv3", "conv3"]], "members": [0]}}
    )
    done = dfkd.distill(
        Ensemble([net(1), net(2, width=4)]),
        net(9),
        Uniform(),
        spec=SPEC,
        objective=objective,
        budget=dfkd.Budget(steps=2, batch=4),
        device="cpu",
        checkpoint=tmp_path / "c",
    )
    assert done.training.status == "ok"


def test_a_member_that_is_not_there() -> None:
    problem = problem_of(Ensemble([net(1), net(2)]), net(9))
    with pytest.raises(ValueError, match=r"module path of the teacher: unknown 'members\.2'; the nearest is 'members"):
        config.objective({"kl": {"members": [2]}}).init(problem, 0)
    with pytest.raises(ValueError, match=r"module path of the teacher: unknown 'members\.0'"):
        config.objective({"kl": {"members": [0]}}).init(problem_of(net(1), net(9)), 0)


# -- on a network inside -----------------------------------------------------------------------------------------------


def test_penultimate_features_of_networks_inside() -> None:
    members = [net(1), net(2, width=5)]
    problem = problem_of(Ensemble(members), net(9))
    with problem.teacher.taps("members.1.penultimate", "members.0.penultimate"):
        features = problem.teacher(X).features
    for place, member in enumerate(members):
        probe = Probe(member, SPEC)
        with probe.taps(PENULTIMATE):
            assert torch.equal(features[f"members.{place}.penultimate"], probe(X).features[PENULTIMATE])
    message = "tap 'members.0.bn1.penultimate': needs a teacher with penultimate"
    with pytest.raises(UnsupportedProblem, match=message), problem.teacher.taps("members.0.bn1.penultimate"):
        pass


def test_penultimate_features_of_an_ensemble_are_its_members() -> None:
    problem = problem_of(Ensemble([net(1), net(2, width=5)]), net(9))
    said = r"^objective.fkd: tap 'penultimate': needs .*; there is members.0.penultimate and members.1.penultimate$"
    with pytest.raises(UnsupportedProblem, match=said):
        config.objective({"fkd": {}}).init(problem, 0)
    config.objective({"fkd": {"teacher": ["members.0.penultimate", "members.1.penultimate"]}}).init(problem, 0)
    config.objective({"fkd": {"members": [0, 1]}}).init(problem, 0)


def test_students_that_are_trained_together_are_each_taught_by_features() -> None:
    """The second member too, which is asked in training only."""
    student = Together(lambda: models.build("digits_cnn", SPEC, width=2), Mutual())
    objective = combine({"kl": (1.0, KL()), "fkd": (30.0, FKD())})
    done = dfkd.distill(
        net(1), student, Uniform(), spec=SPEC, objective=objective, budget=dfkd.Budget(steps=2, batch=4), device="cpu"
    )
    assert done.training.status == "ok"


def test_what_warms_up_does_so_on_a_network_inside_too() -> None:
    problem = problem_of(Ensemble([net(1)]), net(9))
    loss = DKD(warmup=0.5)
    call = At("members.0", loss, "teacher").init(problem, 0)
    assert call is not None
    student, teacher = Outputs(STUDENT), Outputs(TEACHER, {"members.0": TEACHER})
    problem.horizon = 100
    for progress in (0.0, 0.24, 0.7):
        problem.progress = progress
        expected = min((progress + 0.01) / 0.5, 1.0) * loss(student, teacher, Batch(X))
        torch.testing.assert_close(call(student, teacher, Batch(X)), expected)


# -- as settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"noise": {"sources": [1]}}, r"^objective: unknown 'noise'"),
        ({"noise": {"loss": "kll"}}, r"^objective.noise.loss: unknown 'kll'; the nearest is 'kl'$"),
        ({"noise": {"loss": 3}}, r"^objective.noise.loss: expected text, found 3$"),
        ({"kl": {"sources": []}}, r"^objective.kl.sources: expected places of parts, from 0, found \(\)$"),
        ({"kl": {"sources": [-1]}}, r"^objective.kl.sources: expected places of parts, from 0, found \(-1,\)$"),
        ({"kl": {"sources": "real"}}, r"^objective.kl.sources: expected a list, each a whole number or null"),
        ({"kl": {"members": []}}, r"^objective.kl.members: expected different places of members, from 0, found \[\]"),
        ({"kl": {"members": [0, 0]}}, r"^objective.kl.members: expected different places of members, .* \[0, 0\]$"),
        ({"a": {"loss": "kl", "temprature": 2}}, r"^objective.a: option: unknown 'temprature'; the nearest is 'temp"),
    ],
)  # fmt: skip
def test_wrong_settings(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.objective(spec)


def test_settings_make_the_same_as_words_in_python() -> None:
    spec = {"soft": {"loss": "kl", "temperature": 9.0, "sources": [1, 0], "members": [2], "weight": 0.5}}
    loss = OfSources(KL(9.0), (1, 0))
    assert config.objective(spec).terms == {"soft of member 2": (0.5, At("members.2", loss, "teacher"))}
    assert spec["soft"]["loss"] == "kl"  # what was read is as it was


def test_labels_are_those_of_the_real_part_alone_of_rows_that_have_some(quadrants: Any) -> None:
    """Cross-entropy on labelled rows beside inputs that nobody has labelled, in a run, and by hand."""
    objective = config.objective({"kl": {}, "label_ce": {"sources": [1]}})
    words: dict[str, Any] = {"spec": SPEC, "budget": dfkd.Budget(steps=1, batch=8), "device": "cpu"}
    for first in (Real(str(quadrants)), Uniform("eval"), Mixture((Uniform("eval"), Uniform("eval")))):
        sampler = Mixture((first, Real(str(quadrants))), weights=(3.0, 5.0))
        assert dfkd.distill(net(1), net(2), sampler, objective=objective, **words).training.status == "ok"
    problem = problem_of(net(1), net(2))
    real = Real(str(quadrants))
    sampler = Mixture((Uniform("eval"), real), weights=(3.0, 5.0))
    batch = sampler.draw(sampler.init(problem, 1), problem, 8)
    assert batch.y is None
    assert (batch.known is not None, batch.labelled) == (True, (1,))
    truth = real.draw(real.init(problem, derive(1, "part", 1)), problem, 5).y
    assert truth is not None
    logits = problem.student(batch.x).logits.detach()
    found = OfSources(LabelCrossEntropy(), (1,))(Outputs(logits), Outputs(logits), batch)
    expected = torch.cat([torch.zeros(3), torch.nn.functional.cross_entropy(logits[3:], truth, reduction="none")])
    torch.testing.assert_close(found, expected)
    order = torch.tensor([7, 0, 4])
    again = OfSources(LabelCrossEntropy(), (1,))(Outputs(logits[order]), Outputs(logits[order]), batch.rows(order))
    torch.testing.assert_close(again, expected[order])


@pytest.mark.parametrize("labelled", [lambda real: real, Mixup], ids=["classes", "shares"])
def test_labels_of_a_part_whose_share_of_a_batch_may_be_none(labelled: Any, quadrants: Any) -> None:
    objective = config.objective({"kl": {}, "label_ce": {"sources": [1]}})
    sampler = Mixture((Uniform("eval"), labelled(Real(str(quadrants)))), weights=(9.0, 1.0))
    words: dict[str, Any] = {"spec": SPEC, "budget": dfkd.Budget(steps=12, batch=4), "device": "cpu"}
    assert dfkd.distill(net(1), net(2), sampler, objective=objective, **words).training.status == "ok"


@pytest.mark.parametrize("sources", [None, [0], [0, 1]])
def test_labels_of_rows_that_have_none_are_refused(sources: list[int] | None, quadrants: Any) -> None:
    objective = config.objective({"kl": {}, "label_ce": {} if sources is None else {"sources": sources}})
    sampler = Mixture((Uniform("eval"), Real(str(quadrants))))
    with pytest.raises(UnlabelledBatch, match="label_ce: needs ground-truth labels, found a batch without y"):
        dfkd.distill(
            net(1), net(2), sampler, objective=objective, spec=SPEC, budget=dfkd.Budget(steps=1, batch=8), device="cpu"
        )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_rows_of_a_source_than_a_relation_needs_are_nothing(count: int) -> None:
    """A part with a hundredth of the weight has one row now and then: three for angles are not there, and two are."""
    source = torch.cat([torch.zeros(count, dtype=torch.int64), torch.ones(4, dtype=torch.int64)])
    rows = torch.arange(len(source))
    student = STUDENT[rows].clone().requires_grad_(True)
    features = {"penultimate": student}
    given = Batch(X[rows], source=source)
    teacher = Outputs(TEACHER[rows], {"penultimate": TEACHER[rows]})
    for loss, least in ((FKD(), 2), (RKDAngle(), 3)):
        evaluated = combine({"only": (1.0, OfSources(loss, (0,)))})(Outputs(student, features), teacher, given)
        (slope,) = torch.autograd.grad(evaluated.total, student)  # a run with no other loss goes on
        assert (float(evaluated.total.detach()) > 0.0) is (count >= least)
        assert (float(slope.abs().max()) > 0.0) is (count >= least)


def test_a_mixture_whose_part_comes_and_goes_is_trained_on() -> None:
    sampler = Mixture((Uniform("eval"), Uniform("eval")), weights=(0.03, 0.97))
    objective = combine({"fkd": (1.0, OfSources(FKD(), (0,)))})
    done = dfkd.distill(
        net(0), net(1), sampler, spec=SPEC, objective=objective, budget=dfkd.Budget(batch=50, steps=6), device="cpu"
    )
    assert done.training.status == "ok"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_batch_that_does_not_fit_is_found_before_the_first_draw(wrapped: bool) -> None:
    """Angles of 64 rows of 6 and 6 features need (6 x 64^2 + 9 x 6 x 64) x 4 bytes for a row."""
    for loss, batch, message in (
        (RKDAngle(max_bytes=100_000), 64, "rkd_angle: the angles of 64 rows need 112128 bytes .*; set rows=60 to"),
        (RKDAngle(), 2, "rkd_angle: needs batches of at least 3 rows, found 2"),
        (FKD(), 1, "fkd: needs batches of at least 2 rows, found 1"),
    ):
        problem = problem_of(net(0), net(1))
        problem.batch = batch
        part: Any = loss
        if wrapped:
            problem = replace(problem, teacher=Probe(Ensemble([net(0)]), SPEC))
            part = At("members.0", loss, "teacher")
        with pytest.raises(ValueError, match=message):
            part.init(problem, 0)
        assert problem.teacher.images == 0
        problem.batch = None
        part.init(problem, 0)
    roomy = problem_of(net(0), net(1))
    roomy.batch = 64
    RKDAngle(max_bytes=100_000, rows=60).init(roomy, 0)
    OfSources(RKDAngle(), (0,)).init(replace(roomy, batch=2), 0)


@pytest.mark.parametrize("scheme", [None, Mutual()])
def test_a_comparison_finds_it_before_anything_is_written(scheme: Any, tmp_path: Path) -> None:
    objective = combine({"kl": (1.0, KL()), "angle": (1.0, RKDAngle(max_bytes=100_000))})
    student: Any = partial(net, 1) if scheme is None else Together(partial(models.build, "digits_cnn", SPEC), scheme)
    with pytest.raises(ValueError, match=r"rkd_angle: the angles of 64 rows need .* set rows="):
        dfkd.compare(
            net(0), student, [Uniform()], spec=SPEC, objective=objective, budget=dfkd.Budget(batch=64, steps=1),
            seeds=[0], device="cpu", out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
