"""What a teacher alone says about a sampler's images, before any student is trained.

Yin et al.: Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion. 2020. arXiv:1912.08795 (the distance to
the stored BatchNorm statistics). Wang et al.: What Makes a "Good" Data Augmentation in Knowledge Distillation - A
Statistical Perspective. 2020. arXiv:2012.02909 (the spread of the mean prediction; over batches is this project's
reading). Frank, Davis: What Makes a Good Dataset for Knowledge Distillation? 2024. arXiv:2411.12817 (the entropy of the
histogram of classes). Friedman, Dieng: The Vendi Score: A Diversity Evaluation Metric for Machine Learning. 2022.
arXiv:2210.02410 (how many different rows there are; here of the teacher's last features, by their cosines). How near
rows are to where the teacher changes its mind, and how rough images are, is in boundary.py and spectrum.py. Changed:
distances are in the standard deviations that a layer divides by, so that they compare across layers and teachers.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from dfkd.fidelity.boundary import boundary_share
from dfkd.fidelity.columns import chunks
from dfkd.fidelity.metrics import Metric
from dfkd.fidelity.spectrum import spectral_slope
from dfkd.pixels import to_pixels
from dfkd.problem import BatchNormInput, Probe
from dfkd.types import BatchNormMode, InputSpec, Labelling, whole

__all__ = ["DIAGNOSTICS", "Diagnosis", "LayerShift", "diagnose"]

DIAGNOSTICS: Final[Mapping[str, Metric]] = {
    "histogram_entropy": Metric("entropy of how often the teacher names each class, over ln k", None),
    "mean_prediction_entropy": Metric("entropy of the teacher's mean probabilities, over ln k", None),
    "mean_confidence": Metric("mean of the teacher's largest probability", None),
    "mean_entropy": Metric("mean entropy of the teacher's probabilities", None, "nats"),
    "mean_prediction_spread": Metric("how much a batch's mean probabilities change from batch to batch", False),
    "batchnorm_shift": Metric("how far the layers' inputs lie from what the teacher has stored", False, "deviations"),
    "batchnorm_gauss": Metric("the same as KL of two normal distributions per channel", False, "nats"),
    "feature_rank": Metric(
        "how many rows that differ in direction the teacher's last features amount to", True, "rows"
    ),
    "boundary_share": Metric("rows whose class one step of 2/255 of the box in every pixel turns over", None),
    "pixel_mean": Metric("mean pixel", None, "pixels"),
    "pixel_std": Metric("standard deviation of the pixels", None, "pixels"),
    "spectral_slope": Metric("slope of ln power over ln frequency: -2 photographs, 0 white noise", None, ""),
}


@dataclass(frozen=True)
class LayerShift:
    """One BatchNorm layer: mean over its channels of |mu_b - mu_r| / sigma_r, and of KL(N(r) || N(b))."""

    name: str
    shift: float
    gauss: float


@dataclass(frozen=True)
class Diagnosis:
    """values: by the names of DIAGNOSTICS, None where undefined. layers: in call order, empty without BatchNorm."""

    values: Mapping[str, float | None]
    layers: tuple[LayerShift, ...]


def diagnose(
    teacher: Probe,
    x: Tensor,
    spec: InputSpec,
    labelling: BatchNormMode | Labelling = "eval",
    batch: int = 256,
) -> Diagnosis:
    """x (n, c, h, w) uint8 or pixels; the teacher is asked run by run in batches, counted under "evaluate".

    The distances to the stored statistics are those of mode `eval`, whatever the rows are labelled in. The spread over
    batches depends on `batch` and is None for one batch; nothing else depends on it in mode `eval`.
    """
    runs = whole(len(x), labelling) if isinstance(labelling, str) else labelling
    if len(x) < 1 or sum(rows for rows, _ in runs) != len(x):
        raise ValueError(f"labelling: expected runs that add up to {len(x)} rows, found {runs!r}")
    log_p, moments, sizes, features = _ask(teacher, x, spec, runs, batch)
    layers = tuple(moments[place].summary(_eps(teacher, moments[place].name)) for place in sorted(moments))
    pixels = to_pixels(x, spec).double()
    values: dict[str, float | None] = {
        **_predictions(log_p, sizes),
        "batchnorm_shift": sum(layer.shift for layer in layers) / len(layers) if layers else None,
        "batchnorm_gauss": sum(layer.gauss for layer in layers) / len(layers) if layers else None,
        "feature_rank": None if features is None else _rank(features),
        "boundary_share": boundary_share(teacher, x, spec, runs, batch),
        "pixel_mean": float(pixels.mean()),  # sync
        "pixel_std": float(pixels.std(correction=0)),  # sync
        "spectral_slope": spectral_slope(pixels),
    }
    return Diagnosis(values, layers)


class _Moments:
    """A layer's mean and mean square (c,), weighted by rows: exact over all of them, however they were batched."""

    def __init__(self, seen: BatchNormInput) -> None:
        self.name, self.rows = seen.name, 0
        self.running_mean, self.running_var = seen.running_mean.double(), seen.running_var.double()
        self.sum, self.squares = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_mean)

    def add(self, seen: BatchNormInput, rows: int) -> None:
        mean = seen.mean.double()
        self.rows += rows
        self.sum += rows * mean
        self.squares += rows * (seen.var.double() + mean.square())

    def summary(self, eps: float) -> LayerShift:
        mean = self.sum / self.rows
        var_b = (self.squares / self.rows - mean.square()).clamp_min(0.0) + eps
        var_r = self.running_var + eps
        gap = (mean - self.running_mean).abs()
        gauss = 0.5 * (var_b / var_r).log() - 0.5 + (var_r + gap.square()) / (2.0 * var_b)
        return LayerShift(self.name, float((gap / var_r.sqrt()).mean()), float(gauss.mean()))  # sync


