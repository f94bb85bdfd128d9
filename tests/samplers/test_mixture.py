"""Mixture: shares that hold in expectation whatever n, and columns that say only what is known of all rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch, Outputs
from samplers import Balanced, DeepInversion, Gaussian, Mixture, Mixup, Real, Uniform
from samplers.state import State

MakeProblem = Callable[..., Problem]

ALL = ("y", "target", "weight")


@dataclass(frozen=True)
class Part:
    """Images all of one value, with the columns that are asked for; it keeps what it is told."""

    value: float
    has: tuple[str, ...] = ()
    name: ClassVar[str] = "part"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        del seed
        return State(told=torch.empty(0), shown=torch.empty(0, *problem.spec.shape))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del state, learn
        x = torch.full((n, *problem.spec.shape), self.value)
        batch = Batch(
            x,
            y=torch.full((n,), 3) if "y" in self.has else None,
            target=torch.full((n,), 4) if "target" in self.has else None,
            weight=torch.full((n,), 2.0) if "weight" in self.has else None,
            info={"n": torch.tensor(n)},
        )
        if "soft" in self.has:
            batch = replace(batch, y=torch.full((n, 10), 0.1))
        return replace(batch, teacher=problem.label(batch)) if "teacher" in self.has else batch

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        state.told, state.shown = loss.clone(), batch.x.clone()


def draw(mixture: Mixture, problem: Problem, n: int) -> Batch:
    return mixture.draw(mixture.init(problem, 1), problem, n)


@pytest.mark.parametrize(("n", "weights", "expected"), [(8, (1, 3), [2, 6]), (10, (0.1, 0.2, 0.7), [1, 2, 7])])
def test_whole_shares_never_change(n: int, weights: tuple[float, ...], expected: list[int]) -> None:
    mixture = Mixture(tuple(Part(0.1 * i) for i in range(len(weights))), weights)
    for step in range(200):
        assert mixture.shares(n, step / 200) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 7, 256])
@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1, 1), (1, 2)])
def test_shares_hold_in_expectation(n: int, weights: tuple[int, ...]) -> None:
    """Over evenly spaced offsets, as many as the weights' sum, the mean of each share is n times its weight exactly."""
    mixture = Mixture(tuple(Part(0.0) for _ in weights), tuple(float(w) for w in weights))
    total = sum(weights)
    found = [mixture.shares(n, (step + 0.5) / total) for step in range(total)]
    for shares in found:
        assert sum(shares) == n
        assert all(abs(share - n * weight / total) < 1 for share, weight in zip(shares, weights, strict=True))
    for place, weight in enumerate(weights):
        assert Fraction(sum(shares[place] for shares in found), total) == Fraction(n * weight, total)


def test_single_rows_come_from_every_part(make_problem: MakeProblem) -> None:
    """4000 draws of one row: a part's share is off by over 0.045 with P = 2 exp(-2 * 4000 * 0.045^2) = 2e-7."""
    problem = make_problem()
    mixture = Mixture((Part(0.0), Part(0.5), Part(1.0)), (1.0, 1.0, 2.0))
    state = mixture.init(problem, 1)
    values = torch.stack([mixture.draw(state, problem, 1).x[0, 0, 0, 0] for _ in range(4000)])
    for value, expected in ((0.0, 0.25), (0.5, 0.25), (1.0, 0.5)):
        assert abs(float((values == value).float().mean()) - expected) < 0.045


def test_source_is_the_outermost_part(make_problem: MakeProblem) -> None:
    inner = Mixture((Part(0.1), Part(0.2)))
    batch = draw(Mixture((inner, Part(0.3)), (2.0, 1.0)), make_problem(), 6)
    assert batch.source is not None
    assert batch.source.tolist() == [0, 0, 0, 0, 1, 1]
    torch.testing.assert_close(batch.x[:, 0, 0, 0], torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.3]))
    assert {key: int(value) for key, value in batch.info.items()} == {"0.0.n": 2, "0.1.n": 2, "1.n": 2}


def test_truth_is_said_only_where_all_know_it(make_problem: MakeProblem) -> None:
    problem = make_problem()
    assert draw(Mixture((Part(0.1, ("y",)), Part(0.2))), problem, 4).y is None
    both = draw(Mixture((Part(0.1, ("y",)), Part(0.2, ("y",)))), problem, 4).y
    assert both is not None
    assert both.tolist() == [3, 3, 3, 3]
    soft = draw(Mixture((Part(0.1, ("y",)), Part(0.2, ("soft",)))), problem, 4).y
    one_hot = [float(i == 3) for i in range(10)]
    torch.testing.assert_close(soft, torch.tensor([one_hot, one_hot, [0.1] * 10, [0.1] * 10]))


def test_what_only_some_parts_know_is_said_apart(make_problem: MakeProblem) -> None:
    problem = make_problem()
    hard = draw(Mixture((Part(0.1, ("y",)), Part(0.2))), problem, 4)
    assert (hard.y, hard.labelled) == (None, (0,))
    assert hard.known is not None
    assert hard.known.tolist() == [3, 3, -1, -1]
    soft = draw(Mixture((Part(0.1), Part(0.2, ("soft",)), Part(0.3, ("y",)))), problem, 3)
    assert (soft.y, soft.labelled) == (None, (1, 2))
    expected = torch.tensor([[0.0] * 10, [0.1] * 10, [float(i == 3) for i in range(10)]])
    torch.testing.assert_close(soft.known, expected)
    torch.testing.assert_close(soft.of_sources([1, 2]).y, expected)
    assert soft.of_sources([0, 1]).y is None
    none = draw(Mixture((Part(0.1), Part(0.2))), problem, 4)
    assert (none.known, none.labelled) == (None, ())


