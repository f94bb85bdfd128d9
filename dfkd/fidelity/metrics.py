"""How well a student's answers match the teacher's, and the truth where it is known.

Stanton, Izmailov, Kirichenko, Alemi, Wilson: Does Knowledge Distillation Really Work? 2021. arXiv:2106.05945. Agreement
and predictive KL are theirs. Added: the range of agreement that two accuracies allow, the level of chance, agreement
apart where the teacher is right and where it is wrong, and the excess over a control student.

Everything is computed in float64 at temperature 1, summed over the rows and divided once, so that no metric depends on
how the rows were batched. Natural logarithms. Ties go to the lowest class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from dfkd.naming import unknown

__all__ = ["METRICS", "Metric", "calibration_error", "metric", "rowwise", "score"]


@dataclass(frozen=True)
class Metric:
    """summary: one line for people. higher_is_better: None where neither end is. unit. needs_labels: ground truth."""

    summary: str
    higher_is_better: bool | None
    unit: str = "fraction"
    needs_labels: bool = False


METRICS: Final[Mapping[str, Metric]] = {
    "agreement": Metric("rows on which student and teacher name the same class", True),
    "agreement@3": Metric("rows on which the teacher's class is among the student's three largest", True),
    "kl": Metric("KL(teacher || student)", False, "nats"),
    "reverse_kl": Metric("KL(student || teacher)", False, "nats"),
    "js": Metric("Jensen-Shannon divergence, at most ln 2", False, "nats"),
    "total_variation": Metric("half the summed differences of the probabilities", False),
    "chance_agreement": Metric("agreement of two models that name classes this often, independently", None),
    "kappa": Metric("agreement above chance, as a share of what is possible above chance", True),
    "logit_r2": Metric("share of the teacher's centred logits that the student's reproduce", True),
    "logit_cosine": Metric("mean cosine of the rows' centred logits", True),
    "attainable_low": Metric("least agreement that the two accuracies allow", None, needs_labels=True),
    "attainable_high": Metric("most agreement that the two accuracies allow", None, needs_labels=True),
    "attainable_position": Metric("where agreement stands in its attainable range", True, needs_labels=True),
    "agreement_teacher_right": Metric("agreement on the rows the teacher gets right", True, needs_labels=True),
    "agreement_teacher_wrong": Metric("agreement on the rows the teacher gets wrong", True, needs_labels=True),
    "excess_agreement": Metric("agreement minus the control student's", True),
    "excess_kl": Metric("KL(teacher || student) minus the control student's; negative is better", False, "nats"),
    "accuracy": Metric("rows on which the student names the true class", True, needs_labels=True),
    "nll": Metric("mean negative log-probability of the true class", False, "nats", needs_labels=True),
    "brier": Metric("summed squared error of the probabilities, at most 2", False, "squared", needs_labels=True),
    "ece": Metric("calibration error over 10 bins of equal width", False, needs_labels=True),
}


def metric(name: str) -> Metric:
    """The table's entry; ValueError with the nearest name where there is none."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def rowwise(student_logits: Tensor, teacher_logits: Tensor, y: Tensor | None = None, k: int = 3) -> dict[str, Tensor]:
    """Two (n, k) logits and labels (n,) int64 or None -> name: (n,) float64 on the same device.

    k: `agreement@k` is given where there are more than k classes.
    """
    s, t = _checked(student_logits, teacher_logits)
    log_q, log_p = s.log_softmax(dim=1), t.log_softmax(dim=1)
    q, p = log_q.exp(), log_p.exp()
    log_m = torch.logaddexp(log_q, log_p) - torch.log(torch.tensor(2.0, dtype=s.dtype))
    named = t.argmax(dim=1)
    rows = {"agreement": (s.argmax(dim=1) == named).double()}
    if s.shape[1] > k:
        rows[f"agreement@{k}"] = (_rank(s, named) < k).double()
    rows["kl"] = _divergence(p, log_p, log_q)
    rows["reverse_kl"] = _divergence(q, log_q, log_p)
    rows["js"] = 0.5 * (_divergence(p, log_p, log_m) + _divergence(q, log_q, log_m))
    rows["total_variation"] = 0.5 * (p - q).abs().sum(dim=1)
    if y is not None:
        y = _labels(y, s)
        rows["accuracy"] = (s.argmax(dim=1) == y).double()
        rows["nll"] = -log_q.gather(1, y[:, None])[:, 0]
        rows["brier"] = (q - torch.nn.functional.one_hot(y, s.shape[1])).square().sum(dim=1)
    return rows


