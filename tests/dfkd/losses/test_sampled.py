"""Drawn labels: their law, where their randomness comes from, and that it is saved."""

import math

import pytest
import torch
from torch import nn

from dfkd.losses import HardLabel, SampledLabel, combine, drawn_labels
from dfkd.problem import Probe, Problem
from dfkd.types import Batch, InputSpec, Outputs

N, K = 400, 4
GENERATOR = torch.Generator().manual_seed(1)
STUDENT, TEACHER = torch.randn(2, N, K, generator=GENERATOR)
BOTH = Outputs(STUDENT), Outputs(TEACHER)
EMPTY = Batch(torch.zeros(N, 1, 1, 1))
SPEC = InputSpec((1, 2, 2), K)


def problem() -> Problem:
    probes = [Probe(nn.Sequential(nn.Flatten(), nn.Linear(4, K)), SPEC, name=who) for who in ("teacher", "student")]
    return Problem(probes[0], probes[1], SPEC, torch.device("cpu"))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_are_drawn_with_the_teachers_softened_probabilities(temperature: float) -> None:
    """n = 20 000 and a bound of 0.02 for 4 classes: correct code fails with probability < 2e-6 (Hoeffding).

    At the other temperature one probability is off by more than 0.2.
    """
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    p = (logits / temperature).softmax(dim=0)
    assert (p - (logits / (5.0 - temperature)).softmax(dim=0)).abs().max() > 0.2
    labels = drawn_labels(logits.expand(20_000, K), torch.Generator().manual_seed(7), temperature)
    assert (labels.bincount(minlength=K) / 20_000 - p).abs().max() < 0.02


def test_rows_are_drawn_apart() -> None:
    """Of n = 10 000 pairs of rows with even odds half agree; off by 0.03: probability < 4e-8 (Hoeffding)."""
    labels = drawn_labels(torch.zeros(20_000, 2), torch.Generator().manual_seed(3))
    agree = (labels[:10_000] == labels[10_000:]).float().mean()
    assert abs(float(agree) - 0.5) < 0.03


def test_is_the_cross_entropy_with_the_label_that_was_drawn() -> None:
    generator = torch.Generator().manual_seed(11)
    labels = drawn_labels(TEACHER, generator)
    values = SampledLabel().given(*BOTH, generator.manual_seed(11))
    slow = []
    for row, label in zip(STUDENT.tolist(), labels.tolist(), strict=True):
        slow.append(math.log(sum(math.exp(z) for z in row)) - row[label])
    torch.testing.assert_close(values, torch.tensor(slow))
    student = STUDENT.double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda s: SampledLabel().given(Outputs(s), BOTH[1], torch.Generator().manual_seed(1)), (student,)
    )


def test_a_teacher_that_is_certain_leaves_nothing_to_chance() -> None:
    sure = Outputs(1e4 * TEACHER)
    torch.testing.assert_close(SampledLabel()(BOTH[0], sure, EMPTY), HardLabel()(BOTH[0], sure, EMPTY))
    cold = SampledLabel(temperature=1e-4)(*BOTH, EMPTY)
    torch.testing.assert_close(cold, HardLabel()(*BOTH, EMPTY))


def test_steps_of_a_run_draw_anew_and_runs_of_a_seed_alike() -> None:
    objective = combine({"it": (1.0, SampledLabel())})
    rows: list[list[list[float]]] = []
    p = problem()
    before = torch.random.get_rng_state()
    for seed in (5, 5, 6):
        adapters = objective.init(p, seed)
        assert not list(adapters.parameters())
        rows.append([objective(*BOTH, EMPTY, adapters).rows.tolist() for _ in range(3)])
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, other = rows
    assert first == second
    assert first[0] != first[1] != first[2]
    assert first[0] != other[0]
    assert torch.equal(SampledLabel()(*BOTH, EMPTY), SampledLabel()(*BOTH, EMPTY))  # by itself, as a metric


def test_its_place_in_the_stream_is_saved() -> None:
    objective = combine({"it": (1.0, SampledLabel())})
    run = objective.init(problem(), 5)
    for _ in range(3):
        objective(*BOTH, EMPTY, run)
    again = objective.init(problem(), 77)
    again.load_state_dict(run.state_dict())
    assert torch.equal(objective(*BOTH, EMPTY, again).rows, objective(*BOTH, EMPTY, run).rows)


def test_passes_nothing_to_the_teacher() -> None:
    teacher = TEACHER.clone().requires_grad_(True)
    student = STUDENT.clone().requires_grad_(True)
    SampledLabel()(Outputs(student), Outputs(teacher), EMPTY).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_refuses_a_temperature_that_is_none() -> None:
    with pytest.raises(ValueError, match="temperature: expected a number > 0"):
        SampledLabel(temperature=0.0)