def _ask(
    teacher: Probe, x: Tensor, spec: InputSpec, runs: Labelling, batch: int
) -> tuple[Tensor, dict[int, _Moments], list[int], Tensor | None]:
    """-> log-probabilities (n, k) float64 in the order asked, moments by place in the call order, batch sizes, the
    features (n, d) that the logits are made of."""
    answers, sizes, features = [], [], list[Tensor]()
    moments: dict[int, _Moments] = {}
    start = 0
    with teacher.counting("evaluate"), torch.no_grad(), ExitStack() as blocks:
        seen = blocks.enter_context(teacher.batchnorm_inputs()) if "batchnorm" in teacher.capabilities else []
        last = blocks.enter_context(teacher.penultimate()) if "penultimate" in teacher.capabilities else []
        for rows, mode in runs:
            for part in chunks(rows, batch, mixed=mode == "batch"):
                pixels = to_pixels(x[(start + part).to(x.device)].to(teacher.device), spec)
                logits = teacher(pixels, mode).logits
                features += [given.flatten(1).double().cpu() for given in last]  # sync
                if mode == "batch" and "batchnorm" in teacher.capabilities:
                    teacher(pixels)  # normalised by the batch all layers but the first would look as if on the data
                for place, entry in enumerate(seen):
                    moments.setdefault(place, _Moments(entry)).add(entry, len(part))
                answers.append(logits.double().log_softmax(dim=1).cpu())  # sync
                sizes.append(len(part))
            start += rows
    return torch.cat(answers), moments, sizes, torch.cat(features) if features else None


def _rank(features: Tensor) -> float | None:
    """exp of the entropy of the eigenvalues of the rows' cosines over n: n for orthogonal rows, 1 for parallel ones.

    Of the cosines and not of the covariance: features that hardly change are one row here, however they scatter.
    """
    if not bool(features.isfinite().all()):
        return None
    rows = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    wide = rows.shape[1] > rows.shape[0]
    share = torch.linalg.eigvalsh(rows @ rows.T if wide else rows.T @ rows).clamp_min(0.0)
    total = float(share.sum())  # sync
    return math.exp(_entropy(share / total)) if total > 0.0 else 1.0  # all features zero: they are all the same


def _eps(teacher: Probe, name: str) -> float:
    """What the layer adds to a variance before it divides by its root."""
    return float(getattr(teacher.module.get_submodule(name), "eps", 1e-5))


def _predictions(log_p: Tensor, sizes: list[int]) -> dict[str, float | None]:
    p = log_p.exp()
    n, k = p.shape
    by_batch = torch.stack([part.mean(dim=0) for part in p.split(sizes)])  # (batches, k)
    return {
        "histogram_entropy": _entropy(torch.bincount(log_p.argmax(dim=1), minlength=k).double() / n) / math.log(k),
        "mean_prediction_entropy": _entropy(p.mean(dim=0)) / math.log(k),
        "mean_confidence": float(p.amax(dim=1).mean()),  # sync
        "mean_entropy": float(-(p * log_p).sum(dim=1).mean()),  # sync
        "mean_prediction_spread": float(by_batch.std(dim=0).mean()) if len(sizes) > 1 else None,  # sync
    }


def _entropy(p: Tensor) -> float:
    return float(torch.special.entr(p).sum())  # sync
