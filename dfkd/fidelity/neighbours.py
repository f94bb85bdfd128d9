"""Which rows lie nearest, and which lie within a radius: Euclidean, exact, the same from every backend.

No paper. A backend is asked for more neighbours than are wanted, in whatever precision it computes; their distances are
then taken in float64 from the differences themselves. Where a row that it left out could still be as near, given how
far its rounding can be off, all rows are compared: nothing depends on the backend but the time it takes. Equal
distances go to the lower row. Rows may be uint8, as images are kept; they become floats block by block.
"""

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor

from dfkd.naming import unknown

__all__ = ["BACKENDS", "Membership", "choose", "membership", "nearest"]

SPARE: Final = 8  # neighbours more than are wanted
MANY_ROWS: Final = 1_000_000  # from here on faiss is quicker than a matrix product, where it is installed
_CELLS: Final = 2**23  # numbers in a block: 64 MB as float64
_UNIT: Final = 2.0**-24  # relative rounding of float32
_TINY: Final = 2.0**-126  # below it float32 loses digits


def nearest(
    queries: Tensor, rows: Tensor, k: int = 1, *, backend: str = "auto", others: bool = False
) -> tuple[Tensor, Tensor]:
    """queries (n, d), rows (m, d), floats or uint8, on one device -> distances (n, k) float64, places (n, k) int64.

    Sorted by distance, then by place. backend: one of BACKENDS. others: the queries are the rows, and none is its own
    neighbour. ValueError where there are fewer than k, for shapes that differ and for numbers that are not finite.
    """
    _check(queries, rows)
    count = len(rows) - int(others)
    if not 1 <= k <= count:
        raise ValueError(f"k: expected 1 to {count}, as there are so many neighbours, found {k!r}")
    search = BACKENDS[choose(backend, len(rows))]
    want = min(len(rows), k + int(others) + SPARE)
    distances = torch.empty(len(queries), k, dtype=torch.float64, device=queries.device)
    places = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    step = max(1, _CELLS // max(1, want * rows.shape[1]))
    first = 0
    for found, last, slack in search(queries, rows, want):
        for part, reach, off in zip(found.split(step), last.split(step), slack.split(step), strict=True):
            own = torch.arange(first, first + len(part), device=part.device) if others else None
            some = queries[first : first + len(part)]
            squared, place = _refined(some, rows, part, k, own)
            # of what overflowed nothing is sure, and faiss finds fewer than it is asked for: the others are -1
            sure = (squared[:, -1] < reach - off) | ((want == len(rows)) & (part >= 0).all(dim=1))
            for index in (~sure).nonzero()[:, 0].tolist():  # sync
                alone = None if own is None else own[index : index + 1]
                squared[index], place[index] = _exhaustive(some[index], rows, k, alone)
            distances[first : first + len(part)], places[first : first + len(part)] = squared.sqrt(), place
            first += len(part)
    return distances, places


def choose(backend: str, rows: int) -> str:
    """`auto` as the backend that it stands for with so many rows; ImportError where one is named that is missing."""
    if backend == "auto":
        return "faiss" if rows >= MANY_ROWS and find_spec("faiss") is not None else "torch"
    if backend not in BACKENDS:
        raise unknown("backend", backend, ["auto", *BACKENDS])
    if backend == "faiss" and find_spec("faiss") is None:
        raise ImportError("backend: faiss is not installed; pip install 'dfkd[faiss]', or with a GPU 'dfkd[gpu]'")
    return backend


# -- exact distances ---------------------------------------------------------------------------------------------------


def _squared(queries: Tensor, rows: Tensor) -> Tensor:
    """(n, d) and (n, m, d) or (m, d) -> (n, m) float64, from the differences."""
    return (rows.double() - queries.double()[:, None]).square().sum(dim=2)


def _refined(queries: Tensor, rows: Tensor, found: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k nearest among candidates (n, want): squared distances and places, by distance, then by place."""
    found = found.sort(dim=1).values
    squared = _squared(queries, rows[found])
    if own is not None:
        squared = squared.masked_fill(found == own[:, None], torch.inf)
    order = squared.sort(dim=1, stable=True).indices[:, :k]
    return squared.gather(1, order), found.gather(1, order)


def _exhaustive(query: Tensor, rows: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same among all rows, of one query (d,)."""
    squared = torch.cat([_squared(query[None], rows[part])[0] for part in _slices(len(rows), rows.shape[1])])
    if own is not None:
        squared[own] = torch.inf
    values, places = squared.sort(stable=True)
    return values[:k], places[:k]


def _slices(n: int, width: int) -> Iterator[slice]:
    step = max(1, _CELLS // max(1, width))
    return (slice(start, start + step) for start in range(0, n, step))


def _check(queries: Tensor, rows: Tensor) -> None:
    for name, value in (("queries", queries), ("rows", rows)):
        if value.ndim != 2 or len(value) < 1:
            raise ValueError(f"{name}: expected (n, d) with n >= 1, found {tuple(value.shape)}")
        if value.is_floating_point() and not bool(value.isfinite().all()):  # sync
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
    if queries.shape[1] != rows.shape[1]:
        raise ValueError(f"rows: expected rows of {queries.shape[1]} numbers as queries have, found {rows.shape[1]}")


# -- backends: (places (n, want), squared distance of the last, how far that may be off), block by block ---------------

_Blocks = Iterator[tuple[Tensor, Tensor, Tensor]]


def _by_torch(queries: Tensor, rows: Tensor, want: int) -> _Blocks:
    """By matrix products in float32, a block of queries against a block of rows at a time."""
    centre = _centre(rows)
    lengths = _lengths(rows, centre)
    width = max(rows.shape[1], 1024)
    for part in _slices(len(queries), width):
        some = _centred(queries[part], centre)
        values = torch.empty(len(some), 0, device=rows.device)
        places = torch.empty(len(some), 0, dtype=torch.int64, device=rows.device)
        for block in _slices(len(rows), max(width, len(some))):
            squared = _products(some, _centred(rows[block], centre), lengths[block])
            values = torch.cat([values, squared], dim=1)
            here = torch.arange(block.start, block.start + squared.shape[1], device=rows.device)
            places = torch.cat([places, here.expand_as(squared)], dim=1)
            values, order = values.topk(min(want, values.shape[1]), dim=1, largest=False)
            places = places.gather(1, order)
        yield places, values[:, -1].double(), _off(some, lengths.max(), rows.shape[1])


def _by_faiss(queries: Tensor, rows: Tensor, want: int) -> _Blocks:
    """By a flat index, on the GPU where rows and faiss are there."""
    faiss = _faiss()
    centre = _centre(rows)
    index = faiss.IndexFlatL2(rows.shape[1])
    if rows.is_cuda and hasattr(faiss, "StandardGpuResources"):
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), rows.device.index or 0, index)
    for part in _slices(len(rows), rows.shape[1]):
        index.add(_centred(rows[part], centre).cpu().contiguous().numpy())  # sync
    longest = _lengths(rows, centre).max()
    for part in _slices(len(queries), rows.shape[1]):
        some = _centred(queries[part], centre)
        squared, places = index.search(some.cpu().contiguous().numpy(), want)  # sync
        reach = torch.from_numpy(squared[:, -1]).to(rows.device).double()
        yield torch.from_numpy(places).to(rows.device), reach, _off(some, longest, rows.shape[1])


def _faiss() -> Any:
    with warnings.catch_warnings():
        # of the types that its wrapper makes, from Python 3.12 on
        warnings.filterwarnings("ignore", r"builtin type \w+ has no __module__ attribute", DeprecationWarning)
        import faiss
    return faiss


def _by_sklearn(queries: Tensor, rows: Tensor, want: int) -> _Blocks:
    """By scikit-learn's trees, which suit few dimensions, in float64."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=want).fit(rows.double().cpu().numpy())  # sync
    distances, places = search.kneighbors(queries.double().cpu().numpy())  # sync
    reach = torch.from_numpy(distances[:, -1]).to(rows.device).square()
    longest = rows.double().square().sum(dim=1).max()
    off = _off(queries.double(), longest, rows.shape[1]) * (2.0**-53 / _UNIT)
    yield torch.from_numpy(places).to(rows.device), reach, off


BACKENDS: Final[dict[str, Callable[[Tensor, Tensor, int], _Blocks]]] = {
    "torch": _by_torch,
    "faiss": _by_faiss,
    "sklearn": _by_sklearn,
}


def _products(queries: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances (n, m) float32 as |q|^2 - 2 q r + |r|^2, which may be off by `_off`."""
    own = queries.square().sum(dim=1, keepdim=True)
    return torch.addmm(own + lengths.float(), queries, rows.T, alpha=-2.0)


def _centre(rows: Tensor) -> Tensor:
    """(d,): what is taken off all rows before they are rounded to float32."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in _slices(len(rows), rows.shape[1]):
        total += rows[part].double().sum(dim=0)
    mean: Tensor = total / len(rows)
    return mean.float()


def _centred(rows: Tensor, centre: Tensor) -> Tensor:
    """float32, rounded once: what the rows have in common is no part of the rounding."""
    return (rows.double() - centre).float()


def _lengths(rows: Tensor, centre: Tensor) -> Tensor:
    """(m,) float64: squared distances from the centre."""
    parts = _slices(len(rows), rows.shape[1])
    return torch.cat([_centred(rows[part], centre).double().square().sum(dim=1) for part in parts])


def _off(queries: Tensor, longest: Tensor, d: int) -> Tensor:
    """(n,): how far a squared distance in float32 may be off, whatever the order in which d products are added.

    Each of the d + 8 roundings is at most one unit of what has been added up, which stays within (|q| + |r|)^2; what
    overflows may be anything.
    """
    most = (queries.double().norm(dim=1) + longest.double().sqrt()).square()
    return _rounding(most, d)


def _rounding(most: Tensor, d: int) -> Tensor:
    return torch.where(most < 1e38, (d + 8) * (_UNIT * most + _TINY), torch.inf)


# -- within a radius ---------------------------------------------------------------------------------------------------


class Membership:
    """points (n,) int64: how many balls each point lies in. balls (m,) int64: how many points each ball holds."""

    def __init__(self, n: int, m: int, device: torch.device) -> None:
        self.points = torch.zeros(n, dtype=torch.int64, device=device)
        self.balls = torch.zeros(m, dtype=torch.int64, device=device)


def membership(points: Tensor, centres: Tensor, radii: Tensor) -> Membership:
    """points (n, d), centres (m, d), radii (m,) float64 as `nearest` gives them -> who lies in which ball.

    The surface belongs to the ball. Exact: where float32 cannot tell, the distance is taken in float64 as `nearest`
    takes it, so that the neighbour that a radius was measured to lies within it.
    """
    _check(points, centres)
    if radii.shape != (len(centres),):
        raise ValueError(f"radii: expected one for each of {len(centres)} centres, found {tuple(radii.shape)}")
    found = Membership(len(points), len(centres), points.device)
    middle = _centre(centres)
    lengths = _lengths(centres, middle)
    for rows in _slices(len(points), max(points.shape[1], 1024)):
        some = _centred(points[rows], middle)
        for balls in _slices(len(centres), max(points.shape[1], len(some))):
            block = _centred(centres[balls], middle)
            squared = _products(some, block, lengths[balls]).double()
            limit = radii[balls].square()
            reach = (some.double().norm(dim=1)[:, None] + lengths[balls].sqrt()).square()
            off = _rounding(reach, points.shape[1])
            inside = squared < limit - off
            here, there = (~((squared - limit).abs() > off)).nonzero(as_tuple=True)  # sync
            for few in _slices(len(here), points.shape[1]):
                a, b = here[few], there[few]
                exact = _squared(points[rows][a], centres[balls][b][:, None])[:, 0].sqrt()
                inside[a, b] = exact <= radii[balls][b]
            found.points[rows] += inside.sum(dim=1)
            found.balls[balls] += inside.sum(dim=0)
    return found
