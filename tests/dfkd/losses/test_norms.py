"""Directions: length 1 at any scale, zero where there is nothing, and slopes with a bound."""

import pytest
import torch
from torch import Tensor

from dfkd.losses import cka, pearson_distances, rkd_distance
from dfkd.losses.norms import apart, direction, scaled, unit

ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e30])
def test_a_direction_knows_no_scale(factor: float) -> None:
    torch.testing.assert_close(direction(factor * ROWS, 1), ROWS / ROWS.norm(dim=1, keepdim=True))
    torch.testing.assert_close(direction(factor * ROWS, (0, 1)), ROWS / ROWS.norm())


def test_what_is_nowhere_larger_than_nothing_is_zero_without_a_gradient() -> None:
    x = torch.stack([torch.full((5,), 1e-9), ROWS[0]]).requires_grad_(True)
    by_row = scaled(x, dim=1)
    assert torch.equal(by_row[0].detach(), torch.zeros(5))
    assert float(by_row[1].detach().abs().max()) == 1.0
    (slope,) = torch.autograd.grad(by_row.sum(), x)
    assert torch.equal(slope[0], torch.zeros(5))
    torch.testing.assert_close(slope[1], torch.full((5,), 1.0 / float(ROWS[0].abs().max())))
    assert torch.equal(scaled(x).detach(), x.detach() / ROWS[0].abs().max())


def test_apart_is_one_less_the_product_of_directions_or_zero() -> None:
    a, b = unit(ROWS), unit(ROWS.roll(1, dims=0))
    torch.testing.assert_close(apart(a, b, 1), 1.0 - (a * b).sum(dim=1))
    assert torch.equal(apart(a, a.clone(), 1), torch.zeros(6))
    torch.testing.assert_close(apart(a, torch.zeros(6, 5), 1), torch.ones(6))
    assert torch.equal(apart(torch.zeros(6, 5), torch.zeros(6, 5), 1), torch.zeros(6))


def collapsed() -> tuple[Tensor, ...]:
    """Features in which rows differ by rounding only, and such as are nearly nothing."""
    return 5.0 + 1e-6 * ROWS, 1e-9 * ROWS, torch.zeros(6, 5), torch.ones(6, 5)


def test_distances_of_rows_that_are_one_row_pull_nowhere() -> None:
    """Over their mean they would be of the size of any others, and their slopes 1e4 to 1e10."""
    for features in collapsed():
        student = features.clone().requires_grad_(True)
        value = rkd_distance(student, ROWS)
        assert float(value.detach()) == pytest.approx(float(rkd_distance(torch.zeros(6, 5), ROWS)))
        (slope,) = torch.autograd.grad(value, student)
        assert float(slope.abs().max()) < 1.0


def test_one_that_has_collapsed_is_no_nearer_than_one_that_is_not_aligned() -> None:
    for features in collapsed():
        assert float(cka(features, ROWS)) == pytest.approx(1.0, abs=1e-6)
    flat = torch.zeros(6, 5)
    of_rows, of_classes = pearson_distances(flat, ROWS)
    torch.testing.assert_close(of_rows, torch.ones(6))
    torch.testing.assert_close(of_classes, torch.ones(5))
