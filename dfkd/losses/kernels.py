"""Relations between the rows of a batch, as one family: kernel x normalisation x diagonal x distance.

no paper of its own; the members and their papers are in relations.py. Letters: n rows, d features, i, j, k rows. A
member is a plain function of two sets of features too, which may differ in width: a loss and a metric alike.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dfkd.losses.norms import apart, scaled, unit

__all__ = ["Diagonal", "Distance", "Family", "Kernel", "Normalise", "angle_bytes", "relate", "relation", "require_rows"]

Kernel = Literal["gram", "centred_gram", "cosine", "gaussian", "distance", "angle"]
Normalise = Literal["none", "row_l2", "row_sum", "frobenius", "correlation", "mean"]
Diagonal = Literal["keep", "zero"]
Distance = Literal["square", "kl", "inner", "huber"]

_POSITIVE = ("cosine", "gaussian", "distance")  # kernels whose rows can be made to sum to 1
_SIMILAR = ("gram", "centred_gram", "cosine", "gaussian")  # kernels whose diagonal is a row's likeness to itself
_NOTHING = 1e-8  # beside a largest element of 1: rounding, not a direction
_SAME = 1e-6  # likewise, for differences of rows


@dataclass(frozen=True)
class Family:
    """One member.

    kernel: `gram` <f_i, f_j>; `centred_gram`, of features whose mean over rows is taken off; `cosine` (1 + cos) / 2;
    `gaussian` exp(-gamma |f_i - f_j|^2) of unit features, its series cut after the square; `distance`, Euclidean;
    `angle`, the cosine of the angle that rows i and k make at row j. normalise: `none`; `row_l2`, each row's norm is 1;
    `row_sum`, each row is a distribution; `frobenius`, the whole has norm 1; `correlation` k_ij / sqrt(k_ii k_jj);
    `mean`, over the mean of what is not 0. diagonal: `keep`, or `zero`, a row beside itself does not count. distance:
    `square`, mean of squared differences; `kl`, mean over rows of KL(teacher || student); `inner`, 1 - <a, b>; `huber`,
    mean of Huber's function with delta 1. gamma: > 0, of `gaussian`. rows: >= 1, so many rows spread evenly over the
    batch take part, None for all. max_bytes: > 0, what `angle` may take of memory: where all angles at once would take
    more, they are computed for some vertices at a time, and again for their gradient.
    """

    kernel: Kernel
    normalise: Normalise = "none"
    diagonal: Diagonal = "keep"
    distance: Distance = "square"
    gamma: float = 0.4
    rows: int | None = None
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        named = {"kernel": Kernel, "normalise": Normalise, "diagonal": Diagonal, "distance": Distance}
        for name, words in named.items():
            if getattr(self, name) not in get_args(words):
                found = getattr(self, name)
                raise ValueError(f"{name}: expected one of {', '.join(get_args(words))}, found {found!r}")
        if not 0.0 < self.gamma < math.inf:
            raise ValueError(f"gamma: expected a number > 0, found {self.gamma!r}")
        if self.rows is not None and self.rows < self.least:
            raise ValueError(f"rows: expected an integer >= {self.least}, found {self.rows!r}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes: expected an integer >= 1, found {self.max_bytes!r}")
        self._check_together()

    def _check_together(self) -> None:
        """ValueError for parts that have no meaning together."""

        def need(name: str, expected: Sequence[str], where: str) -> None:
            if getattr(self, name) not in expected:
                found = getattr(self, name)
                raise ValueError(f"{name}: expected {' or '.join(expected)} with {where}, found {found!r}")

        if self.kernel == "angle":
            need("normalise", ("none",), "kernel angle")
            need("diagonal", ("zero",), "kernel angle")
            need("distance", ("huber", "square"), "kernel angle")
        if self.normalise in ("row_sum", "mean"):
            need("kernel", _POSITIVE, f"normalise {self.normalise}")
        if self.normalise == "correlation":
            need("kernel", _SIMILAR, "normalise correlation")
        if self.distance == "kl":
            need("normalise", ("row_sum",), "distance kl")
        if self.distance == "inner":
            need("normalise", ("frobenius",), "distance inner")

    @property
    def least(self) -> int:
        """Rows without which nothing is counted."""
        if self.kernel == "angle":
            return 3
        return 2 if self.diagonal == "zero" else 1


def relation(student: Tensor, teacher: Tensor | Sequence[Tensor], family: Family, who: str = "relation") -> Tensor:
    """Features (n, ...) of the student and of one teacher or several -> 0-d, zero where the relations agree.

    Of several teachers the mean relation counts, whose gradient is the mean of theirs for all distances but `huber`.
    """
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    n = student.shape[0]
    for features in teachers:
        if features.shape[0] != n:
            raise ValueError(f"{who}: expected features of {n} rows from the teacher, found {features.shape[0]}")
    require_rows(n, family, who)
    if family.rows is not None and family.rows < n:
        index = torch.arange(family.rows, device=student.device) * n // family.rows
        student, teachers, n = student[index], [features[index] for features in teachers], family.rows
    if family.kernel == "angle":
        return _of_angles(student, teachers, family, who)
    ours = relate(student, family)
    theirs = relate(teachers[0], family)
    for features in teachers[1:]:
        theirs = theirs + relate(features, family)
    return _DISTANCES[family.distance](ours, theirs / len(teachers), _counted(n, family))


def require_rows(n: int, family: Family, who: str, widths: Sequence[int] = ()) -> None:
    """ValueError where n rows are too few, or too many for the memory that angles may take.

    widths: of the float32 features, the student's first; where they are known memory is looked at too.
    """
    if n < family.least:
        raise ValueError(f"{who}: needs batches of at least {family.least} rows, found {n}")
    if widths and family.kernel == "angle":
        _vertices(who, min(n, family.rows or n), widths, 4, family.max_bytes)


def relate(features: Tensor, family: Family) -> Tensor:
    """(n, ...) -> (n, n), for angles (n, n, n): the normalised relation, 0 where it does not count."""
    f = features.reshape(features.shape[0], -1)
    if family.kernel == "angle":
        return _angles(centred_and_scaled(f), torch.arange(len(f), device=f.device))
    kernel = _kernel(f, family)
    if family.normalise == "correlation":
        return _without_diagonal(_correlation(kernel), family)
    return _NORMALISED[family.normalise](_without_diagonal(kernel, family))


# -- kernels -----------------------------------------------------------------------------------------------------------


def centred(f: Tensor) -> Tensor:
    """Without the mean over rows. The centred Gram matrix H K H is the Gram matrix of these."""
    return f - f.mean(dim=0)


def centred_and_scaled(f: Tensor) -> Tensor:
    """Likewise at largest element 1; zero where all rows are equal but for rounding."""
    return scaled(centred(scaled(f)), _SAME)


def _kernel(f: Tensor, family: Family) -> Tensor:
    """(n, d) -> (n, n)."""
    free = family.normalise != "none"  # every normalisation takes the scale of the features out
    if family.kernel in ("gram", "centred_gram"):
        if family.kernel == "centred_gram":
            f = centred_and_scaled(f) if free else centred(f)
        elif free:
            f = scaled(f)
        return f @ f.T
    if family.kernel == "distance":
        f = centred_and_scaled(f) if free else f
        # not by products of rows, where near rows cancel; its gradient at distance 0 is 0
        return torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist")
    f = unit(scaled(f))
    cosine = f @ f.T
    if family.kernel == "cosine":
        return (0.5 + 0.5 * cosine).clamp_min(1e-7)  # opposite rows, so that a log of it is finite
    twice = 2.0 * family.gamma
    return math.exp(-twice) * (1.0 + twice * cosine + (twice * cosine).square() / 2.0)


# -- angles: as many numbers as the cube of the rows -------------------------------------------------------------------


def _of_angles(student: Tensor, teachers: Sequence[Tensor], family: Family, who: str) -> Tensor:
    """The distance of the angles, summed over as many vertices at a time as memory allows."""
    n = student.shape[0]
    ours, *theirs = (centred_and_scaled(features.reshape(n, -1)) for features in (student, *teachers))
    together = _vertices(who, n, [f.shape[1] for f in (ours, *theirs)], ours.element_size(), family.max_bytes)
    distance, counted = _DISTANCES[family.distance], _counted(n, family)

    def at(vertices: Tensor, own: Tensor, *others: Tensor) -> Tensor:
        mean = _angles(others[0], vertices)
        for other in others[1:]:
            mean = mean + _angles(other, vertices)
        return distance(_angles(own, vertices), mean / len(others), counted)

    everyone = torch.arange(n, device=student.device)
    if together >= n:
        return at(everyone, ours, *theirs)
    total = student.new_zeros(())
    for vertices in everyone.split(together):  # what a part would keep for its gradient is computed again for it
        total = total + checkpoint(at, vertices, ours, *theirs, use_reentrant=False, preserve_rng_state=False)
    return total


def _angles(f: Tensor, vertices: Tensor) -> Tensor:
    """(n, d), (m,) -> (m, n, n): [j, i, k] is the cosine of the angle at vertex j; 0 where not all three differ."""
    side = unit(f[None, :, :] - f[vertices, None, :], dim=2, nothing=_SAME)  # [j, i]: from vertex j to row i
    cosine = side @ side.transpose(1, 2)
    rows = torch.arange(len(f), device=f.device)
    itself = rows == vertices[:, None]
    return cosine.masked_fill(itself[:, :, None] | itself[:, None, :] | (rows == rows[:, None]), 0.0)


def angle_bytes(n: int, vertices: int, widths: Sequence[int], size: int = 4) -> int:
    """Memory that the angles of n rows at so many vertices take at most: student's features first, then each teacher's.

    Of cosines six sets are there at a time. Of sides nine of the student's while its gradient is taken, or before that
    two of them and three of a teacher's.
    """
    sides = max(9 * widths[0], 2 * widths[0] + 3 * max(widths[1:], default=0))
    return size * vertices * (6 * n**2 + sides * n)


def _vertices(who: str, n: int, widths: Sequence[int], size: int, allowed: int) -> int:
    """How many vertices at a time need no more memory than allowed; ValueError where not even one does."""
    needed = angle_bytes(n, 1, widths, size)
    if needed <= allowed:
        return allowed // needed
    fits = max((m for m in range(3, n) if angle_bytes(m, 1, widths, size) <= allowed), default=None)
    instead = "raise max_bytes" if fits is None else f"set rows={fits} to compare so many of them, or raise max_bytes"
    raise ValueError(
        f"{who}: the angles of {n} rows need {needed} bytes for each row, more than max_bytes={allowed}; {instead}"
    )


# -- normalisations, diagonals and distances ---------------------------------------------------------------------------


def _correlation(kernel: Tensor) -> Tensor:
    own = kernel.diagonal()
    inverse = torch.where(own > _NOTHING**2, own, 1.0).rsqrt()
    return kernel * inverse[:, None] * inverse[None, :]


def _row_sum(kernel: Tensor) -> Tensor:
    total = kernel.sum(dim=1, keepdim=True)
    return kernel / torch.where(total > _NOTHING, total, 1.0)


def _over_mean(kernel: Tensor) -> Tensor:
    there = (kernel > 0.0).sum()
    mean = kernel.sum() / there.clamp_min(1)
    return kernel / torch.where(there > 0, mean, 1.0)


def _without_diagonal(kernel: Tensor, family: Family) -> Tensor:
    if family.diagonal == "keep":
        return kernel
    return kernel.masked_fill(torch.eye(kernel.shape[0], dtype=torch.bool, device=kernel.device), 0.0)


def _counted(n: int, family: Family) -> tuple[int, int]:
    """(rows, pairs or triples) that a mean is over."""
    if family.kernel == "angle":
        return n, n * (n - 1) * (n - 2)
    return n, n * (n - 1) if family.diagonal == "zero" else n * n


def _square(ours: Tensor, theirs: Tensor, counted: tuple[int, int]) -> Tensor:
    return (ours - theirs).square().sum() / counted[1]


def _huber(ours: Tensor, theirs: Tensor, counted: tuple[int, int]) -> Tensor:
    return functional.huber_loss(ours, theirs, reduction="sum") / counted[1]


def _kl(ours: Tensor, theirs: Tensor, counted: tuple[int, int]) -> Tensor:
    p, q = theirs.clamp_min(1e-12), ours.clamp_min(1e-12)
    return (theirs * (p / q).log()).sum() / counted[0]


def _inner(ours: Tensor, theirs: Tensor, counted: tuple[int, int]) -> Tensor:
    del counted  # a single number for the whole
    return apart(ours, theirs, dim=(0, 1))


_NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda kernel: kernel,
    "row_l2": unit,
    "row_sum": _row_sum,
    "frobenius": lambda kernel: unit(kernel, dim=(0, 1)),
    "mean": _over_mean,
}
_DISTANCES: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "square": _square,
    "kl": _kl,
    "inner": _inner,
    "huber": _huber,
}
