"""What a metric is called, which way it is better, and how its numbers are written."""

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "DIAGNOSTICS",
    "METRICS",
    "MODES",
    "QUALITY",
    "Form",
    "Metric",
    "describe",
    "duration",
    "large",
    "listed",
    "number",
    "plain",
    "spread",
]

Form = Literal["percent", "points", "nats", "plain"]


@dataclass(frozen=True)
class Metric:
    """better: which direction is good, None where there is none. form: how a value is written."""

    title: str
    better: Literal["higher", "lower"] | None
    form: Form
    meaning: str

    @property
    def direction(self) -> str:
        return f"{self.better} is better" if self.better else "neither direction is better"

    @property
    def unit(self) -> str:
        return {"percent": "%", "points": "percentage points", "nats": "nats", "plain": ""}[self.form]


METRICS: dict[str, Metric] = {
    "agreement": Metric("agreement", "higher", "percent", "rows on which student and teacher name the same class"),
    "agreement@3": Metric(
        "agreement@3", "higher", "percent", "rows on which the teacher's class is among the student's three largest"
    ),
    "kl": Metric("KL", "lower", "nats", "KL(teacher || student), mean over rows, temperature 1"),
    "excess_agreement": Metric(
        "excess agreement", "higher", "points", "agreement minus that of a control student of another teacher"
    ),
    "accuracy": Metric("accuracy", "higher", "percent", "rows on which the student names the true class"),
    "reverse_kl": Metric("reverse KL", "lower", "nats", "KL(student || teacher), mean over rows, temperature 1"),
    "js": Metric("Jensen-Shannon", "lower", "nats", "Jensen-Shannon divergence, mean over rows"),
    "total_variation": Metric(
        "total variation", "lower", "percent", "half the summed difference of the two probability vectors"
    ),
    "kappa": Metric(
        "kappa", "higher", "percent", "agreement above chance, as a share of what is possible above chance"
    ),
    "logit_r2": Metric("logit R²", "higher", "plain", "share of the centred teacher logits' variance that is met"),
    "logit_cosine": Metric("logit cosine", "higher", "plain", "mean cosine of the rows' centred logits"),
    "excess_kl": Metric("excess KL", "lower", "nats", "KL minus that of a control student of another teacher"),
    "agreement_teacher_right": Metric(
        "agreement, teacher right", "higher", "percent", "agreement on the rows that the teacher classifies correctly"
    ),
    "agreement_teacher_wrong": Metric(
        "agreement, teacher wrong", "higher", "percent", "agreement on the rows that the teacher gets wrong"
    ),
    "attainable_low": Metric(
        "attainable, low end", None, "percent", "the least agreement that the two accuracies leave possible"
    ),
    "attainable_high": Metric(
        "attainable, high end", None, "percent", "the most agreement that the two accuracies leave possible"
    ),
    "attainable_position": Metric(
        "attainable, position", "higher", "percent", "where agreement stands between its attainable ends"
    ),
    "chance_agreement": Metric(
        "chance agreement", None, "percent", "agreement of two models that name classes this often, independently"
    ),
    "nll": Metric("NLL", "lower", "nats", "negative log-likelihood of the true class"),
    "ece": Metric("ECE", "lower", "percent", "expected calibration error, 10 bins of equal width"),
    "brier": Metric("Brier", "lower", "plain", "Brier score"),
}

DIAGNOSTICS: dict[str, tuple[str, str]] = {
    "histogram_entropy": ("class entropy", "how evenly the teacher names the classes: 1 all alike, 0 always the same"),
    "mean_prediction_entropy": ("entropy of the mean", "entropy of the teacher's mean probabilities, over ln k"),
    "mean_confidence": ("mean confidence", "mean of the teacher's largest probability"),
    "mean_entropy": ("mean entropy", "mean entropy of the teacher's probabilities, in nats"),
    "mean_prediction_spread": ("change between batches", "how much a batch's mean probabilities vary"),
    "batchnorm_shift": ("BatchNorm shift", "distance of the batch means from the stored ones, in stored deviations"),
    "batchnorm_gauss": ("BatchNorm divergence", "KL of two normal distributions per channel, in nats"),
    "feature_rank": ("different rows", "how many different rows the teacher's last features amount to"),
    "boundary_share": ("near a boundary", "rows that one step of 2/255 in every pixel takes to another class"),
    "pixel_mean": ("pixel mean", "mean pixel"),
    "pixel_std": ("pixel deviation", "standard deviation of the pixels"),
    "spectral_slope": ("spectral slope", "of ln power over ln frequency: about -2 for photographs, 0 for white noise"),
}


