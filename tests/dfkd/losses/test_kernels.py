"""The family of relations: every member against loops in Python, its invariances, its extremes, its gradient."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd.losses import Family, relate, relation
from dfkd.losses.kernels import Diagonal, Distance, Kernel, Normalise, angle_bytes

GENERATOR = torch.Generator().manual_seed(6)
STUDENT, TEACHER = torch.randn(5, 3, generator=GENERATOR), 2.0 * torch.randn(5, 4, generator=GENERATOR) + 0.5
Table = list[list[float]]


def members() -> list[Family]:
    """All parts that go together."""
    found = []
    for parts in itertools.product(*map(get_args, (Kernel, Normalise, Diagonal, Distance))):
        try:
            found.append(Family(*parts))
        except ValueError:
            continue
    return found


def label(family: Family) -> str:
    return f"{family.kernel} {family.normalise} {family.diagonal} {family.distance}"


MEMBERS = members()
EVERY = pytest.mark.parametrize("family", MEMBERS, ids=label)


def dot(a: list[float], b: list[float]) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def slow_kernel(rows: Table, kernel: str, gamma: float) -> Table:
    """[i][j] by the kernel's definition."""
    if kernel == "centred_gram":
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return slow_kernel([[v - m for v, m in zip(row, means, strict=True)] for row in rows], "gram", gamma)
    pairs: dict[str, Callable[[list[float], list[float]], float]] = {
        "gram": dot,
        "distance": math.dist,
        "cosine": lambda a, b: 0.5 * (1.0 + dot(a, b) / math.hypot(*a) / math.hypot(*b)),
        "gaussian": lambda a, b: (
            math.exp(-2 * gamma)
            * sum(
                (2 * gamma) ** p / math.factorial(p) * (dot(a, b) / math.hypot(*a) / math.hypot(*b)) ** p
                for p in range(3)
            )
        ),
    }
    return [[pairs[kernel](a, b) for b in rows] for a in rows]


def slow_relate(rows: Table, family: Family) -> Table:
    """The normalised relation, 0 on a diagonal that does not count."""
    k = slow_kernel(rows, family.kernel, family.gamma)
    n = range(len(k))
    if family.normalise == "correlation":
        k = [[k[i][j] / math.sqrt(k[i][i] * k[j][j]) for j in n] for i in n]
    if family.diagonal == "zero":
        k = [[0.0 if i == j else k[i][j] for j in n] for i in n]
    every = [value for row in k for value in row]
    if family.normalise == "row_l2":
        k = [[value / math.hypot(*row) for value in row] for row in k]
    elif family.normalise == "row_sum":
        k = [[value / sum(row) for value in row] for row in k]
    elif family.normalise == "frobenius":
        k = [[value / math.hypot(*every) for value in row] for row in k]
    elif family.normalise == "mean":
        positive = [value for value in every if value > 0.0]
        k = [[value / (sum(positive) / len(positive)) for value in row] for row in k]
    return k


def slow_angles(rows: Table) -> dict[tuple[int, int, int], float]:
    """Of distinct i, j, k: the cosine of the angle at j."""
    found = {}
    for i, j, k in itertools.permutations(range(len(rows)), 3):
        a, b = ([u - v for u, v in zip(rows[end], rows[j], strict=True)] for end in (i, k))
        found[i, j, k] = dot(a, b) / math.hypot(*a) / math.hypot(*b)
    return found


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1.0 else abs(x) - 0.5


def slow_relation(student: Table, teacher: Table, family: Family) -> float:
    if family.kernel == "angle":
        ours, theirs = slow_angles(student), slow_angles(teacher)
        values = [(ours[triple], theirs[triple]) for triple in ours]
    else:
        q, p = slow_relate(student, family), slow_relate(teacher, family)
        n = range(len(q))
        values = [(q[i][j], p[i][j]) for i in n for j in n if family.diagonal == "keep" or i != j]
    if family.distance == "kl":
        return sum(b * math.log(b / a) for a, b in values if b > 0.0) / len(student)
    if family.distance == "inner":
        return 1.0 - sum(a * b for a, b in values)
    of = huber if family.distance == "huber" else lambda x: x * x
    return sum(of(a - b) for a, b in values) / len(values)


