"""Each loss against its definition in Python floats, its identities and a two-class example by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfkd.interfaces import Loss
from dfkd.losses import (
    KL,
    HardLabel,
    JensenShannon,
    LabelCrossEntropy,
    LogitHuber,
    LogitL1,
    LogitMSE,
    ReverseKL,
    combine,
    js_nats,
    kl_nats,
    reverse_kl_nats,
    standardised,
)
from dfkd.registry import LOSSES, find
from dfkd.types import Batch, Outputs

N, K = 5, 7
GENERATOR = torch.Generator().manual_seed(1)
STUDENT, TEACHER = 3.0 * torch.randn(2, N, K, generator=GENERATOR)
EMPTY = Batch(torch.zeros(N, 1, 1, 1))
Row = list[float]


def softened(row: Row, temperature: float) -> Row:
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def slow_kl(p: Row, q: Row) -> float:
    """Sum of p ln(p / q) over the classes."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_js(p: Row, q: Row) -> float:
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return 0.5 * slow_kl(p, m) + 0.5 * slow_kl(q, m)


def slowly(definition: Callable[[Row, Row], float], temperature: float) -> Tensor:
    """definition(teacher's probabilities, student's probabilities), row by row."""
    pairs = zip(TEACHER.tolist(), STUDENT.tolist(), strict=True)
    return torch.tensor([definition(softened(t, temperature), softened(s, temperature)) for t, s in pairs])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergences_equal_their_definitions(temperature: float) -> None:
    torch.testing.assert_close(kl_nats(STUDENT, TEACHER, temperature), slowly(slow_kl, temperature))
    torch.testing.assert_close(
        reverse_kl_nats(STUDENT, TEACHER, temperature), slowly(lambda p, q: slow_kl(q, p), temperature)
    )
    torch.testing.assert_close(js_nats(STUDENT, TEACHER, temperature), slowly(slow_js, temperature))
    for loss, function in (
        (KL(temperature), kl_nats),
        (ReverseKL(temperature), reverse_kl_nats),
        (JensenShannon(temperature), js_nats),
    ):
        assert torch.equal(loss(Outputs(STUDENT), Outputs(TEACHER), EMPTY), function(STUDENT, TEACHER, temperature))


def test_two_classes_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2)."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    torch.testing.assert_close(kl_nats(student, teacher), torch.tensor([forward]))
    torch.testing.assert_close(reverse_kl_nats(student, teacher), torch.tensor([reverse]))
    middle = 0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375))
    middle += 0.5 * (0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375))
    torch.testing.assert_close(js_nats(student, teacher), torch.tensor([middle]))


def test_the_other_losses_equal_their_definitions() -> None:
    y = [3, 0, 6, 1, 1]
    mse, l1, hard, label, mixed = [], [], [], [], []
    soft = torch.softmax(torch.randn(N, K, generator=torch.Generator().manual_seed(2)), dim=1)
    for row, (s, t) in enumerate(zip(STUDENT.tolist(), TEACHER.tolist(), strict=True)):
        q = softened(s, 1.0)
        mse.append(sum((a - b) ** 2 for a, b in zip(s, t, strict=True)))
        l1.append(sum(abs(a - b) for a, b in zip(s, t, strict=True)))
        hard.append(-math.log(q[t.index(max(t))]))
        label.append(-math.log(q[y[row]]))
        mixed.append(-sum(w * math.log(b) for w, b in zip(soft[row].tolist(), q, strict=True)))
    student, teacher = Outputs(STUDENT), Outputs(TEACHER)
    torch.testing.assert_close(LogitMSE()(student, teacher, EMPTY), torch.tensor(mse))
    torch.testing.assert_close(LogitL1()(student, teacher, EMPTY), torch.tensor(l1))
    torch.testing.assert_close(HardLabel()(student, teacher, EMPTY), torch.tensor(hard))
    labelled = Batch(EMPTY.x, y=torch.tensor(y))
    torch.testing.assert_close(LabelCrossEntropy()(student, teacher, labelled), torch.tensor(label))
    torch.testing.assert_close(LabelCrossEntropy()(student, teacher, Batch(EMPTY.x, y=soft)), torch.tensor(mixed))