_OF_LAYERS = {
    "cka": Metric("CKA", "higher", "plain", "linear alignment of the rows' similarities in {}; 1 for equal"),
    "fkd": Metric("FKD", "lower", "plain", "mean squared difference of the correlations of two rows' features, {}"),
}

QUALITY: dict[str, tuple[str, str]] = {
    "feature_precision": ("precision", "share of draws that lie within the ball of a held-out row: draws like data"),
    "feature_recall": ("recall", "share of held-out rows that lie within the ball of a draw: data that is drawn"),
    "density": ("density", "how many balls of held-out rows a draw lies in, over k; data itself has about 1"),
    "coverage": ("coverage", "share of balls of held-out rows that hold a draw"),
    "frechet_distance": ("Fréchet distance", "of two normal distributions fitted to the features, squared; 0 is alike"),
    "nearest_pixels": ("nearest in pixels", "root mean square from a draw to its nearest training row, median"),
    "copies_pixels": ("copies in pixels", "share of draws as near to a training row as the nearest held-out row is"),
    "nearest_features": ("nearest in features", "distance to the nearest training row in features, median"),
    "copies_features": ("copies in features", "the same share, by distance in the teacher's features"),
}
"""How draws lie beside data; the same of held-out rows has a name that ends in _test."""


MODES = {
    "eval": "with the statistics that the student has stored",
    "batch": "with the statistics of the rows asked together",
    "recalibrated": "with statistics estimated anew on a sampler's draws",
}


def describe(metric: str) -> Metric:
    """The metric's entry; agreement@k, cka@layer, loss@label and agreement_batch by pattern.

    An unknown one stands under its own name.
    """
    if metric in METRICS:
        return METRICS[metric]
    known, _, mode = metric.rpartition("_")
    if known in METRICS and mode in MODES:
        base = METRICS[known]
        return replace(base, title=f"{base.title}, BatchNorm {mode}", meaning=f"{base.meaning}, {MODES[mode]}")
    kind, _, of = metric.partition("@")
    if kind == "agreement":
        return Metric(f"agreement@{of}", "higher", "percent", f"teacher's class among the student's {of} largest")
    if kind in _OF_LAYERS and of:
        ours, _, theirs = of.partition("=")
        layers = f"{ours} of the student, {theirs or ours} of the teacher"
        entry = _OF_LAYERS[kind]
        return replace(entry, title=f"{entry.title} {of.replace('=', ' = ')}", meaning=entry.meaning.format(layers))
    if kind == "loss" and of:
        return Metric(
            f"{of}, as a measure", "lower", "plain", f"the loss {of} between student and teacher, mean over rows"
        )
    return Metric(metric.replace("_", " "), None, "plain", "")


def _round(value: float, digits: int, sign: bool = False) -> str:
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("+-")  # no -0.0
    return text.replace("-", "−")


def plain(value: float) -> str:
    """About three significant figures without an exponent where that is short."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")
    return _round(value, _digits(value))


def _digits(value: float) -> int:
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def number(value: float | None, form: Form) -> str:
    """A value in its form, without the unit; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if form == "percent":
        return _round(100 * value, 1)
    if form == "points":
        return _round(100 * value, 1, sign=True)
    return plain(value)


def spread(value: float | None, form: Form, beside: float | None = None) -> str:
    """A sample standard deviation to go with `number(beside)`, as finely as it; empty where it is unknown."""
    if value is None or not math.isfinite(value):
        return ""
    if form in ("percent", "points"):
        return "±" + _round(100 * value, 1)
    if beside is not None and 1e-3 <= abs(beside) < 1e5 and value < 1e5:
        return "±" + _round(value, _digits(beside))
    return "±" + plain(value)


def large(value: float | None) -> str:
    """12 400 -> 12.4k."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            text = f"{value / size:.3g}"
            return (f"{value / size:.0f}" if "e" in text else text) + letter
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def listed(names: list[str]) -> str:
    """a, b and c; of more than five the first three and how many others, as the matrix has them all."""
    if len(names) > 5:
        return f"{', '.join(names[:3])} and {len(names) - 3} others"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
