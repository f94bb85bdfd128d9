"""How a sampler's draws lie beside data: quality and coverage in the teacher's features, and whether they are copies.

Precision and recall: Kynkäänniemi, Karras, Laine, Lehtinen, Aila: Improved Precision and Recall Metric for Assessing
Generative Models. 2019. arXiv:1904.06991. Density and coverage: Naeem, Oh, Uh, Choi, Yoo: Reliable Fidelity and
Diversity Metrics for Generative Models. 2020. arXiv:2002.09797. Fréchet distance: Heusel, Ramsauer, Unterthiner,
Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium. 2017.
arXiv:1706.08500. Changed: the features are those that the teacher's last linear layer is given, not a public network's,
so that values compare only for one teacher. Draws are compared with held-out rows, as many as there are draws.

Copies, no paper: how far a draw is from its nearest training row, beside how far held-out rows are from theirs.

All of them depend on the number of rows n, and those of balls on k: values compare only at equal n and k. The Fréchet
distance of samples of one distribution is above zero and falls as 1 / n.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from dfkd.fidelity.columns import answers
from dfkd.fidelity.metrics import Metric
from dfkd.fidelity.neighbours import membership, nearest
from dfkd.problem import PENULTIMATE, Probe
from dfkd.types import InputSpec

__all__ = [
    "QUALITY",
    "K",
    "Quality",
    "Reference",
    "copies",
    "features",
    "frechet_distance",
    "precision_recall_density_coverage",
]

K: Final = 5
"""The neighbour that a ball reaches to, as in arXiv:2002.09797; arXiv:1904.06991 takes 3 with 50 000 rows."""

QUALITY: Final[Mapping[str, Metric]] = {
    "feature_precision": Metric("draws within the balls around held-out rows: draws like data", True),
    "feature_recall": Metric("held-out rows within the balls around draws: data like draws", True),
    "density": Metric("balls around held-out rows that a draw lies in, over k", True, "balls"),
    "coverage": Metric("balls around held-out rows that hold a draw", True),
    "frechet_distance": Metric("squared distance of two normal distributions fitted to features", False, "squared"),
    "nearest_pixels": Metric("median distance of a draw to its nearest training row, per pixel", None, "pixels"),
    "nearest_pixels_test": Metric("the same of held-out rows", None, "pixels"),
    "copies_pixels": Metric("draws as near to a training row as the nearest held-out row is", None),
    "nearest_features": Metric("median distance of a draw to its nearest training row in features", None, "features"),
    "nearest_features_test": Metric("the same of held-out rows", None, "features"),
    "copies_features": Metric("draws as near to a training row in features as the nearest held-out row is", None),
}


@dataclass(frozen=True)
class Quality:
    """values: by the names of QUALITY, None where undefined. reasons: why, by the same names.

    n: rows on each side. training_rows: among which the nearest was looked for. k: see K.
    """

    values: Mapping[str, float | None]
    reasons: Mapping[str, str]
    n: int
    training_rows: int
    k: int = K


def precision_recall_density_coverage(
    real: Tensor, fake: Tensor, k: int = K, backend: str = "auto"
) -> dict[str, float | None]:
    """real (n, d), fake (m, d) -> the four, fractions but for density; None where a set has no more than k rows.

    A ball reaches from a row to its k-th nearest other row of the same set, surface included: for equal sets precision,
    recall and coverage are 1, and density is 1 + 1/k where no distances are equal.
    """
    names = ("feature_precision", "feature_recall", "density", "coverage")
    if min(len(real), len(fake)) <= k:
        _finite(real=real, fake=fake)
        return dict.fromkeys(names)
    around_real, around_fake = (nearest(x, x, k, backend=backend, others=True)[0][:, -1] for x in (real, fake))
    of_real, of_fake = membership(fake, real, around_real), membership(real, fake, around_fake)
    values = (
        (of_real.points > 0).double().mean(),
        (of_fake.points > 0).double().mean(),
        of_real.points.double().mean() / k,
        (of_real.balls > 0).double().mean(),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}  # sync


def frechet_distance(first: Tensor, second: Tensor) -> float | None:
    """Two (n, d) sets -> |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), covariances over n - 1; None below two rows.

    The root's trace is the sum of the singular values of A B^T for covariances A^T A and B^T B: no root of a matrix is
    taken that rounding has made indefinite.
    """
    _finite(first=first, second=second)
    if min(len(first), len(second)) < 2:
        return None
    means, roots, traces = [], [], []
    for x in (first.double(), second.double()):
        centred = (x - x.mean(dim=0)) / math.sqrt(len(x) - 1)
        means.append(x.mean(dim=0))
        roots.append(torch.linalg.qr(centred, mode="r").R)
        traces.append(centred.square().sum())
    between = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    gap = (means[0] - means[1]).square().sum()
    return max(0.0, float(gap + traces[0] + traces[1] - 2.0 * between))  # sync


def copies(draws: Tensor, held_out: Tensor | None) -> dict[str, float | None]:
    """Distances to the nearest training row of draws (n,) and held-out rows (m,) or None -> two medians and a share.

    share: draws at most as far from a training row as the nearest held-out row. Draws of the data's own distribution
    have about 1 / (m + 1); copies have 1.
    """
    median = float(draws.quantile(0.5))  # sync
    if held_out is None or not len(held_out):
        return {"nearest": median, "nearest_test": None, "copies": None}
    share = float((draws <= held_out.min()).double().mean())  # sync
    return {"nearest": median, "nearest_test": float(held_out.quantile(0.5)), "copies": share}  # sync


def _finite(**named: Tensor) -> None:
    for name, x in named.items():
        if x.ndim != 2 or not bool(x.isfinite().all()):  # sync
            raise ValueError(f"{name}: expected finite numbers (n, d), found NaN, infinity or shape {tuple(x.shape)}")


def features(teacher: Probe, x: Tensor, spec: InputSpec, batch: int = 500) -> Tensor:
    """x (n, c, h, w) uint8 or pixels -> (n, d) float32, what the teacher's last linear layer is given in mode `eval`.

    On the teacher's device, counted under "evaluate". UnsupportedProblem where it has no such layer.
    """
    given = answers(teacher, x, spec, batch=batch, taps=(PENULTIMATE,)).features[PENULTIMATE]
    return given.to(teacher.device)


@dataclass(frozen=True)
class Reference:
    """Data that draws are compared with: what of it is the same for all samplers, computed once. Make it with `of`.

    spaces: by `pixels` and `features`, where the data can be looked at so; reasons: why not, by the same names.
    """

    teacher: Probe
    spec: InputSpec
    spaces: "Mapping[str, _Space]"
    reasons: Mapping[str, str]

    @classmethod
    def of(cls, teacher: Probe, spec: InputSpec, training: Tensor, held_out: Tensor | None = None) -> "Reference":
        """training and held_out (n, c, h, w) uint8. Without held-out rows draws are compared with the training rows
        themselves, and nothing says how near is too near. The teacher is asked under "evaluate".
        """
        spaces, reasons = {}, {}
        for kind in ("pixels", "features"):
            try:
                rows = _embedded(kind, training, teacher, spec)
                beside = None if held_out is None else _embedded(kind, held_out, teacher, spec)
                unit = 255.0 / spec.span * math.sqrt(rows.shape[1]) if kind == "pixels" else 1.0
                distances = None if beside is None else nearest(beside, rows)[0][:, 0] / unit
                spaces[kind] = _Space(rows, beside, distances, unit)
            except ValueError as error:  # no such features, or not finite
                reasons[kind] = str(error)
        return cls(teacher, spec, spaces, reasons)

    def score(self, draws: Tensor, pick: Callable[[int, int], Tensor], rows: int) -> Quality:
        """draws (n, c, h, w) uint8, of which and of the data at most so many rows are compared.

        pick(n, m): the places of m of n rows, always the same.
        """
        space = self.spaces["pixels"]
        beside = space.training if space.held_out is None else space.held_out
        n = min(len(draws), len(beside), rows)
        some, where = draws[pick(len(draws), n).to(draws.device)], pick(len(beside), n)
        values: dict[str, float | None] = dict.fromkeys(QUALITY)
        reasons = {name: reason for kind, reason in self.reasons.items() for name in _NAMES[kind]}
        for kind, space in self.spaces.items():
            try:
                values |= self._in_space(kind, space, _embedded(kind, some, self.teacher, self.spec), where)
            except ValueError as error:
                reasons |= dict.fromkeys(_NAMES[kind], str(error))
        said = f"expected more than {K} rows on each side, found {n}"
        reasons |= {name: said for name in _BALLS if n <= K and name not in reasons}
        return Quality(values, reasons, n, len(self.spaces["pixels"].training))

    def _in_space(self, kind: str, space: "_Space", drawn: Tensor, where: Tensor) -> dict[str, float | None]:
        found = copies(nearest(drawn, space.training)[0][:, 0] / space.unit, space.distances)
        values = {f"nearest_{kind}": found["nearest"], f"nearest_{kind}_test": found["nearest_test"]}
        values[f"copies_{kind}"] = found["copies"]
        if kind == "features":
            beside = space.training if space.held_out is None else space.held_out
            real = beside[where.to(beside.device)]
            values |= precision_recall_density_coverage(real, drawn)
            values["frechet_distance"] = frechet_distance(real, drawn)
        return values


@dataclass(frozen=True)
class _Space:
    """training (m, d), held_out and its distances from training rows (n,), and the unit that they are divided by: for
    pixels 255 levels to the box and the root of their number, so that a distance is a root mean square of pixels."""

    training: Tensor
    held_out: Tensor | None
    distances: Tensor | None
    unit: float


def _embedded(kind: str, x: Tensor, teacher: Probe, spec: InputSpec) -> Tensor:
    return x.flatten(1).to(teacher.device) if kind == "pixels" else features(teacher, x, spec)


_BALLS = ("feature_precision", "feature_recall", "density", "coverage")
_NAMES: Final = {
    "pixels": ("nearest_pixels", "nearest_pixels_test", "copies_pixels"),
    "features": (*_BALLS, "frechet_distance", "nearest_features", "nearest_features_test", "copies_features"),
}
