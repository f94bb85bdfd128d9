"""The weighted sum: by hand, with row weights, with adapters, and what it refuses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dfkd.losses import KL, LabelCrossEntropy, LogitL1, LogitMSE, combine
from dfkd.problem import Probe, Problem
from dfkd.types import Batch, InputSpec, Outputs

N, K = 4, 3
GENERATOR = torch.Generator().manual_seed(5)
STUDENT, TEACHER = 2.0 * torch.randn(2, N, K, generator=GENERATOR)
X = torch.zeros(N, 1, 2, 2)
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5])
OUTPUTS = Outputs(STUDENT), Outputs(TEACHER)


@dataclass(frozen=True)
class Spread:
    """A coupled loss: the batch's value on every row."""

    taps: tuple[str, ...] = ()
    input_grad: bool = False
    scale: ClassVar[float] = 1.0
    coupled: ClassVar[bool] = True

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return {"student": self.taps, "teacher": (*self.taps, "last")}

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del problem
        return Adapter(seed)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        return (student.logits - teacher.logits).square().mean().expand(len(batch))


class Adapter(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        value: Tensor = self.factor * Spread()(student, teacher, batch)
        return value


def problem() -> Problem:
    spec = InputSpec((1, 2, 2), K)
    nets = [Probe(nn.Sequential(nn.Flatten(), nn.Linear(4, K)), spec, name=who) for who in ("teacher", "student")]
    return Problem(nets[0], nets[1], spec, torch.device("cpu"))


def test_weights_and_scales_by_hand() -> None:
    evaluated = combine({"a": (0.5, KL(temperature=2.0)), "b": (3.0, LogitL1())})(*OUTPUTS, Batch(X))
    kl, l1 = KL(temperature=2.0)(*OUTPUTS, Batch(X)), LogitL1()(*OUTPUTS, Batch(X))
    rows = 0.5 * 4.0 * kl + 3.0 * l1
    torch.testing.assert_close(evaluated.rows, rows)
    torch.testing.assert_close(evaluated.total, rows.mean())
    assert list(evaluated.terms) == ["a", "b"]
    torch.testing.assert_close(evaluated.terms["a"], kl.mean())
    torch.testing.assert_close(evaluated.terms["b"], l1.mean())


def test_row_weights_sum_over_n() -> None:
    evaluated = combine({"a": (2.0, LogitMSE())})(*OUTPUTS, Batch(X, weight=WEIGHT))
    values = LogitMSE()(*OUTPUTS, Batch(X))
    by_hand = sum(2.0 * w * v for w, v in zip(WEIGHT.tolist(), values.tolist(), strict=True)) / N
    torch.testing.assert_close(evaluated.total, torch.tensor(by_hand))
    torch.testing.assert_close(evaluated.rows, 2.0 * values)  # what observe sees is each row's own loss
    ones = combine({"a": (2.0, LogitMSE())})(*OUTPUTS, Batch(X, weight=torch.ones(N)))
    torch.testing.assert_close(ones.total, 2.0 * values.mean())


def test_only_the_total_carries_a_graph() -> None:
    student = STUDENT.clone().requires_grad_(True)
    evaluated = combine({"a": (1.0, KL()), "b": (2.0, LogitMSE())})(Outputs(student), OUTPUTS[1], Batch(X))
    assert evaluated.total.requires_grad
    assert not evaluated.rows.requires_grad
    assert not any(term.requires_grad for term in evaluated.terms.values())


def test_a_term_of_weight_0_is_not_evaluated() -> None:
    objective = combine({"a": (1.0, KL()), "b": (0.0, Spread(("x",))), "c": (0.0, LabelCrossEntropy())})
    assert list(objective(*OUTPUTS, Batch(X)).terms) == ["a"]  # label_ce would refuse a batch without y
    assert objective.needs == {"student": (), "teacher": ()}


def test_declares_what_its_losses_need() -> None:
    objective = combine({"a": (1.0, Spread(("x", "y"))), "b": (1.0, Spread(("y", "z"), input_grad=True))})
    assert objective.needs == {"student": ("x", "y", "z"), "teacher": ("x", "y", "last", "z")}
    assert objective.input_grad
    assert objective.uses_teacher
    assert not combine({"a": (1.0, LabelCrossEntropy())}).uses_teacher
    assert not combine({"a": (1.0, LabelCrossEntropy())}).input_grad
    assert combine({"a": (1.0, LabelCrossEntropy()), "b": (1.0, KL())}).uses_teacher


def test_adapters_have_seeds_of_their_own_and_are_called_in_the_losses_place() -> None:
    objective = combine({"a": (2.0, Spread()), "b": (1.0, Spread()), "c": (1.0, KL())})
    adapters = objective.init(problem(), 7)
    assert set(adapters) == {"a", "b"}
    assert adapters["a"].seed != adapters["b"].seed
    evaluated = objective(*OUTPUTS, Batch(X), adapters)
    plain = objective(*OUTPUTS, Batch(X))
    torch.testing.assert_close(evaluated.terms["a"], 3.0 * plain.terms["a"])
    torch.testing.assert_close(evaluated.terms["c"], plain.terms["c"])
    evaluated.total.backward()
    assert adapters["a"].factor.grad == pytest.approx(2.0 * plain.terms["a"].item())


def test_a_coupled_loss_refuses_unequal_row_weights() -> None:
    objective = combine({"a": (1.0, Spread())})
    equal = objective(*OUTPUTS, Batch(X, weight=torch.full((N,), 0.5)))
    torch.testing.assert_close(equal.total, 0.5 * objective(*OUTPUTS, Batch(X)).total)
    with pytest.raises(ValueError, match="a: needs equal row weights"):
        objective(*OUTPUTS, Batch(X, weight=WEIGHT))


def test_names_a_loss_that_does_not_give_one_value_per_row() -> None:
    class Mean(Spread):
        def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
            return super().__call__(student, teacher, batch).mean()

    with pytest.raises(ValueError, match=r"a: expected one value for each of 4 rows, found \(\)"):
        combine({"a": (1.0, Mean())})(*OUTPUTS, Batch(X))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "objective: expected at least one loss"),
        ({"kl": (0.0, KL())}, "objective: expected at least one loss with a weight > 0"),
        ({"kl": (-1.0, KL())}, r"objective.kl: expected a finite weight >= 0, found -1.0"),
        ({"kl": (float("nan"), KL())}, "objective.kl: expected a finite weight >= 0, found nan"),
        ({"kl": (float("inf"), KL())}, "objective.kl: expected a finite weight >= 0, found inf"),
        ({"kl": ("1", KL())}, "objective.kl: expected a finite weight >= 0, found '1'"),
        ({"kl": KL()}, r"objective.kl: expected \(weight, loss\)"),
        ({"kl": (1.0, KL)}, r"objective.kl: expected a loss such as KL\(temperature=4\)"),
        ({"kl": (1.0, "kl")}, r"objective.kl: expected a loss such as KL\(temperature=4\), found 'kl'"),
        ({"k.l": (1.0, KL())}, "objective: expected a label without a dot"),
    ],
)
def test_refuses(terms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine(terms)
