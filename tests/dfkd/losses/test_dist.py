"""Correlations of probabilities against the standard library's, their invariances and what does not vary."""

import math
from statistics import correlation, fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.losses import DIST, combine, pearson_distances
from dfkd.types import Batch, Outputs

N, K = 5, 7
GENERATOR = torch.Generator().manual_seed(8)
STUDENT, TEACHER = 3.0 * torch.randn(2, N, K, generator=GENERATOR, dtype=torch.float64)
BOTH = Outputs(STUDENT), Outputs(TEACHER)
EMPTY = Batch(torch.zeros(N, 1, 1, 1))


def softened(logits: Tensor, temperature: float) -> list[list[float]]:
    weights = [[math.exp(z / temperature) for z in row] for row in logits.tolist()]
    return [[w / sum(row) for w in row] for row in weights]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_its_definition(temperature: float) -> None:
    q, p = softened(STUDENT, temperature), softened(TEACHER, temperature)
    rows = [1.0 - correlation(a, b) for a, b in zip(q, p, strict=True)]
    classes = [1.0 - correlation([r[c] for r in q], [r[c] for r in p]) for c in range(K)]
    of_rows, of_classes = pearson_distances(STUDENT, TEACHER, temperature)
    torch.testing.assert_close(of_rows, torch.tensor(rows, dtype=torch.float64))
    torch.testing.assert_close(of_classes, torch.tensor(classes, dtype=torch.float64))
    narrow = pearson_distances(STUDENT.float(), TEACHER.float(), temperature)
    torch.testing.assert_close(narrow, (of_rows.float(), of_classes.float()), rtol=1e-4, atol=1e-5)
    total = combine({"dist": (1.0, DIST(beta=2.0, gamma=0.5, temperature=temperature))})(*BOTH, EMPTY).total
    assert float(total) == pytest.approx(temperature**2 * (2.0 * fmean(rows) + 0.5 * fmean(classes)))


def test_between_0_and_2_and_0_for_equal_models() -> None:
    same = DIST()(Outputs(TEACHER + 3.0), Outputs(TEACHER), EMPTY)
    assert same.abs().max() < 1e-12
    opposite = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    p = opposite.softmax(dim=1)
    turned = (2.0 / 3.0 - p).log()  # probabilities again: they fall where the others rise
    of_rows, of_classes = pearson_distances(turned, opposite)
    torch.testing.assert_close(of_rows, torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(of_classes, torch.full((3,), 2.0, dtype=torch.float64))


def test_rows_see_only_how_probabilities_vary() -> None:
    """Any rising line of a row's probabilities is as good as they are."""
    p = TEACHER.softmax(dim=1)
    flatter = (0.4 * p + 0.6 / K).log()
    assert pearson_distances(flatter, TEACHER)[0].abs().max() < 1e-12
    assert pearson_distances(flatter, TEACHER)[1].abs().max() < 1e-12
    assert pearson_distances(0.4 * TEACHER, TEACHER)[0].max() > 1e-2


def test_what_does_not_vary_counts_as_0_in_both() -> None:
    """One row alone, equal rows, equal classes, and classes too unlikely to be told apart."""
    alone = DIST()(Outputs(TEACHER[:1]), Outputs(TEACHER[:1]), Batch(torch.zeros(1, 1, 1, 1)))
    assert alone.abs().max() < 1e-12
    extremes = [torch.zeros(N, K), TEACHER[:1].expand(N, K), 1e4 * TEACHER, torch.eye(N, K) * 1e4, 1e-9 * TEACHER]
    for logits in extremes:
        values = DIST()(Outputs(logits.float()), Outputs(logits.float()), EMPTY)
        assert values.abs().max() < 1e-6
        for other in extremes:
            student = logits.float().clone().requires_grad_(True)
            loss = DIST()(Outputs(student), Outputs(other.float()), EMPTY)
            (slope,) = torch.autograd.grad(loss.sum(), student)
            assert loss.isfinite().all()
            assert slope.isfinite().all()
            assert slope.abs().max() < 1e3


def test_unlikely_classes_count_like_others() -> None:
    """Probabilities of 1e-12 correlate as those of 0.1 do."""
    down = torch.zeros(K, dtype=torch.float64)
    down[2] = -28.0
    ours, theirs = ([row[2] for row in softened(logits + down, 1.0)] for logits in (STUDENT, TEACHER))
    found = pearson_distances((STUDENT + down).float(), (TEACHER + down).float())[1][2]
    assert float(found) == pytest.approx(1.0 - correlation(ours, theirs), rel=1e-3)


def test_the_gradient_is_that_of_finite_differences_and_crosses_rows() -> None:
    student = STUDENT.clone().requires_grad_(True)
    for loss in (DIST(), DIST(beta=0.0, temperature=3.0)):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(Outputs(s), BOTH[1], EMPTY), (student,))
    values = DIST()(Outputs(student), BOTH[1], EMPTY)
    (slope,) = torch.autograd.grad(values[2], student)
    assert slope.abs().amax(dim=1).min() > 1e-6


def test_rows_that_weigh_differently_are_refused() -> None:
    weighted = Batch(EMPTY.x, weight=torch.arange(1.0, N + 1.0))
    with pytest.raises(ValueError, match="dist: needs equal row weights"):
        combine({"dist": (1.0, DIST())})(*BOTH, weighted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta: expected a number >= 0"),
        ({"gamma": math.inf}, "gamma: expected a number >= 0"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DIST(**options)