@EVERY
def test_equals_its_definition(family: Family) -> None:
    slow = slow_relation(STUDENT.tolist(), TEACHER.tolist(), family)
    assert slow > 1e-5
    assert float(relation(STUDENT, TEACHER, family)) == pytest.approx(slow, rel=2e-4)
    exact = float(relation(STUDENT.double(), TEACHER.double(), family))
    assert exact == pytest.approx(slow_relation(STUDENT.double().tolist(), TEACHER.double().tolist(), family), rel=1e-9)


@EVERY
def test_is_zero_for_equal_features_and_the_same_in_any_order(family: Family) -> None:
    assert relation(TEACHER, TEACHER.clone(), family) == 0.0
    order = torch.tensor([3, 0, 4, 2, 1])
    student, teacher = STUDENT.double(), TEACHER.double()
    value = relation(student, teacher, family)
    torch.testing.assert_close(relation(student[order], teacher[order], family), value)
    assert not torch.isclose(relation(student[order], teacher, family), value)  # rows belong together


@EVERY
def test_does_not_see_rotations_nor_scale_where_that_is_normalised(family: Family) -> None:
    value = relation(STUDENT.double(), TEACHER.double(), family)
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    torch.testing.assert_close(relation(STUDENT.double() @ turned, TEACHER.double(), family), value)
    larger = relation(7.0 * STUDENT.double(), 0.01 * TEACHER.double(), family)
    raw = family.normalise == "none" and family.kernel in ("gram", "centred_gram", "distance")
    assert torch.isclose(larger, value) == (not raw)
    shifted = relation(STUDENT.double() + 3.0, TEACHER.double() - 1.0, family)
    assert torch.isclose(shifted, value) == (family.kernel in ("centred_gram", "distance", "angle"))


@EVERY
def test_maps_are_compared_flat(family: Family) -> None:
    maps = TEACHER.reshape(5, 1, 2, 2)
    assert torch.equal(relation(STUDENT, maps, family), relation(STUDENT, TEACHER, family))


@EVERY
def test_the_gradient_is_that_of_finite_differences(family: Family) -> None:
    student = STUDENT.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda f: relation(f, TEACHER.double(), family), (student,))
    scaled = (1e4 * STUDENT.double()).requires_grad_(True)
    (slope,) = torch.autograd.grad(relation(scaled, TEACHER.double(), family), scaled)
    assert slope.abs().max() > 0.0


def rows_of(kind: str) -> Tensor:
    some = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    kinds: dict[str, Callable[[], Tensor]] = {
        "zeros": lambda: torch.zeros(5, 4),
        "one row of zeros": lambda: some.index_fill(0, torch.tensor([2]), 0.0),
        "equal rows": lambda: some[:1].expand(5, 4).clone(),
        "two equal rows": lambda: some[[0, 1, 2, 0, 3]],
        "nearly equal rows": lambda: some[:1] + 1e-7 * some,
        "opposite rows": lambda: torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),
        "one line": lambda: torch.arange(5.0)[:, None].expand(5, 4).clone(),
        "large": lambda: 1e15 * some,
        "small": lambda: 1e-30 * some,
        "large beside small": lambda: some * torch.tensor([1e12, 1.0, 1e-12, 1.0, 1e6])[:, None],
        "far from 0": lambda: some + 1e6,
    }
    return kinds[kind]()


KINDS = ["zeros", "one row of zeros", "equal rows", "two equal rows", "nearly equal rows", "opposite rows"]
KINDS += ["one line", "large", "small", "large beside small", "far from 0"]


