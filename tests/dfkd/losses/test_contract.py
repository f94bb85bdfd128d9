"""What every loss of the table must do, whatever it measures."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import dfkd.losses
from dfkd.losses import combine
from dfkd.registry import LOSSES, find
from dfkd.types import Batch, Outputs

N, K = 6, 5
GENERATOR = torch.Generator().manual_seed(3)
STUDENT, TEACHER = 3.0 * torch.randn(2, N, K, generator=GENERATOR)
Y = torch.tensor([0, 1, 2, 3, 4, 0])
SOFT = torch.softmax(torch.randn(N, K, generator=GENERATOR), dim=1)

# label, registry name, options, kind of y: one row for each name of the table, and more
CASES: list[tuple[str, str, dict[str, Any], bool]] = [
    ("kl", "kl", {}, False),
    ("kl at 4", "kl", {"temperature": 4.0}, False),
    ("kl at 0.5", "kl", {"temperature": 0.5}, False),
    ("reverse_kl", "reverse_kl", {}, False),
    ("reverse_kl at 4", "reverse_kl", {"temperature": 4.0}, False),
    ("js", "js", {}, False),
    ("js at 3", "js", {"temperature": 3.0}, False),
    ("logit_mse", "logit_mse", {}, False),
    ("logit_l1", "logit_l1", {}, False),
    ("hard_label", "hard_label", {}, False),
    ("label_ce", "label_ce", {}, False),
    ("label_ce of mixed labels", "label_ce", {}, True),
    ("kl of standardised logits", "kl", {"standardise": True}, False),
    ("reverse_kl of standardised logits", "reverse_kl", {"standardise": True}, False),
    ("js of standardised logits", "js", {"standardise": True}, False),
    ("logit_huber", "logit_huber", {}, False),
    ("sampled_label", "sampled_label", {}, False),
    ("dkd", "dkd", {}, False),
    ("dkd of standardised logits", "dkd", {"standardise": True, "temperature": 2.0}, False),
    ("dkd of labels", "dkd", {"label": "true", "beta": 2.0}, False),
    ("dist", "dist", {}, False),
    ("dist at 4", "dist", {"temperature": 4.0}, False),
    ("sp", "sp", {}, False),
    ("pkt", "pkt", {}, False),
    ("cc", "cc", {}, False),
    ("cka", "cka", {}, False),
    ("fkd", "fkd", {}, False),
    ("fkd of two teachers", "fkd", {"teacher": ("vector", "maps")}, False),
    ("rkd_distance", "rkd_distance", {}, False),
    ("rkd_angle", "rkd_angle", {}, False),
    ("relation", "relation", {}, False),
    ("features", "features", {"pairs": (("vector", "vector"),)}, False),
    ("features by l1", "features", {"pairs": (("maps", "maps"), ("vector", "vector")), "distance": "l1"}, False),
    ("features by cosine", "features", {"pairs": (("vector", "vector"),), "distance": "cosine"}, False),
    ("attention", "attention", {"pairs": (("maps", "maps"),)}, False),
    ("jacobian", "jacobian", {}, False),
    ("class_gradient", "class_gradient", {}, False),
    ("class_gradient of labels", "class_gradient", {"of": "label"}, False),
    ("class_gradient of mixed labels", "class_gradient", {"of": "label"}, True),
    ("peers", "peers", {"edges": (("teacher", "vector"),)}, False),
    ("peers at 3", "peers", {"edges": (("teacher", "vector"), ("teacher", "student")), "temperature": 3.0}, False),
]
EVERY = pytest.mark.parametrize(("name", "options", "soft"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
RELATIONS = {"sp", "pkt", "cc", "cka", "fkd", "rkd_distance", "rkd_angle", "relation"}  # read features
COUPLED = {*RELATIONS, "dist"}  # a row's value depends on the others
ALONE = pytest.mark.parametrize(
    ("name", "options", "soft"),
    [c[1:] for c in CASES if c[1] not in {*COUPLED, "sampled_label"}],  # whose draws belong to places, not to rows
    ids=[c[0] for c in CASES if c[1] not in {*COUPLED, "sampled_label"}],
)
DIVERGENCES = {"kl", "reverse_kl", "js", "logit_mse", "logit_l1", "logit_huber", "dkd", "jacobian", *COUPLED}
"""Zero where the models agree."""
SLOPES = {"jacobian", "class_gradient"}  # differ in the slopes in x, not in the logits
FEATURES = {"features", "attention", "peers", *RELATIONS}  # read what is tapped, not the logits
EXTREMES = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0], [-1e4, 1e4, 0.0, 1e4, -1e4], [0.0] * 5, [1e4] * 5])


def batch(soft: bool = False, rows: Tensor | None = None) -> Batch:
    index = torch.arange(N) if rows is None else rows
    return Batch(torch.zeros(len(index), 1, 1, 1), y=(SOFT if soft else Y)[index])


def answers(values: Tensor, given: Batch) -> Outputs:
    """Logits and features of these values; where x has a gradient, logits of which they are the slopes instead."""
    features = {"penultimate": values, "vector": values, "maps": values[:, None, None, :]}
    if not given.x.requires_grad:
        return Outputs(values, features)
    weighed = values * given.x.flatten(1)[:, : values.shape[1]]
    return Outputs(weighed + 0.5 * weighed.roll(1, dims=1), features)


def evaluate(name: str, options: dict[str, Any], student: Tensor, teacher: Tensor, given: Batch) -> Tensor:
    loss = find("loss", name, LOSSES)(**options)
    if loss.input_grad:
        given = given.with_x(torch.ones(len(given), 1, 1, K, requires_grad=True))
    values: Tensor = loss(answers(student, given), answers(teacher, given), given)
    return values


def test_every_loss_of_the_table_has_a_row() -> None:
    assert {name for _, name, _, _ in CASES} == set(LOSSES)
    exported = {vars(dfkd.losses)[word] for word in dfkd.losses.__all__}
    assert {loss.name for loss in exported if hasattr(loss, "input_grad") and hasattr(loss, "name")} == set(LOSSES)


@EVERY
def test_is_a_frozen_dataclass_that_declares_itself(name: str, options: dict[str, Any], soft: bool) -> None:
    del soft
    loss = find("loss", name, LOSSES)(**options)
    assert type(loss).name == name
    assert type(loss).__dataclass_params__.frozen
    assert set(loss.needs) == {"student", "teacher"}
    assert loss.coupled is (name in COUPLED)
    assert loss.input_grad is (name in SLOPES)
    assert loss.uses_teacher is (name != "label_ce")
    assert loss.scale == (1.0 if name == "sampled_label" else getattr(loss, "temperature", 1.0) ** 2)
    assert list(inspect.signature(loss).parameters) == ["student", "teacher", "batch"]
    for field in dataclasses.fields(loss):
        assert f"{field.name}:" in (type(loss).__doc__ or "")


@EVERY
def test_one_finite_value_for_each_row(name: str, options: dict[str, Any], soft: bool) -> None:
    values = evaluate(name, options, STUDENT, TEACHER, batch(soft))
    assert values.shape == (N,)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    if name in RELATIONS:
        assert torch.equal(values, values[:1].expand(N))
        assert values[0] > 1e-3
    else:
        assert values.std() > 1e-3  # rows differ, so an average spread over them would be seen


@pytest.mark.parametrize(
    ("name", "options", "soft"), [c[1:] for c in CASES if c[1] != "sampled_label"], ids=lambda case: str(case)
)
def test_permutes_with_the_rows(name: str, options: dict[str, Any], soft: bool) -> None:
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    values = evaluate(name, options, STUDENT, TEACHER, batch(soft))
    moved = evaluate(name, options, STUDENT[order], TEACHER[order], batch(soft, order))
    torch.testing.assert_close(moved, values[order])


@ALONE
def test_a_row_alone_equals_it_in_a_batch(name: str, options: dict[str, Any], soft: bool) -> None:
    values = evaluate(name, options, STUDENT, TEACHER, batch(soft))
    for row in range(N):
        alone = evaluate(name, options, STUDENT[row, None], TEACHER[row, None], batch(soft, torch.tensor([row])))
        torch.testing.assert_close(alone, values[row, None])


@EVERY
def test_leaves_its_inputs_alone(name: str, options: dict[str, Any], soft: bool) -> None:
    student, teacher, given = STUDENT.clone(), TEACHER.clone(), batch(soft)
    evaluate(name, options, student, teacher, given)
    assert torch.equal(student, STUDENT)
    assert torch.equal(teacher, TEACHER)
    assert given.y is not None
    assert torch.equal(given.y, SOFT if soft else Y)


@EVERY
def test_is_finite_with_a_finite_gradient_at_extreme_logits(name: str, options: dict[str, Any], soft: bool) -> None:
    for teacher in EXTREMES:
        student = EXTREMES.clone().requires_grad_(True)
        given = batch(soft, torch.arange(len(EXTREMES)))
        values = evaluate(name, options, student, teacher.expand_as(EXTREMES), given)
        (slope,) = torch.autograd.grad(values.sum(), student)
        assert values.isfinite().all()
        assert slope.isfinite().all()


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_a_divergence_is_zero_for_equal_models_and_positive_otherwise(name: str) -> None:
    logits = torch.cat([TEACHER, EXTREMES])
    given = Batch(torch.zeros(len(logits), 1, 1, 1))
    special: dict[str, dict[str, Any]] = {"fkd": {"regularise": 0.0}, "rkd_angle": {"rows": 20}}
    options = special.get(name, {})
    assert evaluate(name, options, logits, logits.clone(), given).abs().max() < 1e-6
    student = 2.0 * torch.randn(500, K, generator=torch.Generator().manual_seed(8))
    teacher = 2.0 * torch.randn(500, K, generator=torch.Generator().manual_seed(9))
    assert evaluate(name, options, student, teacher, Batch(torch.zeros(500, 1, 1, 1))).min() > 1e-4


@ALONE
def test_duplicating_the_batch_leaves_the_objective(name: str, options: dict[str, Any], soft: bool) -> None:
    objective = combine({"only": (0.7, find("loss", name, LOSSES)(**options))})
    twice = torch.arange(N).repeat(2)
    totals = []
    for rows in (torch.arange(N), twice):
        given = batch(soft, rows).with_x(torch.ones(len(rows), 1, 1, K, requires_grad=objective.input_grad))
        totals.append(objective(answers(STUDENT[rows], given), answers(TEACHER[rows], given), given).total)
    once, again = totals
    torch.testing.assert_close(again, once)


@ALONE
def test_the_gradient_reaches_the_student_in_its_rows_only(name: str, options: dict[str, Any], soft: bool) -> None:
    student = STUDENT.clone().requires_grad_(True)
    values = evaluate(name, options, student, TEACHER, batch(soft))
    (slope,) = torch.autograd.grad(values[2], student)
    assert slope[2].abs().max() > 1e-4
    assert slope[[0, 1, 3, 4, 5]].abs().max() == 0.0


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"label_ce"} - FEATURES))
def test_names_a_teacher_with_other_classes(name: str) -> None:
    with pytest.raises(ValueError, match=r"teacher_logits: expected shape \(6, 5\), found \(6, 4\)"):
        evaluate(name, {}, STUDENT, TEACHER[:, :4], batch())
