"""How alike the features of two models are on the same rows, whatever their widths.

Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited. 2019. arXiv:1905.00414 for the
linear centred kernel alignment; He, Ozay: Feature Kernel Distillation. 2022. openreview:tBIQEvApZK5 for the distance of
correlations. Changed: nothing; both are the functions that losses of these names minimise, in float64.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from dfkd.fidelity.metrics import Metric
from dfkd.losses import cka, fkd
from dfkd.losses.features import Pairs
from dfkd.problem import PENULTIMATE, Probe

__all__ = ["FEATURE_METRICS", "default_pairs", "feature_scores", "pair_name"]

FEATURE_METRICS: Final[Mapping[str, Metric]] = {
    "cka": Metric("alignment of the rows' similarities in two layers, blind to rotation and scale; 1 for equal", True),
    "fkd": Metric("mean squared difference of the correlations of two rows' features", False, "squared"),
}

_SAME = 1e-6  # features that vary by less of their size are constant: what is left is rounding


def feature_scores(student: Tensor, teacher: Tensor) -> dict[str, float | None]:
    """Features (n, ...) of the same rows -> the metrics of FEATURE_METRICS; None where one of them is undefined.

    Features that are the same in all rows have no alignment; of one row alone nothing can be said.
    """
    ours, theirs = (_scaled(features.flatten(1).double()) for features in (student, teacher))
    if len(ours) != len(theirs):
        raise ValueError(f"teacher: expected features of {len(ours)} rows, found {len(theirs)}")
    finite = bool(ours.isfinite().all()) and bool(theirs.isfinite().all())  # sync
    if not finite or len(ours) < 2:
        return dict.fromkeys(FEATURE_METRICS)
    aligned = None if _constant(ours) or _constant(theirs) else 1.0 - float(cka(ours, theirs))  # sync
    return {"cka": aligned, "fkd": float(fkd(ours, theirs))}  # sync


def _scaled(features: Tensor) -> Tensor:
    """At a largest element of 1: neither metric sees the scale, but what is tiny would count as nothing."""
    largest = features.abs().amax()
    return features / largest if largest > 0.0 else features


def _constant(features: Tensor) -> bool:
    return bool((features - features.mean(dim=0)).abs().amax() <= _SAME)  # sync


def default_pairs(student: Probe, teacher: Probe) -> Pairs:
    """The penultimate features, where both models have them."""
    both = all("penultimate" in probe.capabilities for probe in (student, teacher))
    return ((PENULTIMATE, PENULTIMATE),) if both else ()


def pair_name(metric: str, pair: tuple[str, str]) -> str:
    """`cka@penultimate`, of two layers of different names `cka@layer2=layer3`, the student's first."""
    return f"{metric}@{'='.join(dict.fromkeys(pair))}"
