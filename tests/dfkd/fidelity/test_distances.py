"""Losses as measures of a trained student: their own definitions on all rows, whatever is asked at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dfkd.fidelity import columns
from dfkd.fidelity.distances import distances
from dfkd.interfaces import Loss
from dfkd.losses import CKA, KL, SP, ClassGradient, Features, Jacobian, LabelCrossEntropy, SampledLabel, kl_nats
from dfkd.problem import Probe, UnsupportedProblem
from dfkd.types import InputSpec

SPEC = InputSpec(shape=(1, 4, 4), num_classes=3)
ROWS = 300  # more than are asked at a time


def net(seed: int, width: int = 5) -> Probe:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 3))
    return Probe(module, SPEC)


@pytest.fixture
def column() -> columns.Column:
    rng = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (ROWS, 1, 4, 4), dtype=torch.uint8, generator=rng)
    return columns.test_column(x, torch.randint(0, 3, (ROWS,), generator=rng))


def layer(probe: Probe, place: int) -> nn.Linear:
    """A copy in float64."""
    assert isinstance(probe.module, nn.Sequential)
    found = copy.deepcopy(probe.module[place]).double().requires_grad_(False)
    assert isinstance(found, nn.Linear)
    return found


def logits(probe: Probe, column: columns.Column) -> Tensor:
    return columns.logits(probe, column.x, SPEC, "eval").double()


def test_is_the_mean_of_the_loss_over_all_rows(column: columns.Column) -> None:
    student, teacher = net(0), net(1)
    s, t = logits(student, column), logits(teacher, column)
    losses: dict[str, Loss] = {"kl": KL(temperature=4.0), "labels": LabelCrossEntropy(), "slopes": Jacobian()}
    found = distances(losses, student, teacher, column, torch.arange(ROWS), SPEC)
    assert found["kl"] == pytest.approx(float(kl_nats(s / 4, t / 4).mean()), rel=1e-5)
    assert found["labels"] == pytest.approx(float(-s.log_softmax(1)[torch.arange(ROWS), column.y].mean()), rel=1e-5)
    x = (column.x.double() / 255).flatten(1)
    total = 0.0
    for row in x:  # Jacobians written out: W2 diag(1 - tanh^2) W1
        both = []
        for probe in (student, teacher):
            first, last = layer(probe, 1), layer(probe, 3)
            a = torch.tanh(first(row))
            both.append(last.weight @ ((1 - a * a)[:, None] * first.weight))
        total += float((both[0] - both[1]).square().sum())
    assert found["slopes"] == pytest.approx(total / ROWS, rel=1e-4)


def test_losses_between_rows_see_all_rows_together(column: columns.Column) -> None:
    student, teacher = net(0), net(1, width=7)
    sp, cka = SP("1", "1"), CKA("1", "1")
    found = distances({"sp": sp, "cka": cka}, student, teacher, column, torch.arange(ROWS), SPEC)
    x = (column.x.double() / 255).flatten(1)
    ours, theirs = (layer(probe, 1)(x) for probe in (student, teacher))
    rows = [nn.functional.normalize(f @ f.T, dim=1) for f in (ours, theirs)]
    assert found["sp"] == pytest.approx(float((rows[0] - rows[1]).square().sum() / ROWS**2), rel=1e-4)
    centred = [f - f.mean(dim=0) for f in (ours, theirs)]
    dot = [float((a.T @ b).square().sum()) for a, b in ((centred[0], centred[1]), *((c, c) for c in centred))]
    assert found["cka"] == pytest.approx(1 - dot[0] / (dot[1] * dot[2]) ** 0.5, rel=1e-4)


def test_leaves_out_what_rows_without_labels_cannot_say(column: columns.Column) -> None:
    losses: dict[str, Loss] = {"kl": KL(), "labels": LabelCrossEntropy(), "slope": ClassGradient(of="label")}
    found = distances(losses, net(0), net(1), replace(column, y=None), torch.arange(20), SPEC)
    assert found["labels"] is None
    assert found["slope"] is None
    assert found["kl"] is not None


def test_says_the_same_twice_and_leaves_the_models_alone(column: columns.Column) -> None:
    student, teacher = net(0), net(1)
    before = {key: value.clone() for key, value in student.module.state_dict().items()}
    losses: dict[str, Loss] = {"drawn": SampledLabel(), "slopes": Jacobian(directions=1)}
    rows = torch.arange(40)
    first = distances(losses, student, teacher, column, rows, SPEC)
    assert distances(losses, student, teacher, column, rows, SPEC) == first
    assert all(parameter.grad is None and parameter.requires_grad for parameter in student.module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in student.module.state_dict().items())
    assert teacher.counts["evaluate"]["forward"] == 80
    assert not teacher.counts["synthesise"]["forward"]


def test_says_what_it_cannot_measure(column: columns.Column) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x.flatten(1).round())
            return out.detach()

    rows = torch.arange(10)
    with pytest.raises(UnsupportedProblem, match=r"^losses: needs a teacher with input_grad"):
        distances({"slopes": Jacobian()}, net(0), Probe(Rounded(), SPEC), column, rows, SPEC)
    with pytest.raises(ValueError, match=r"expected '1' of the student in the shape of '1' of the teacher"):
        distances({"features": Features((("1", "1"),))}, net(0), net(1, width=7), column, rows, SPEC)