def test_a_part_without_rows_lacks_no_labels(make_problem: MakeProblem) -> None:
    problem, mixture = make_problem(), Mixture((Part(0.1), Part(0.2, ("y",))), (9.0, 1.0))
    state = mixture.init(problem, 1)
    batches = [mixture.draw(state, problem, 4) for _ in range(20)]
    shares = [int((batch.source == 1).sum()) for batch in batches if batch.source is not None]
    assert set(shares) == {0, 1}
    for batch, share in zip(batches, shares, strict=True):
        assert batch.y is None
        assert batch.labelled == (1,)
        assert batch.of_sources([0]).y is None
        y = batch.of_sources([1]).y
        assert y is not None
        assert y[len(y) - share :].tolist() == [3] * share


def test_missing_targets_and_weights_are_filled(make_problem: MakeProblem) -> None:
    problem = make_problem()
    batch = draw(Mixture((Part(0.1, ALL), Part(0.2))), problem, 4)
    assert batch.target is not None
    assert batch.target.tolist() == [4, 4, -1, -1]
    assert batch.weight is not None
    assert batch.weight.tolist() == [2.0, 2.0, 1.0, 1.0]
    plain = draw(Mixture((Part(0.1), Part(0.2))), problem, 4)
    assert plain.target is None
    assert plain.weight is None


def test_answers_are_carried_for_all_rows_or_none(make_problem: MakeProblem) -> None:
    problem = make_problem()
    assert draw(Mixture((Part(0.1, ("teacher",)), Part(0.2))), problem, 4).teacher is None
    batch = draw(Mixture((Part(0.1, ("teacher",)), Part(0.2, ("teacher",)))), problem, 4)
    assert batch.teacher is not None
    assert batch.teacher.labelling == batch.labelling == ((4, "eval"),)
    torch.testing.assert_close(batch.teacher.logits, problem.teacher(batch.x).logits.detach())


def test_answers_of_different_precision_are_dropped(make_problem: MakeProblem) -> None:
    @dataclass(frozen=True)
    class Coarse(Part):
        def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
            batch = super().draw(state, problem, n, learn)
            answers: Outputs = replace(problem.label(batch), precision="bfloat16")
            return replace(batch, teacher=answers)

    assert draw(Mixture((Part(0.1, ("teacher",)), Coarse(0.2))), make_problem(), 4).teacher is None


def test_parts_of_different_modes_are_labelled_apart(make_problem: MakeProblem) -> None:
    problem = make_problem()
    mixture = Mixture((Real(limit=20), Balanced(Real(limit=20)), Uniform(), Gaussian()))
    batch = draw(mixture, problem, 16)
    assert batch.labelling == ((8, "eval"), (4, "batch"), (4, "batch"))
    answers = problem.label(batch).logits
    for rows, mode in ((slice(0, 8), "eval"), (slice(8, 12), "batch"), (slice(12, 16), "batch")):
        expected = problem.teacher(batch.x[rows], mode).logits.detach()  # type: ignore[arg-type]
        torch.testing.assert_close(answers[rows], expected)


def test_each_part_is_told_of_its_own_rows(make_problem: MakeProblem) -> None:
    problem = make_problem()
    mixture = Mixture((Part(0.25), Mixture((Part(0.5), Part(0.75)))), (1.0, 2.0))
    state = mixture.init(problem, 1)
    batch = mixture.draw(state, problem, 6)
    mixture.draw(state, problem, 3, learn=False)  # scoring in between changes nothing
    mixture.observe(state, batch, torch.arange(6.0))
    inner = state.states[1]
    told = [part.told.tolist() for part in (state.states[0], inner.states[0], inner.states[1])]
    assert told == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert [float(part.shown.mean()) for part in (state.states[0], *inner.states)] == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="batch: expected the 6 rows of the last draw, found 5"):
        mixture.observe(state, Batch(batch.x[:5]), torch.arange(5.0))


def test_a_teacher_that_cannot_is_refused_by_the_part(make_problem: MakeProblem) -> None:
    plain = make_problem(teacher=lambda spec: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    with pytest.raises(ValueError, match="deep_inversion: needs a teacher with batchnorm"):
        Mixture((Uniform(), Mixup(DeepInversion()))).init(plain, 1)


def test_names_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="samplers: expected two or more samplers"):
        Mixture((Uniform(),))
    with pytest.raises(ValueError, match="weights: expected 2 numbers, found 3"):
        Mixture((Uniform(), Real()), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="weights: expected numbers > 0"):
        Mixture((Uniform(), Real()), (1.0, 0.0))
    assert Mixture([Uniform(), Real()], [1, 2]) == Mixture((Uniform(), Real()), (1, 2))  # type: ignore[arg-type]