def score(
    student_logits: Tensor,
    teacher_logits: Tensor,
    y: Tensor | None = None,
    control_logits: Tensor | None = None,
) -> dict[str, float | None]:
    """Every metric of METRICS that these answers allow, as numbers; None where it is undefined on these rows.

    control_logits (n, k): of the control student on the same rows; gives `excess_agreement` = A(t, s) - A(t, s') and
    `excess_kl` = KL(t, s) - KL(t, s').
    """
    rows = rowwise(student_logits, teacher_logits, y)
    s, t = student_logits.double(), teacher_logits.double()
    values: dict[str, float | None] = {name: _mean(row) for name, row in rows.items()}
    agreement = _mean(rows["agreement"])
    chance = _chance(s, t)
    values["chance_agreement"] = chance
    values["kappa"] = _ratio(agreement - chance, 1.0 - chance)
    values["logit_r2"], values["logit_cosine"] = _logit_fit(s, t)
    if y is not None:
        right = t.argmax(dim=1) == y
        low, high = _attainable(_mean(right), _mean(rows["accuracy"]), s.shape[1])
        values["attainable_low"], values["attainable_high"] = low, high
        values["attainable_position"] = _ratio(agreement - low, high - low)
        for name, where in (("right", right), ("wrong", ~right)):
            some = rows["agreement"][where]
            values[f"agreement_teacher_{name}"] = _mean(some) if len(some) else None
        values["ece"] = calibration_error(s, y)
    if control_logits is not None:
        control = rowwise(control_logits, teacher_logits)
        for name in ("agreement", "kl"):
            values[f"excess_{name}"] = _mean(rows[name]) - _mean(control[name])
    return values


def calibration_error(logits: Tensor, y: Tensor, bins: int = 10) -> float:
    """Expected calibration error: sum over the bins of n_b / n |accuracy_b - confidence_b|.

    Bins ((b - 1) / bins, b / bins] of the largest probability, the upper end included: complete confidence is in the
    last bin, not in one of its own.
    """
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    edges = torch.linspace(0.0, 1.0, bins + 1, dtype=torch.float64, device=logits.device)
    which = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    gap = (logits.argmax(dim=1) == y).double() - confidence
    per_bin = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add(0, which, gap)
    return float(per_bin.abs().sum() / len(gap))  # sync


def _checked(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 2 or len(student) < 1:
        raise ValueError(f"student_logits: expected (n, k) with n >= 1, found {tuple(student.shape)}")
    if teacher.shape != student.shape:
        raise ValueError(f"teacher_logits: expected shape {tuple(student.shape)}, found {tuple(teacher.shape)}")
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if not bool(torch.isfinite(logits).all()):  # sync
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
    return student.detach().double(), teacher.detach().double()


def _labels(y: Tensor, logits: Tensor) -> Tensor:
    n, k = logits.shape
    if y.shape != (n,) or y.is_floating_point():
        raise ValueError(f"y: expected {n} integer labels, found {tuple(y.shape)} of {y.dtype}")
    if bool(((y < 0) | (y >= k)).any()):  # sync
        raise ValueError(f"y: expected labels from 0 to {k - 1}, found {int(y.min())} to {int(y.max())}")  # sync
    return y.long()


def _divergence(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """(n, k) each -> sum p (ln p - ln q), (n,). Rounding may give -1e-17 for equal models: cut at 0."""
    return (p * (log_p - log_q)).sum(dim=1).clamp_min(0.0)


def _rank(logits: Tensor, which: Tensor) -> Tensor:
    """How many classes come before class `which` (n,): larger logits, and equal ones of a lower index."""
    own = logits.gather(1, which[:, None])
    index = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (index < which[:, None]))
    return before.sum(dim=1)


def _mean(values: Tensor) -> float:
    return float(values.double().sum() / len(values))  # sync


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0.0 else None


def _chance(s: Tensor, t: Tensor) -> float:
    """Sum over the classes of how often the teacher and how often the student names it."""
    shares = [torch.bincount(z.argmax(dim=1), minlength=z.shape[1]).double() / len(z) for z in (t, s)]
    return float((shares[0] * shares[1]).sum())  # sync


def _attainable(a: float, b: float, classes: int) -> tuple[float, float]:
    """Least and most agreement of two models whose accuracies on the same rows are a and b."""
    low = abs(a + b - 1.0) if classes == 2 else max(0.0, a + b - 1.0)  # two wrong of two classes agree
    return low, 1.0 - abs(a - b)


def _logit_fit(s: Tensor, t: Tensor) -> tuple[float | None, float]:
    """R^2 = 1 - sum (t - s)^2 / sum t^2, and the mean over rows of the cosine, both after centring each row.

    A constant row has no direction: its cosine is 1 with another constant row and else 0.
    """
    s, t = s - s.mean(dim=1, keepdim=True), t - t.mean(dim=1, keepdim=True)
    unexplained = _ratio(float((t - s).square().sum()), float(t.square().sum()))  # sync
    lengths = s.norm(dim=1) * t.norm(dim=1)
    both_flat = (s.norm(dim=1) == 0.0) & (t.norm(dim=1) == 0.0)
    cosine = torch.where(lengths > 0.0, (s * t).sum(dim=1) / lengths.clamp_min(1e-300), both_flat.double())
    return (None if unexplained is None else 1.0 - unexplained), _mean(cosine)
