"""Distances and angles against loops in Python, their identities and their memory."""

import itertools
import math

import pytest
import torch

from dfkd.losses import RKDAngle, RKDDistance, combine, rkd_angle, rkd_distance
from dfkd.problem import PENULTIMATE
from dfkd.types import Batch, Outputs

N = 6
GENERATOR = torch.Generator().manual_seed(31)
STUDENT = torch.randn(N, 2, generator=GENERATOR, dtype=torch.float64)
TEACHER = torch.randn(N, 4, generator=GENERATOR, dtype=torch.float64)
TEACHER[5] *= 6.0  # so that some differences are beyond 1, where Huber's function is a line
Table = list[list[float]]


def huber(a: float, b: float) -> float:
    apart = abs(a - b)
    return 0.5 * apart**2 if apart <= 1.0 else apart - 0.5


def distances(f: Table) -> Table:
    """Over the mean of those that are not 0."""
    d = [[math.sqrt(sum((u - v) ** 2 for u, v in zip(a, b, strict=True))) for b in f] for a in f]
    apart = [value for row in d for value in row if value > 0.0]
    return [[value / (sum(apart) / len(apart)) for value in row] for row in d]


def angle(f: Table, i: int, j: int, k: int) -> float:
    """The cosine of the angle at j between i and k."""
    a, b = ([u - v for u, v in zip(f[end], f[j], strict=True)] for end in (i, k))
    return sum(u * v for u, v in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_distances_equal_their_definition() -> None:
    ours, theirs = distances(STUDENT.tolist()), distances(TEACHER.tolist())
    pairs = list(itertools.permutations(range(N), 2))
    assert max(abs(ours[i][j] - theirs[i][j]) for i, j in pairs) > 1.0
    slow = sum(huber(ours[i][j], theirs[i][j]) for i, j in pairs) / len(pairs)
    assert float(rkd_distance(STUDENT, TEACHER)) == pytest.approx(slow)


def test_angles_equal_their_definition() -> None:
    triples = list(itertools.permutations(range(N), 3))
    values = [huber(angle(STUDENT.tolist(), *t), angle(TEACHER.tolist(), *t)) for t in triples]
    assert len(values) == N * (N - 1) * (N - 2)
    assert float(rkd_angle(STUDENT, TEACHER)) == pytest.approx(sum(values) / len(values))


def test_three_points_by_hand() -> None:
    """A right angle with sides 3, 4, 5 against three equal sides of 60 degrees."""
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    sides = sum(0.5 * (side / 4.0 - 1.0) ** 2 for side in (3.0, 4.0, 5.0)) / 3.0
    assert float(rkd_distance(right, equal)) == pytest.approx(sides)
    angles = sum(0.5 * (cosine - 0.5) ** 2 for cosine in (0.0, 0.6, 0.8)) / 3.0
    assert float(rkd_angle(right, equal)) == pytest.approx(angles)


def test_angles_and_relative_distances_see_no_scale_shift_nor_turn() -> None:
    turned, _ = torch.linalg.qr(TEACHER.T @ TEACHER)
    for function in (rkd_distance, rkd_angle):
        assert function(TEACHER, 1e3 * TEACHER @ turned - 4.0) < 1e-12
        assert function(TEACHER[:, :3], TEACHER) > 1e-3


def test_rows_in_one_place_have_no_angle_and_a_finite_slope() -> None:
    student = STUDENT[[0, 0, 1, 2, 3]].requires_grad_(True)
    for function in (rkd_distance, rkd_angle):
        value = function(student, TEACHER[:5])
        (slope,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert slope.isfinite().all()
        assert function(student, student.detach()) == 0.0


def test_names_a_batch_that_is_too_small() -> None:
    for loss, least in ((RKDDistance(), 2), (RKDAngle(), 3)):
        few = Outputs(torch.zeros(least - 1, 2), {PENULTIMATE: STUDENT[: least - 1]})
        message = f"{loss.name}: needs batches of at least {least} rows, found {least - 1}"
        with pytest.raises(ValueError, match=message):
            combine({"it": (1.0, loss)})(few, few, Batch(torch.zeros(least - 1, 1, 1, 1)))


def test_names_the_memory_that_a_large_batch_needs() -> None:
    """512 rows of 64 features: 6 x 512^2 + 9 x 64 x 512 numbers of 4 bytes at each vertex."""
    features = torch.zeros(512, 64)
    outputs = Outputs(torch.zeros(512, 2), {PENULTIMATE: features})
    message = (
        "rkd_angle: the angles of 512 rows need 7471104 bytes for each row, more than max_bytes=5000000; set rows="
    )
    with pytest.raises(ValueError, match=f"{message}410 to compare so many of them, or raise max_bytes"):
        RKDAngle(max_bytes=5_000_000)(outputs, outputs, Batch(torch.zeros(512, 1, 1, 1)))
    values = RKDAngle(rows=20)(outputs, outputs, Batch(torch.zeros(512, 1, 1, 1)))
    assert torch.equal(values, torch.zeros(512))
