"""Terms one by one: against slow references in Python floats, their identities, their extremes, their gradients."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dfkd.types import InputSpec, Outputs
from samplers.ingredients import (
    Balance,
    Disagreement,
    Divergence,
    OneHot,
    PixelNorm,
    TotalVariation,
    Views,
    disagreement,
)

STUDENT, TEACHER = 3.0 * torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
DIVERGENCES: tuple[Divergence, ...] = ("kl", "l1", "js", "masked_kl")


def seen(teacher: Tensor | None = None, student: Tensor | None = None, x: Tensor | None = None, **rest: Any) -> Views:
    """What a term is shown, by hand."""
    x = torch.zeros(1, 1, 2, 2) if x is None else x
    asked = {"teacher": teacher, "student": student}
    answers = {who: Outputs(logits) for who, logits in asked.items() if logits is not None}
    spec = rest.pop("spec", InputSpec((1, 2, 2), 4))
    return cast(Views, SimpleNamespace(x=x, spec=spec, **answers, **rest))


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def slow_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_disagreement(student: list[float], teacher: list[float], divergence: str, temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    if divergence == "l1":
        return sum(abs(a - b) for a, b in zip(teacher, student, strict=True))
    if divergence == "js":
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return 0.5 * slow_kl(p, m) + 0.5 * slow_kl(q, m)
    if divergence == "masked_kl" and p.index(max(p)) != q.index(max(q)):
        return 0.0
    return slow_kl(p, q)


# -- disagreement ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_disagreement_equals_its_definition(divergence: Divergence, temperature: float) -> None:
    student = STUDENT.clone()
    student[0] = TEACHER[0] + torch.tensor([0.1, -0.2, 0.3, 0.0])  # a row where both give the same class
    pairs = zip(student.tolist(), TEACHER.tolist(), strict=True)
    slow = torch.tensor([slow_disagreement(s, t, divergence, temperature) for s, t in pairs])
    torch.testing.assert_close(disagreement(student, TEACHER, divergence, temperature), slow)
    term = Disagreement(divergence, temperature)
    torch.testing.assert_close(term(None, seen(TEACHER, student)), -slow.mean())


def test_masked_kl_counts_agreeing_rows_only() -> None:
    student = STUDENT.clone()
    student[1:3] = 0.5 * TEACHER[1:3]
    same = torch.tensor([False, True, True, False, False])
    assert torch.equal(student.argmax(dim=1) == TEACHER.argmax(dim=1), same)
    assert torch.equal(disagreement(student, TEACHER, "masked_kl") > 0.0, same)


def test_js_is_symmetric_and_at_most_ln_2() -> None:
    there, back = disagreement(STUDENT, TEACHER, "js", 3.0), disagreement(TEACHER, STUDENT, "js", 3.0)
    torch.testing.assert_close(there, back)
    far = disagreement(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]), "js")
    torch.testing.assert_close(far, torch.tensor([math.log(2.0)]))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_disagreement_is_zero_for_equal_models_and_finite_for_certain_ones(divergence: Divergence) -> None:
    assert disagreement(TEACHER, TEACHER, divergence).abs().max() < 1e-6
    student = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4], [5e3, 0.0]], requires_grad=True)
    loss = Disagreement(divergence)(None, seen(teacher, student))
    slopes = torch.autograd.grad(loss, [student, teacher])
    assert all(torch.isfinite(value).all() for value in (loss, *slopes))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_disagreement_pulls_at_both_models_and_against_agreement(divergence: Divergence) -> None:
    teacher = TEACHER.clone().requires_grad_(True)
    student = (0.5 * TEACHER).requires_grad_(True)
    loss = Disagreement(divergence)(None, seen(teacher, student))
    to_student, to_teacher = torch.autograd.grad(loss, [student, teacher])
    assert to_teacher.abs().max() > 0.0
    with torch.no_grad():
        after = Disagreement(divergence)(None, seen(teacher, student - 0.1 * to_student))
    assert after < loss  # one step down the term is one step away from the teacher


# -- classes -----------------------------------------------------------------------------------------------------


def test_one_hot_equals_its_definition() -> None:
    target = torch.tensor([3, 0, 1, 2, 2])
    rows = [softmax(row) for row in TEACHER.tolist()]
    slow = -sum(math.log(p[y]) for p, y in zip(rows, target.tolist(), strict=True)) / 5
    assert OneHot("target")(None, seen(TEACHER, target=target)).item() == pytest.approx(slow, rel=1e-5)
    slow = -sum(math.log(max(p)) for p in rows) / 5
    assert OneHot("argmax")(None, seen(TEACHER)).item() == pytest.approx(slow, rel=1e-5)


def test_one_hot_needs_a_target_to_aim_at() -> None:
    with pytest.raises(ValueError, match="target: expected a class for each row, found None"):
        OneHot("target")(None, seen(TEACHER, target=None))


def test_balance_equals_its_definition() -> None:
    rows = [softmax(row) for row in TEACHER.tolist()]
    mean = [sum(column) / 5 for column in zip(*rows, strict=True)]
    slow = sum(p * math.log(p) for p in mean)
    assert Balance()(None, seen(TEACHER)).item() == pytest.approx(slow, rel=1e-5)


def test_balance_is_minus_ln_k_for_equal_classes_and_0_for_one_class() -> None:
    uniform, certain = torch.zeros(3, 4), 1e4 * torch.eye(4)
    assert Balance()(None, seen(uniform)).item() == pytest.approx(-math.log(4), rel=1e-6)
    assert Balance()(None, seen(certain)).item() == pytest.approx(-math.log(4), rel=1e-6)
    one = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    loss = Balance()(None, seen(one))
    (slope,) = torch.autograd.grad(loss, one)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(slope).all()


def test_balance_does_not_change_when_the_batch_is_doubled() -> None:
    doubled = torch.cat([TEACHER, TEACHER])
    torch.testing.assert_close(Balance()(None, seen(doubled)), Balance()(None, seen(TEACHER)))


# -- pixels ------------------------------------------------------------------------------------------------------

IMAGES = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(2))


def slow_shifts(x: Tensor) -> list[list[list[float]]]:
    """For each of the four directions, the differences of each row."""
    n, c, h, w = x.shape
    pixel = x.tolist()
    out = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows = []
        for i in range(n):
            row = []
            for j in range(c):
                for a in range(h - down):
                    for b in range(max(0, -right), w - max(0, right)):
                        row.append(pixel[i][j][a + down][b + right] - pixel[i][j][a][b])
            rows.append(row)
        out.append(rows)
    return out


def test_total_variation_equals_its_definition() -> None:
    shifts = slow_shifts(IMAGES)
    l1 = sum(sum(abs(d) for row in rows for d in row) / sum(len(row) for row in rows) for rows in shifts)
    l2 = sum(math.sqrt(sum(sum(d * d for d in row) for row in rows) / len(rows)) for rows in shifts)
    assert TotalVariation("l1")(None, seen(x=IMAGES)).item() == pytest.approx(l1, rel=1e-5)
    assert TotalVariation("l2")(None, seen(x=IMAGES)).item() == pytest.approx(l2, rel=1e-5)


def test_pixel_norm_equals_its_definition() -> None:
    slow = sum(math.sqrt(sum((v - 0.5) ** 2 for v in row.flatten().tolist())) for row in IMAGES) / 3
    assert PixelNorm()(None, seen(x=IMAGES)).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("term", [TotalVariation("l1"), TotalVariation("l2"), PixelNorm()])
def test_pixel_terms_are_flat_at_grey_and_measure_in_spans(term: Callable[..., Tensor]) -> None:
    grey = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    loss = term(None, seen(x=grey))
    (slope,) = torch.autograd.grad(loss, grey)
    assert loss.item() == 0.0
    assert torch.equal(slope, torch.zeros_like(slope))
    wide = InputSpec((2, 4, 5), 4, low=-3.0, high=1.0)
    torch.testing.assert_close(term(None, seen(x=4 * IMAGES - 3.0, spec=wide)), term(None, seen(x=IMAGES)))


def test_one_row_of_pixels_has_no_neighbours_below() -> None:
    line = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 1, 1, 3)
    assert TotalVariation("l1")(None, seen(x=line)).item() == 1.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OneHot(cast(Any, "best")), "aim: expected one of target, argmax, found 'best'"),
        (lambda: Disagreement(cast(Any, "k1")), "divergence: expected one of kl, .*, found 'k1'"),
        (lambda: Disagreement("kl", 0.0), "temperature: expected a number > 0, found 0.0"),
        (lambda: TotalVariation(cast(Any, "l3")), "norm: expected one of l1, l2, found 'l3'"),
    ],
)
def test_names_the_wrong_setting(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