@EVERY
def test_is_finite_with_a_finite_gradient_at_extremes(family: Family) -> None:
    for mine, other in itertools.product(KINDS, ["zeros", "opposite rows", "equal rows", "large beside small"]):
        student = rows_of(mine).requires_grad_(True)
        if family.normalise == "none" and "large" in mine + other and family.kernel in ("gram", "centred_gram"):
            continue  # the square of what is not normalised is what it is
        value = relation(student, rows_of(other), family)
        (slope,) = torch.autograd.grad(value, student)
        assert value.isfinite(), (mine, other)
        assert value >= -1e-6, (mine, other)
        assert slope.isfinite().all(), (mine, other)


@EVERY
def test_squares_neither_overflow_nor_vanish_where_scale_is_normalised(family: Family) -> None:
    if family.normalise == "none" and family.kernel in ("gram", "centred_gram", "distance"):
        return  # what is not normalised is as large as it is
    value = relation(1e15 * STUDENT, 1e-7 * TEACHER, family)
    torch.testing.assert_close(value, relation(STUDENT, TEACHER, family), rtol=1e-3, atol=1e-7)


@EVERY
def test_rows_without_a_direction_have_a_slope_with_a_bound(family: Family) -> None:
    for kind in ("zeros", "equal rows"):
        student = rows_of(kind).requires_grad_(True)
        (slope,) = torch.autograd.grad(relation(student, TEACHER, family), student)
        assert slope.abs().max() < 100.0
        assert relation(rows_of(kind), rows_of(kind), family) == 0.0


def test_equal_rows_do_not_count_in_the_mean_distance() -> None:
    """Distances 0, 0, 3, 3, 3, 3 of three points on a line, two of them in one place: their mean is 3, not 2."""
    family = Family("distance", "mean", "zero", "huber")
    points = torch.tensor([[0.0], [0.0], [3.0]])
    torch.testing.assert_close(
        relate(points, family), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    )


def test_of_several_teachers_the_mean_relation_counts() -> None:
    second = torch.randn(5, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    teachers = [TEACHER.double(), second]
    for family in MEMBERS:
        if family.distance == "huber":
            continue
        student = STUDENT.double().requires_grad_(True)
        (together,) = torch.autograd.grad(relation(student, teachers, family), student)
        apart = [torch.autograd.grad(relation(student, teacher, family), student)[0] for teacher in teachers]
        torch.testing.assert_close(together, (apart[0] + apart[1]) / 2.0)
    correlations = [
        slow_relate(f.tolist(), Family("gram", "correlation", "zero")) for f in (STUDENT.double(), *teachers)
    ]
    pairs = list(itertools.permutations(range(5), 2))
    ours, first, other = correlations
    slow = sum((ours[i][j] - (first[i][j] + other[i][j]) / 2.0) ** 2 for i, j in pairs) / len(pairs)
    found = relation(STUDENT.double(), teachers, Family("gram", "correlation", "zero"))
    assert float(found) == pytest.approx(slow, rel=1e-9)


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f for f in MEMBERS if f.least > 1], ids=label)
def test_names_a_batch_that_is_too_small(family: Family) -> None:
    least = 3 if family.kernel == "angle" else 2
    few = STUDENT[: least - 1]
    with pytest.raises(ValueError, match=f"what: needs batches of at least {least} rows, found {least - 1}"):
        relation(few, few, family, "what")
    assert relation(STUDENT[:least], TEACHER[:least], family).isfinite()