def test_a_shift_of_all_logits_changes_no_divergence() -> None:
    for divergence in (kl_nats, reverse_kl_nats, js_nats):
        assert divergence(TEACHER + 9.0, TEACHER).abs().max() < 1e-5


def test_reverse_is_forward_with_the_sides_swapped() -> None:
    assert torch.equal(reverse_kl_nats(STUDENT, TEACHER, 2.0), kl_nats(TEACHER, STUDENT, 2.0))
    assert (kl_nats(STUDENT, TEACHER) - reverse_kl_nats(STUDENT, TEACHER)).abs().min() > 1e-3  # so sides can be told


def test_jensen_shannon_is_symmetric_and_at_most_ln_2() -> None:
    torch.testing.assert_close(js_nats(STUDENT, TEACHER), js_nats(TEACHER, STUDENT))
    apart = js_nats(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))
    torch.testing.assert_close(apart, torch.tensor([math.log(2.0)]))
    assert js_nats(STUDENT, TEACHER).max() < math.log(2.0)


def test_certain_and_wrong_costs_the_difference() -> None:
    student = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = kl_nats(student, torch.tensor([[0.0, 1e4]]))
    (slope,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(loss.detach(), torch.tensor([1e4]))
    torch.testing.assert_close(slope, torch.tensor([[1.0, -1.0]]))


def test_the_gradient_of_the_softened_divergence() -> None:
    """tau (q - p) / n at any tau; the centred logit difference over (k n) as tau grows.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531, section 2.1.
    """
    for temperature in (1.0, 3.0, 1000.0):
        student = STUDENT.double().requires_grad_(True)
        outputs = Outputs(student), Outputs(TEACHER.double())
        objective = combine({"kl": (1.0, KL(temperature))})
        (slope,) = torch.autograd.grad(objective(*outputs, EMPTY).total, student)
        p, q = (torch.softmax(z.double() / temperature, dim=1) for z in (TEACHER, STUDENT))
        torch.testing.assert_close(slope, temperature * (q - p) / N, rtol=1e-3, atol=1e-4)
    difference = STUDENT.double() - TEACHER.double()
    limit = (difference - difference.mean(dim=1, keepdim=True)) / (K * N)
    torch.testing.assert_close(slope, limit, rtol=0.05, atol=2e-4)
    assert limit.abs().max() > 0.05  # far above the tolerance


def test_at_high_temperature_values_and_slopes_are_those_of_centred_squared_logits() -> None:
    """temperature^2 KL tends to the sum of squares of the centred logit difference over 2 k."""
    student, teacher = STUDENT.double().requires_grad_(True), TEACHER.double()
    difference = student - teacher
    limit = (difference - difference.mean(dim=1, keepdim=True)).square().sum(dim=1) / (2 * K)
    (expected,) = torch.autograd.grad(limit.sum(), student, retain_graph=True)
    assert limit.min() > 0.1
    for loss in (KL(1e4), ReverseKL(1e4)):
        values = loss.scale * loss(Outputs(student), Outputs(teacher), EMPTY)
        torch.testing.assert_close(values, limit, rtol=2e-3, atol=0.0)
        (slope,) = torch.autograd.grad(values.sum(), student)
        torch.testing.assert_close(slope, expected, rtol=2e-3, atol=2e-4)
    quarter = JensenShannon(1e4)
    values = quarter.scale * quarter(Outputs(student), Outputs(teacher), EMPTY)
    torch.testing.assert_close(values, limit / 4.0, rtol=2e-3, atol=0.0)


def test_huber_is_half_the_square_up_to_delta_and_a_line_beyond() -> None:
    for delta in (0.5, 1.0, 3.0):
        slow = []
        for s, t in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
            apart = [abs(a - b) for a, b in zip(s, t, strict=True)]
            slow.append(sum(0.5 * d * d if d <= delta else delta * (d - 0.5 * delta) for d in apart))
        found = LogitHuber(delta)(Outputs(STUDENT), Outputs(TEACHER), EMPTY)
        torch.testing.assert_close(found, torch.tensor(slow))
    wide = LogitHuber(1e6)(Outputs(STUDENT), Outputs(TEACHER), EMPTY)
    torch.testing.assert_close(2.0 * wide, LogitMSE()(Outputs(STUDENT), Outputs(TEACHER), EMPTY))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="delta: expected a number > 0"):
            LogitHuber(wrong)


