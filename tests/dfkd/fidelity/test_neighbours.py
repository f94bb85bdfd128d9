"""Nearest rows and rows within a radius against plain Python, where distances tie, and from every backend alike."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfkd.fidelity import neighbours
from dfkd.fidelity.neighbours import BACKENDS, MANY_ROWS, choose, membership, nearest

Make = Callable[[int, int, int], Tensor]
EVERY = pytest.mark.parametrize("backend", sorted(BACKENDS))


def slow_nearest(
    queries: Tensor, rows: Tensor, k: int, others: bool = False
) -> tuple[list[list[float]], list[list[int]]]:
    """Every distance in Python floats, sorted by (distance, place)."""
    distances, places = [], []
    for i, query in enumerate(queries.tolist()):
        found = [
            (sum((a - b) ** 2 for a, b in zip(query, row, strict=True)), j)
            for j, row in enumerate(rows.tolist())
            if not (others and i == j)
        ]
        found.sort()
        distances.append([math.sqrt(d) for d, _ in found[:k]])
        places.append([j for _, j in found[:k]])
    return distances, places


def random(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def grid(n: int, d: int, seed: int) -> Tensor:
    """Whole numbers from 0 to 2: distances tie everywhere, and rows repeat."""
    return torch.randint(0, 3, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def same(found: tuple[Tensor, Tensor], expected: tuple[list[list[float]], list[list[int]]]) -> None:
    assert found[1].tolist() == expected[1]
    torch.testing.assert_close(found[0], torch.tensor(expected[0], dtype=torch.float64), rtol=1e-12, atol=1e-12)


@EVERY
@pytest.mark.parametrize(("n", "m", "d", "k"), [(13, 60, 7, 3), (1, 1, 1, 1), (5, 12, 2, 12), (30, 40, 70, 1)])
@pytest.mark.parametrize("make", [random, grid])
def test_equals_every_distance_in_plain_python(make: Make, n: int, m: int, d: int, k: int, backend: str) -> None:
    queries, rows = make(n, d, 1), make(m, d, 2)
    same(nearest(queries, rows, k, backend=backend), slow_nearest(queries, rows, k))


@EVERY
def test_a_row_is_not_its_own_neighbour_but_its_copies_are(backend: str) -> None:
    """Twenty copies of one row among others: more than are looked at beyond those that are wanted."""
    rows = torch.cat([random(10, 4, 3), random(1, 4, 4).expand(20, 4), random(10, 4, 5)])
    same(nearest(rows, rows, 3, backend=backend, others=True), slow_nearest(rows, rows, 3, others=True))
    distances, places = nearest(rows[10:11], rows, 3, backend=backend)
    assert (distances.tolist(), places.tolist()) == ([[0.0] * 3], [[10, 11, 12]])


@EVERY
def test_images_are_exact_as_bytes_and_far_from_zero_too(backend: str) -> None:
    generator = torch.Generator().manual_seed(6)
    queries, rows = (torch.randint(0, 256, (n, 50), generator=generator, dtype=torch.uint8) for n in (9, 40))
    rows[7] = queries[4]
    same(nearest(queries, rows, 2, backend=backend), slow_nearest(queries, rows, 2))
    # 1e4 from the origin and 1e-3 from one another: the squares of the lengths alone have no digit left for that
    queries, rows = (1e4 + 1e-3 * random(n, 6, 7 + n).round(decimals=1) for n in (8, 30))
    same(nearest(queries, rows, 2, backend=backend), slow_nearest(queries, rows, 2))


@EVERY
@pytest.mark.parametrize(("m", "scale"), [(20, 1e30), (5, 1e30), (9, 1e19)])
def test_numbers_whose_squares_overflow_float32(backend: str, m: int, scale: float) -> None:
    queries, rows = scale * random(4, 3, 1), scale * random(m, 3, 2)
    found = nearest(queries, rows, 2, backend=backend)
    expected = slow_nearest(queries, rows, 2)
    assert found[1].tolist() == expected[1]
    torch.testing.assert_close(found[0], torch.tensor(expected[0], dtype=torch.float64), rtol=1e-12, atol=0.0)


@EVERY
def test_blocks_make_no_difference(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, rows = grid(23, 5, 1), grid(57, 5, 2)
    whole = nearest(queries, rows, 4, backend=backend)
    monkeypatch.setattr(neighbours, "_CELLS", 40)
    for a, b in zip(whole, nearest(queries, rows, 4, backend=backend), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(membership(queries, rows, torch.full((57,), 1.5, dtype=torch.float64)).points, slow_count(1.5))


def slow_count(radius: float) -> Tensor:
    queries, rows = grid(23, 5, 1).tolist(), grid(57, 5, 2).tolist()
    return torch.tensor([sum(math.dist(q, r) <= radius for r in rows) for q in queries])


@pytest.mark.parametrize("make", [random, grid])
def test_membership_equals_every_distance_in_plain_python(make: Make) -> None:
    points, centres = make(31, 4, 1), make(26, 4, 2)
    radii = nearest(centres, centres, 2, others=True)[0][:, -1]

    def length(a: list[float], b: list[float]) -> float:
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))

    slow_radii = slow_nearest(centres, centres, 2, others=True)[0]
    inside = [
        [length(p, c) <= r[-1] for c, r in zip(centres.tolist(), slow_radii, strict=True)] for p in points.tolist()
    ]
    found = membership(points, centres, radii)
    assert found.points.tolist() == [sum(row) for row in inside]
    assert found.balls.tolist() == [sum(column) for column in zip(*inside, strict=True)]
    assert 0 < sum(map(sum, inside)) < 31 * 26


@pytest.mark.parametrize("d", [1, 3, 64, 513])
def test_the_neighbour_that_a_radius_was_measured_to_is_within_it(d: int) -> None:
    """Without ties each ball around a row holds the row and its k nearest, whatever the rounding."""
    rows = 50.0 + random(90, d, d)
    found = membership(rows, rows, nearest(rows, rows, 4, others=True)[0][:, -1])
    assert found.balls.tolist() == [5] * 90


@EVERY
def test_names_what_is_wrong(backend: str) -> None:
    x = random(5, 3, 1)
    for k in (0, 6):
        with pytest.raises(ValueError, match=rf"k: expected 1 to 5, as there are so many neighbours, found {k}"):
            nearest(x, x, k, backend=backend)
    with pytest.raises(ValueError, match="k: expected 1 to 4"):
        nearest(x, x, 5, backend=backend, others=True)
    with pytest.raises(ValueError, match="rows: expected rows of 3 numbers as queries have, found 2"):
        nearest(x, x[:, :2], backend=backend)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="rows: expected finite numbers, found NaN or infinity"):
            nearest(x, x.clone().fill_diagonal_(bad), backend=backend)
    with pytest.raises(ValueError, match=r"queries: expected \(n, d\) with n >= 1, found \(0, 3\)"):
        nearest(x[:0], x, backend=backend)
    with pytest.raises(ValueError, match=r"radii: expected one for each of 5 centres, found \(4,\)"):
        membership(x, x, torch.ones(4))


def test_the_choice_is_by_size_and_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (choose("auto", 10), choose("auto", MANY_ROWS), choose("sklearn", 10)) == ("torch", "faiss", "sklearn")
    with pytest.raises(ValueError, match="backend: unknown 'fais'; the nearest is 'faiss'"):
        choose("fais", 10)
    monkeypatch.setattr(neighbours, "find_spec", lambda name: None)
    assert choose("auto", MANY_ROWS) == "torch"
    with pytest.raises(ImportError, match=r"faiss is not installed; pip install 'dfkd\[faiss\]'"):
        choose("faiss", 10)


def test_faiss_is_imported_without_a_warning_and_only_where_it_searches() -> None:
    code = (
        "import sys, torch; from dfkd.fidelity import neighbours as n; assert 'faiss' not in sys.modules\n"
        "x = torch.eye(3); print(n.nearest(x, x, 1, backend='faiss')[1].tolist())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[[0], [1], [2]]", 0), done.stderr