@pytest.mark.parametrize("family", [f for f in MEMBERS if f.least == 1], ids=label)
def test_one_row_alone_is_finite(family: Family) -> None:
    student = STUDENT[:1].clone().requires_grad_(True)
    value = relation(student, TEACHER[:1], family)
    (slope,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert slope.isfinite().all()


def test_names_features_of_other_rows() -> None:
    with pytest.raises(ValueError, match="relation: expected features of 5 rows from the teacher, found 4"):
        relation(STUDENT, TEACHER[:4], MEMBERS[0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kernel": "grm"}, "kernel: expected one of gram, .*, found 'grm'"),
        ({"kernel": "gram", "normalise": "row_sum"}, "kernel: expected cosine or gaussian or distance with normalise"),
        ({"kernel": "gram", "distance": "kl"}, "normalise: expected row_sum with distance kl, found 'none'"),
        ({"kernel": "gram", "distance": "inner"}, "normalise: expected frobenius with distance inner, found 'none'"),
        ({"kernel": "distance", "normalise": "correlation"}, "kernel: .* with normalise correlation, found 'distance'"),
        ({"kernel": "angle"}, "diagonal: expected zero with kernel angle, found 'keep'"),
        ({"kernel": "gaussian", "gamma": 0.0}, "gamma: expected a number > 0, found 0.0"),
        ({"kernel": "gram", "rows": 0}, "rows: expected an integer >= 1, found 0"),
        ({"kernel": "gram", "diagonal": "zero", "rows": 1}, "rows: expected an integer >= 2, found 1"),
        ({"kernel": "gram", "max_bytes": 0}, "max_bytes: expected an integer >= 1, found 0"),
    ],
)
def test_refuses(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Family(**parts)


# -- memory ------------------------------------------------------------------------------------------------------------


def angles(rows: int | None = None, max_bytes: int = 2**30) -> Family:
    return Family("angle", "none", "zero", "huber", rows=rows, max_bytes=max_bytes)


@pytest.mark.parametrize(("n", "ours", "theirs"), [(30, 8, 4), (12, 200, 300), (40, 1, 1)])
def test_what_angles_keep_for_their_gradient_is_within_what_is_said(n: int, ours: int, theirs: int) -> None:
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    student, teacher = torch.randn(n, ours, requires_grad=True), torch.randn(n, theirs)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = relation(student, teacher, angles())
        said = angle_bytes(n, n, (ours, theirs))
        assert 0.15 * said < sum(kept.values()) < said
    value.backward()


def test_refuses_angles_that_need_more_memory_than_allowed_and_offers_fewer_rows() -> None:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(3))
    needed = 4 * (6 * 60**2 + 9 * 5 * 60)
    message = (
        rf"rkd_angle: the angles of 60 rows need {needed} bytes for each row, more than max_bytes=20000; set rows="
    )
    with pytest.raises(ValueError, match=message) as refused:
        relation(features, features, angles(max_bytes=20_000), "rkd_angle")
    rows = int(str(refused.value).partition("rows=")[2].split()[0])
    assert relation(features, features, angles(rows=rows, max_bytes=20_000)) == 0.0
    with pytest.raises(ValueError, match=f"the angles of {rows + 1} rows"):
        relation(features, features, angles(rows=rows + 1, max_bytes=20_000))
    with pytest.raises(ValueError, match="more than max_bytes=100; raise max_bytes"):
        relation(features, features, angles(max_bytes=100))
    assert relation(features, features, angles(max_bytes=needed)) == 0.0


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, made.numel() if isinstance(made, Tensor) else 0)
        return made


@pytest.mark.parametrize("distance", ["huber", "square"])
def test_angles_at_some_rows_at_a_time_are_those_of_all(distance: Distance) -> None:
    """Value and slope, of several teachers too, without a tensor of n^3 numbers in either pass."""
    n = 20
    values = torch.randn(n, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    teachers = [
        3.0 * torch.randn(n, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) for d in (2, 5)
    ]
    found = []
    for at_a_time in (n, 7, 1):
        limit = angle_bytes(n, at_a_time, (3, 2, 5), 8)
        student = values.clone().requires_grad_(True)
        with Largest() as largest:
            value = relation(student, teachers, replace(angles(max_bytes=limit), distance=distance))
            value.backward()
        found.append((value.detach(), student.grad))
        assert largest.elements == at_a_time * n**2
    assert found[0][0] > 1e-3
    for part in found[1:]:
        torch.testing.assert_close(part, found[0])


def test_fewer_rows_are_spread_over_the_batch() -> None:
    features, other = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(4))
    for family in (angles(rows=4), Family("gram", "correlation", "zero", rows=4)):
        chosen = [0, 2, 5, 7]
        torch.testing.assert_close(relation(features, other, family), relation(features[chosen], other[chosen], family))
    assert relation(features, other, angles(rows=50)) == relation(features, other, angles())
