"""How far an order of samplers, made before or without any test, is that of their students' test agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]

__all__ = ["Correlation", "correlate", "misplaced", "spearman"]

RESAMPLES = 2000


@dataclass(frozen=True)
class Correlation:
    """rho: Spearman's. low, high: 95 % of bootstrap resamples of the samplers. regret: how much less than the best
    agreement the sampler has that the order puts first; first: which it is. samplers: how many were ordered."""

    rho: float
    low: float
    high: float
    first: str
    regret: float
    samplers: int


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, ties sharing theirs; None where either side is constant."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0.0 else None


def correlate(order: Mapping[str, float], agreement: Mapping[str, float]) -> Correlation | None:
    """order: the higher the better expected; of the samplers that both have. None for fewer than three or all equal."""
    labels = [label for label in order if label in agreement]
    x, y = np.array([order[k] for k in labels]), np.array([agreement[k] for k in labels])
    rho = spearman(x.tolist(), y.tolist()) if len(labels) > 2 else None
    if rho is None:
        return None
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(labels), (RESAMPLES, len(labels)))
    again = [found for pick in picks if (found := spearman(x[pick].tolist(), y[pick].tolist())) is not None]
    low, high = np.quantile(again, [0.025, 0.975])
    first = labels[int(x.argmax())]
    return Correlation(rho, float(low), float(high), first, float(y.max() - agreement[first]), len(labels))


def misplaced(order: Mapping[str, float], agreement: Mapping[str, float], most: int = 5) -> list[tuple[str, int, int]]:
    """(label, place in the order, place by agreement), the farthest apart first, where they differ."""
    labels = [label for label in order if label in agreement]

    def places(values: Mapping[str, float]) -> dict[str, int]:
        ranked = sorted(labels, key=lambda label: -values[label])
        return {label: place for place, label in enumerate(ranked, 1)}

    said, true = places(order), places(agreement)
    apart = sorted(labels, key=lambda label: -abs(said[label] - true[label]))
    return [(label, said[label], true[label]) for label in apart[:most] if said[label] != true[label]]
