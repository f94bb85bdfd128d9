"""The two parts of the divergence against Python floats, their sum, labels and the warm-up."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.losses import DKD, combine, decoupled_nats, kl_nats, standardised
from dfkd.problem import Probe, Problem
from dfkd.types import Batch, InputSpec, Outputs

N, K = 5, 7
GENERATOR = torch.Generator().manual_seed(4)
STUDENT, TEACHER = 3.0 * torch.randn(2, N, K, generator=GENERATOR, dtype=torch.float64)
LABEL = torch.tensor([3, 0, 6, 1, 1])
BOTH = Outputs(STUDENT), Outputs(TEACHER)
EMPTY = Batch(torch.zeros(N, 1, 1, 1))


def slow_parts(student: list[float], teacher: list[float], label: int, temperature: float) -> tuple[float, float]:
    """KL of (the label, the others) and KL of the others renormalised, by their definitions."""
    q, p = ([math.exp(z / temperature) for z in row] for row in (student, teacher))
    q, p = ([w / sum(row) for w in row] for row in (q, p))
    binary = p[label] * math.log(p[label] / q[label])
    binary += (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
    others = 0.0
    for c in range(len(p)):
        if c != label:
            a, b = p[c] / (1 - p[label]), q[c] / (1 - q[label])
            others += a * math.log(a / b)
    return binary, others


def slowly(labels: Tensor, temperature: float) -> list[tuple[float, float]]:
    rows = zip(STUDENT.tolist(), TEACHER.tolist(), labels.tolist(), strict=True)
    return [slow_parts(s, t, y, temperature) for s, t, y in rows]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_parts_equal_their_definitions(temperature: float) -> None:
    binary, others = decoupled_nats(STUDENT, TEACHER, LABEL, temperature)
    torch.testing.assert_close(torch.stack([binary, others], dim=1), torch.tensor(slowly(LABEL, temperature)).double())
    narrow = decoupled_nats(STUDENT.float(), TEACHER.float(), LABEL, temperature)
    torch.testing.assert_close(torch.stack(narrow), torch.stack([binary, others]).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("label", [LABEL, TEACHER.argmax(dim=1), STUDENT.argmin(dim=1)])
def test_the_divergence_is_alpha_1_and_beta_what_is_left_of_the_label(temperature: float, label: Tensor) -> None:
    binary, others = decoupled_nats(STUDENT, TEACHER, label, temperature)
    p = (TEACHER / temperature).softmax(dim=1).gather(1, label[:, None]).squeeze(1)
    torch.testing.assert_close(binary + (1.0 - p) * others, kl_nats(STUDENT, TEACHER, temperature))
    loss = DKD(alpha=1.0, beta=1.0, temperature=temperature)(*BOTH, EMPTY)
    parts = decoupled_nats(STUDENT, TEACHER, TEACHER.argmax(dim=1), temperature)
    torch.testing.assert_close(loss, parts[0] + parts[1])


def test_of_two_classes_the_others_have_nothing_to_say() -> None:
    binary, others = decoupled_nats(STUDENT[:, :2], TEACHER[:, :2], LABEL % 2)
    torch.testing.assert_close(binary, kl_nats(STUDENT[:, :2], TEACHER[:, :2]))
    assert others.abs().max() == 0.0


def test_each_part_has_its_weight_and_the_square_of_the_temperature_is_outside() -> None:
    slow = [0.7 * a + 3.0 * b for a, b in slowly(TEACHER.argmax(dim=1), 4.0)]
    loss = DKD(alpha=0.7, beta=3.0)
    torch.testing.assert_close(loss(*BOTH, EMPTY), torch.tensor(slow, dtype=torch.float64))
    total = combine({"dkd": (1.0, loss)})(*BOTH, EMPTY).total
    assert float(total) == pytest.approx(16.0 * sum(slow) / N)


def test_the_other_part_does_not_see_the_labels_logit_and_no_part_a_shift() -> None:
    lifted = STUDENT.scatter_add(1, LABEL[:, None], torch.full((N, 1), 5.0, dtype=torch.float64))
    binary, others = decoupled_nats(STUDENT, TEACHER, LABEL)
    moved = decoupled_nats(lifted, TEACHER, LABEL)
    torch.testing.assert_close(moved[1], others)
    assert (moved[0] - binary).abs().min() > 1e-3
    torch.testing.assert_close(decoupled_nats(STUDENT + 9.0, TEACHER - 2.0, LABEL), (binary, others))
    assert all(part.abs().max() < 1e-12 for part in decoupled_nats(TEACHER, TEACHER.clone(), LABEL))


def test_certain_answers_stay_finite_and_right() -> None:
    """The teacher is sure of class 0 and the student of class 1; of the others the teacher prefers 2, the student 1."""
    student = torch.tensor([[0.0, 1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[2e4, 0.0, 1e4]])
    binary, others = decoupled_nats(student, teacher, torch.tensor([0]))
    torch.testing.assert_close(binary.detach(), torch.tensor([1e4]))
    torch.testing.assert_close(others.detach(), torch.tensor([1e4]))
    (slope,) = torch.autograd.grad(binary + others, student)
    torch.testing.assert_close(slope, torch.tensor([[-1.0, 2.0, -1.0]]))


def test_the_gradient_is_that_of_finite_differences() -> None:
    for loss in (DKD(), DKD(alpha=2.0, beta=0.5, temperature=1.0), DKD(standardise=True)):
        student = STUDENT.clone().requires_grad_(True)
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(Outputs(s), BOTH[1], EMPTY), (student,))


def test_standardised_logits_are_compared_where_that_is_asked_for() -> None:
    plain = DKD()(Outputs(standardised(STUDENT)), Outputs(standardised(TEACHER)), EMPTY)
    torch.testing.assert_close(DKD(standardise=True)(Outputs(2.0 * STUDENT + 1.0), BOTH[1], EMPTY), plain)


# -- labels ------------------------------------------------------------------------------------------------------------


def test_the_label_is_the_teachers_the_samplers_or_the_true_one() -> None:
    first = TEACHER.argmax(dim=1)
    target = torch.where(LABEL == 6, -1, LABEL)  # -1: from a part of a mixture that aims at none
    batch = Batch(EMPTY.x, y=LABEL, target=target)
    for label, expected in (("teacher", first), ("true", LABEL), ("target", torch.where(target < 0, first, LABEL))):
        loss = DKD(alpha=1.0, beta=2.0, label=label)  # type: ignore[arg-type]  # one of the words
        binary, others = decoupled_nats(STUDENT, TEACHER, expected, 4.0)
        torch.testing.assert_close(loss(*BOTH, batch), binary + 2.0 * others)
    assert not torch.equal(first, LABEL)
    assert torch.equal(DKD(label="target")(*BOTH, EMPTY), DKD()(*BOTH, EMPTY))


def test_true_labels_are_never_made_up() -> None:
    with pytest.raises(ValueError, match="dkd: needs ground-truth labels"):
        DKD(label="true")(*BOTH, Batch(EMPTY.x, target=LABEL))
    with pytest.raises(ValueError, match=r"y: expected one class for each row, found \(5, 7\)"):
        DKD(label="true")(*BOTH, Batch(EMPTY.x, y=TEACHER.softmax(dim=1)))


# -- warm-up -----------------------------------------------------------------------------------------------------------


def problem() -> Problem:
    spec = InputSpec((1, 2, 2), K)
    probes = [Probe(nn.Sequential(nn.Flatten(), nn.Linear(4, K)), spec, name=who) for who in ("teacher", "student")]
    return Problem(probes[0], probes[1], spec, torch.device("cpu"), horizon=40)


def test_the_loss_grows_to_its_weight_over_the_warm_up_and_stays() -> None:
    p = problem()
    objective = combine({"dkd": (1.0, DKD(warmup=0.1))})
    adapters = objective.init(p, 0)
    assert not list(adapters.parameters())
    full, shares = objective(*BOTH, EMPTY).total, []
    for step in range(40):
        p.progress = step / 40
        shares.append(float(objective(*BOTH, EMPTY, adapters).total / full))
    assert shares == pytest.approx([0.25, 0.5, 0.75] + 37 * [1.0])
    assert DKD(warmup=0.0).init(p, 0) is None
    assert DKD().warmup == 20 / 240


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha: expected a number >= 0"),
        ({"beta": math.nan}, "beta: expected a number >= 0"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"label": "y"}, "label: expected one of teacher, target, true, found 'y'"),
        ({"warmup": 1.5}, r"warmup: expected a number in \[0, 1\], found 1.5"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DKD(**options)
