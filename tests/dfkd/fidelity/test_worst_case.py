"""The worst-case search: inside ball and box, better than chance, and right where the answer is known."""

import pytest
import torch
from torch import Tensor, nn

from dfkd.fidelity import columns, rowwise, worst_case, worst_case_column
from dfkd.problem import Probe, UnsupportedProblem
from dfkd.types import InputSpec

X = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def gap(teacher: Probe, student: Probe, x: Tensor) -> Tensor:
    with torch.no_grad():
        return rowwise(student.module(x), teacher.module(x))["kl"]


def test_stays_in_ball_and_box_and_beats_random_points(teacher: Probe, student: Probe) -> None:
    epsilon = 0.1
    before = X.clone()
    found = worst_case(teacher, student, X, epsilon, seed=0)
    assert torch.equal(before, X)
    assert found.dtype == torch.float32
    assert float((found - X).abs().max()) <= epsilon + 1e-6
    assert float((found - X).abs().max()) > 0.9 * epsilon
    assert (float(found.min()), float(found.max())) >= (0.0, 0.0)
    assert float(found.max()) <= 1.0
    reached = gap(teacher, student, found)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        random = (X + epsilon * (2 * torch.rand(X.shape, generator=rng) - 1)).clamp(0, 1)
        assert bool((reached >= gap(teacher, student, random)).all())
    assert bool((reached >= gap(teacher, student, X)).all())


class Slope(nn.Module):
    """Logits (0, factor * sum of weight * pixel): KL to a flat student grows with the distance from 0."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        height = (x * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(height), height], dim=1)


def test_finds_the_corner_where_it_is_known() -> None:
    """Teacher logit w . x, student flat: the maximum is x + epsilon sign(w . x) sign(w), cut to the box."""
    spec = InputSpec((1, 4, 4), 2, low=-1.0, high=3.0)
    weight = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))
    teacher, student = Probe(Slope(weight), spec), Probe(Slope(torch.zeros(1, 4, 4)), spec)
    x = 1.0 + 0.3 * weight.sign() * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    x[0, 0, 0, 0] = 2.95 if weight[0, 0, 0] > 0 else -0.95  # the box is nearer than the ball's edge
    found = worst_case(teacher, student, x, 0.05, steps=10, seed=0)
    side = (x * weight).sum(dim=(1, 2, 3)).sign().view(-1, 1, 1, 1)
    expected = (x + 0.05 * 4.0 * side * weight.sign()).clamp(-1.0, 3.0)
    torch.testing.assert_close(found, expected)


def test_rows_are_alone_and_answers_repeat(teacher: Probe, student: Probe) -> None:
    found = worst_case(teacher, student, X, 0.05, seed=3)
    assert torch.equal(found, worst_case(teacher, student, X, 0.05, seed=3))
    assert not torch.equal(found, worst_case(teacher, student, X, 0.05, seed=4))
    assert torch.equal(worst_case(teacher, student, X, 0.0), X)
    assert torch.equal(worst_case(teacher, teacher, X, 0.05), X)  # nowhere to go: the image itself


def test_each_row_keeps_its_best_of_all_starts(teacher: Probe, student: Probe) -> None:
    """The first start is the same for one and for three: more starts can only help, row by row."""
    one, three = (gap(teacher, student, worst_case(teacher, student, X, 0.2, restarts=r, steps=3)) for r in (1, 3))
    assert bool((three >= one - 1e-6).all())
    assert bool((three > one + 1e-6).any())


def test_leaves_the_models_and_charges_evaluation(teacher: Probe, student: Probe) -> None:
    teacher.precision = "bfloat16"
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    worst_case(teacher, student, X, 0.05, steps=10, restarts=2, batch=7)
    assert teacher.precision == "bfloat16"
    for probe in (teacher, student):
        assert probe.images == 0
        assert probe.counts["evaluate"] == {"forward": 30 * (1 + 2 * 11), "backward": 30 * 2 * 10}
        assert all(p.grad is None and p.requires_grad for p in probe.module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())


def test_column_and_bad_settings(teacher: Probe, student: Probe, spec: InputSpec) -> None:
    column = columns.test_column((X * 255).to(torch.uint8), torch.zeros(30, dtype=torch.int64))
    found = worst_case_column(teacher, student, column, 8)
    assert (found.name, found.kind, found.x.dtype) == ("worst_case@8", "worst_case", torch.float32)
    assert float((found.x - column.x / 255.0).abs().max()) == pytest.approx(8 / 255, abs=1e-6)
    with pytest.raises(ValueError, match="epsilon: expected a number >= 0, found -1"):
        worst_case(teacher, student, X, -1)
    with pytest.raises(ValueError, match="restarts: expected an integer >= 1, found 0"):
        worst_case(teacher, student, X, 0.1, restarts=0)
    with pytest.raises(ValueError, match="x: expected float pixels"):
        worst_case(teacher, student, column.x, 0.1)

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 5)

    with pytest.raises(UnsupportedProblem, match="worst_case: needs a student with input_grad"):
        worst_case(teacher, Probe(Blind(), spec, name="student"), X, 0.1)