def test_standardised_logits_have_mean_0_and_deviation_1() -> None:
    slow = []
    for row in STUDENT.tolist():
        mean = sum(row) / K
        deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / (K - 1))
        slow.append([(z - mean) / (deviation + 1e-7) for z in row])
    torch.testing.assert_close(standardised(STUDENT), torch.tensor(slow))
    for loss in (KL, ReverseKL, JensenShannon):
        plain = loss(2.0)(Outputs(torch.tensor(slow)), Outputs(standardised(TEACHER)), EMPTY)
        found = loss(2.0, standardise=True)(Outputs(STUDENT), Outputs(TEACHER), EMPTY)
        torch.testing.assert_close(found, plain)
        moved = loss(2.0, standardise=True)(Outputs(7.0 * STUDENT - 3.0), Outputs(0.1 * TEACHER), EMPTY)
        torch.testing.assert_close(moved, found)


def test_an_equal_row_is_0_when_standardised_and_has_a_slope_with_a_bound() -> None:
    flat = torch.full((2, K), 3.0, requires_grad=True)
    assert standardised(flat).abs().max() == 0.0
    loss = KL(standardise=True)(Outputs(flat), Outputs(TEACHER[:2]), Batch(EMPTY.x[:2]))
    (slope,) = torch.autograd.grad(loss.sum(), flat)
    assert loss.isfinite().all()
    assert 0.0 < slope.abs().max() < 1.0


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("loss", [KL, ReverseKL, JensenShannon])
def test_the_gradient_is_that_of_finite_differences(loss: Callable[..., Loss], standardise: bool) -> None:
    student, teacher = STUDENT.double().requires_grad_(True), Outputs(TEACHER.double())
    made = loss(temperature=3.0, standardise=standardise)
    assert torch.autograd.gradcheck(lambda s: made(Outputs(s), teacher, EMPTY), (student,))
    huber = LogitHuber()
    assert torch.autograd.gradcheck(lambda s: huber(Outputs(s), teacher, EMPTY), (student,))


def test_the_temperature_is_squared_in_one_place_only() -> None:
    bare = KL(4.0)(Outputs(STUDENT), Outputs(TEACHER), EMPTY)
    torch.testing.assert_close(bare, slowly(slow_kl, 4.0))
    total = combine({"kl": (1.0, KL(4.0))})(Outputs(STUDENT), Outputs(TEACHER), EMPTY).total
    torch.testing.assert_close(total, 16.0 * bare.mean())


def test_hard_label_passes_nothing_to_the_teacher() -> None:
    teacher = TEACHER.clone().requires_grad_(True)
    student = STUDENT.clone().requires_grad_(True)
    HardLabel()(Outputs(student), Outputs(teacher), EMPTY).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_true_labels_are_never_made_up() -> None:
    aimed = Batch(EMPTY.x, target=torch.zeros(N, dtype=torch.int64))
    with pytest.raises(ValueError, match="label_ce: needs ground-truth labels"):
        LabelCrossEntropy()(Outputs(STUDENT), Outputs(TEACHER), aimed)
    with pytest.raises(ValueError, match=r"y: expected shape \(5, 7\), found \(5, 3\)"):
        LabelCrossEntropy()(Outputs(STUDENT), Outputs(TEACHER), Batch(EMPTY.x, y=torch.zeros(N, 3)))


@pytest.mark.parametrize("loss", [KL, ReverseKL, JensenShannon])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_temperature_that_is_none(loss: Callable[[float], object], temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature: expected a number > 0"):
        loss(temperature)


@pytest.mark.parametrize("name", ["logit_mse", "logit_l1", "hard_label", "label_ce"])
def test_double_precision_stays_double(name: str) -> None:
    """Else finite differences of them, and scores in float64, would be those of rounded logits."""
    student, teacher = (Outputs(logits.double()) for logits in (STUDENT, TEACHER))
    batch = Batch(torch.zeros(len(STUDENT), 1, 1, 1), y=STUDENT.double().softmax(dim=1))
    loss = find("loss", name, LOSSES)()
    assert loss(student, teacher, batch).dtype == torch.float64
    leaf = STUDENT.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: loss(Outputs(s), teacher, batch), (leaf,))
