"""Metrics against slow references in Python floats, against SciPy and torchmetrics, and at their extremes."""

import math

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_cohen_kappa

from dfkd.fidelity import METRICS, calibration_error, metric, rowwise, score

_RNG = torch.Generator().manual_seed(3)
TEACHER = 2.0 * torch.randn(300, 6, generator=_RNG)
STUDENT = TEACHER + 1.5 * torch.randn(300, 6, generator=_RNG)
CONTROL = TEACHER + 2.5 * torch.randn(300, 6, generator=_RNG)
Y = torch.where(torch.rand(300, generator=_RNG) < 0.7, TEACHER.argmax(dim=1), torch.randint(6, (300,), generator=_RNG))


def value(values: dict[str, float | None], name: str) -> float:
    found = values[name]
    assert found is not None
    return found


def slow_ece(logits: Tensor, y: Tensor, bins: int = 10) -> float:
    """Row by row into bins (b / bins, (b + 1) / bins], by comparing with the edges."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.double().tolist(), y.tolist(), strict=True):
        weights = [math.exp(z - max(row)) for z in row]
        confidence = max(weights) / sum(weights)
        place = next(b for b in range(bins) if confidence <= (b + 1) / bins or b == bins - 1)
        members[place].append((confidence, row.index(max(row)) == label))
    total = 0.0
    for rows in members:
        if rows:
            accuracy = sum(right for _, right in rows) / len(rows)
            total += len(rows) / len(y) * abs(accuracy - sum(c for c, _ in rows) / len(rows))
    return total


def test_kl_both_ways_and_js_equal_scipys() -> None:
    p, q = softmax(TEACHER.double().numpy(), axis=1), softmax(STUDENT.double().numpy(), axis=1)
    m = (p + q) / 2
    expected = {
        "kl": entropy(p, q, axis=1),
        "reverse_kl": entropy(q, p, axis=1),
        "js": (entropy(p, m, axis=1) + entropy(q, m, axis=1)) / 2,
        "total_variation": abs(p - q).sum(axis=1) / 2,
    }
    rows = rowwise(STUDENT, TEACHER)
    for name, reference in expected.items():
        torch.testing.assert_close(rows[name], torch.from_numpy(reference), rtol=1e-9, atol=1e-12)


def test_nll_is_cross_entropy_and_brier_its_sum_of_squares() -> None:
    rows = rowwise(STUDENT, TEACHER, Y)
    torch.testing.assert_close(rows["nll"], cross_entropy(STUDENT.double(), Y, reduction="none"))
    for row, label, brier in zip(STUDENT.double().tolist(), Y.tolist(), rows["brier"].tolist(), strict=True):
        q = softmax(row)
        assert brier == pytest.approx(sum((q[c] - (c == label)) ** 2 for c in range(6)), rel=1e-9)


def test_ece_equals_the_slow_one_and_torchmetrics() -> None:
    ours = calibration_error(STUDENT, Y)
    assert ours == pytest.approx(slow_ece(STUDENT, Y), abs=1e-12)
    theirs = multiclass_calibration_error(STUDENT.double().softmax(dim=1), Y, num_classes=6, n_bins=10, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert ours > 0.02  # so that 0 would be found out


def test_ece_puts_the_upper_edge_into_the_bin_below_it() -> None:
    half, sure = [0.0, 0.0], [900.0, 0.0]  # confidences 1/2, on an edge, and 1
    above = [0.1, 0.0]  # a little over 1/2: another bin
    logits, y = torch.tensor([half, above, sure]), torch.tensor([0, 1, 0])
    assert calibration_error(logits, y) == pytest.approx(slow_ece(logits, y), abs=1e-12)
    confidence = 1 / (1 + math.exp(-0.1))
    assert calibration_error(logits, y) == pytest.approx((0.5 + confidence) / 3, abs=1e-7)


def test_kappa_equals_torchmetrics() -> None:
    theirs = multiclass_cohen_kappa(STUDENT.argmax(dim=1), TEACHER.argmax(dim=1), num_classes=6)
    assert value(score(STUDENT, TEACHER), "kappa") == pytest.approx(float(theirs), abs=1e-6)


def test_agreement_at_three_equals_sorting() -> None:
    slow = []
    for s, t in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        best_three = sorted(range(6), key=lambda c: (-s[c], c))[:3]
        slow.append(float(t.index(max(t)) in best_three))
    assert rowwise(STUDENT, TEACHER)["agreement@3"].tolist() == slow
    assert 0.0 < sum(slow) < len(slow)


def test_ties_go_to_the_lowest_class() -> None:
    flat = torch.zeros(1, 6)
    wanted = {c: torch.eye(6)[c : c + 1] for c in range(6)}
    assert [float(rowwise(flat, wanted[c])["agreement"]) for c in range(6)] == [1, 0, 0, 0, 0, 0]
    assert [float(rowwise(flat, wanted[c])["agreement@3"]) for c in range(6)] == [1, 1, 1, 0, 0, 0]
    assert "agreement@3" not in rowwise(flat[:, :3], flat[:, :3])


def test_equal_models_are_perfect() -> None:
    values = score(TEACHER + 7.0, TEACHER, Y, control_logits=TEACHER)
    for name in ("agreement", "agreement@3", "kappa", "logit_cosine", "logit_r2", "attainable_position"):
        assert values[name] == pytest.approx(1.0, abs=1e-9)
    for name in ("kl", "reverse_kl", "js", "total_variation", "excess_agreement", "excess_kl"):
        assert values[name] == pytest.approx(0.0, abs=1e-6)


def test_certain_and_wrong_stays_finite() -> None:
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    rows = {name: float(row) for name, row in rowwise(student, teacher, torch.tensor([1])).items()}
    assert rows["kl"] == pytest.approx(1e4)
    assert rows["js"] == pytest.approx(math.log(2.0))
    assert (rows["nll"], rows["brier"], rows["total_variation"]) == pytest.approx((1e4, 2.0, 1.0))


def test_agreement_stays_in_its_attainable_range_and_reaches_both_ends() -> None:
    values = score(STUDENT, TEACHER, Y)
    low, high = value(values, "attainable_low"), value(values, "attainable_high")
    assert low < value(values, "agreement") < high
    eye = torch.eye(3)
    y = torch.tensor([0, 0, 0, 0])
    teacher, farthest, nearest = eye[[0, 0, 0, 1]], eye[[1, 0, 0, 0]], eye[[0, 0, 1, 1]]
    assert score(farthest, teacher, y)["attainable_position"] == pytest.approx(0.0)
    assert score(nearest, teacher, y)["attainable_position"] == pytest.approx(1.0)


def test_two_wrong_models_agree_where_there_are_two_classes() -> None:
    eye = torch.eye(2)
    y = torch.zeros(4, dtype=torch.int64)
    values = score(eye[[1, 1, 1, 0]], eye[[0, 1, 1, 1]], y)  # both right once, on different rows: agree twice
    assert values["attainable_low"] == pytest.approx(0.5)
    assert values["attainable_position"] == pytest.approx(0.0)


def test_agreement_apart_where_the_teacher_is_right() -> None:
    values = score(STUDENT, TEACHER, Y)
    right = [t == y for t, y in zip(TEACHER.argmax(1).tolist(), Y.tolist(), strict=True)]
    same = [s == t for s, t in zip(STUDENT.argmax(1).tolist(), TEACHER.argmax(1).tolist(), strict=True)]
    for name, wanted in (("right", True), ("wrong", False)):
        there = [a for a, r in zip(same, right, strict=True) if r is wanted]
        assert values[f"agreement_teacher_{name}"] == pytest.approx(sum(there) / len(there))
    assert score(TEACHER, TEACHER, TEACHER.argmax(dim=1))["agreement_teacher_wrong"] is None


def test_excess_is_the_student_minus_the_control() -> None:
    values, control = score(STUDENT, TEACHER, control_logits=CONTROL), score(CONTROL, TEACHER)
    for name in ("agreement", "kl"):
        assert values[f"excess_{name}"] == pytest.approx(value(values, name) - value(control, name))
    assert value(values, "excess_agreement") > 0.0 > value(values, "excess_kl")  # this control is worse


def test_logit_fit_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 1.0], [5.0, 5.0]]), torch.tensor([[4.0, 0.0], [2.0, 2.0]])
    values = score(student, teacher)
    assert values["logit_r2"] == pytest.approx(1.0 - 2.0 / 8.0)  # (1, -1) against (2, -2)
    assert values["logit_cosine"] == pytest.approx(1.0)  # parallel, and two rows without a direction
    assert score(student, torch.ones(2, 2))["logit_r2"] is None


def test_means_do_not_depend_on_batches() -> None:
    whole = rowwise(STUDENT, TEACHER, Y)
    for name, rows in whole.items():
        parts = [rowwise(STUDENT[i : i + 77], TEACHER[i : i + 77], Y[i : i + 77])[name] for i in range(0, 300, 77)]
        torch.testing.assert_close(torch.cat(parts), rows, rtol=1e-12, atol=1e-15)
        assert score(STUDENT, TEACHER, Y)[name] == pytest.approx(float(rows.mean()), rel=1e-12)


def test_every_number_is_in_the_table() -> None:
    values = score(STUDENT, TEACHER, Y, CONTROL)
    assert set(values) == set(METRICS)
    without = score(STUDENT, TEACHER, control_logits=CONTROL)
    assert set(without) == {name for name, entry in METRICS.items() if not entry.needs_labels}


@pytest.mark.parametrize("name", [n for n, entry in METRICS.items() if entry.higher_is_better is not None])
def test_the_direction_is_the_right_one(name: str) -> None:
    """A student near the teacher and the truth against one that is far from both."""
    y = TEACHER.argmax(dim=1).clone()
    y[:40] = (y[:40] + 1) % 6
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(5))
    near, far = TEACHER + 0.1 * noise, TEACHER.roll(1, dims=0) * 4.0
    good, bad = (value(score(s, TEACHER, y, CONTROL), name) for s in (near, far))
    assert (good > bad) is metric(name).higher_is_better


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"teacher_logits: expected shape \(300, 6\), found \(300, 5\)"):
        score(STUDENT, TEACHER[:, :5])
    with pytest.raises(ValueError, match="student_logits: expected finite"):
        score(STUDENT.clone().fill_(float("nan")), TEACHER)
    with pytest.raises(ValueError, match="y: expected labels from 0 to 5, found 0 to 6"):
        score(STUDENT, TEACHER, Y.clone().index_fill_(0, torch.tensor([0]), 6))
    with pytest.raises(ValueError, match="y: expected 300 integer labels"):
        score(STUDENT, TEACHER, Y.float())
    with pytest.raises(ValueError, match="metric: unknown 'agreemnt'; the nearest is 'agreement'"):
        metric("agreemnt")
