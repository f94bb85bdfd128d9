"""The search raises the disagreement, stays in its ball and box, and leaves the rest of the batch alone."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dfkd.losses import kl_nats
from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, Outputs
from samplers.adversarial import Adversarial, round_half_up
from samplers.state import State

MakeProblem = Callable[..., Problem]


@dataclass(frozen=True)
class Given:
    """A base that gives the same rows each time, numbered by their source, with answers it should lose."""

    modes: tuple[tuple[float, BatchNormMode], ...] = ((1.0, "eval"),)
    observed: list[Any] = field(default_factory=list, compare=False)
    name: ClassVar[str] = "given"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        del problem
        return State(seed=seed)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del state, learn
        x = torch.rand(n, *problem.spec.shape, generator=torch.Generator().manual_seed(1))
        x = problem.spec.low + problem.spec.span * x
        ends = [round_half_up(share * n) for share, _ in self.modes]
        runs = zip(ends, [0, *ends], self.modes, strict=False)
        labelling = tuple((end - start, mode) for end, start, (_, mode) in runs)
        answers = Outputs(torch.zeros(n, problem.spec.num_classes), labelling=labelling)
        rows = torch.arange(n)
        return Batch(x, y=rows % 10, source=rows, labelling=labelling, teacher=answers, info={"made": rows.sum()})

    def observe(self, state: Any, batch: Batch, loss: Tensor) -> None:
        self.observed.append((state, batch, loss))


def drawn(problem: Problem, n: int = 12, **given: Any) -> tuple[Tensor, Batch]:
    """The base's images and what became of them."""
    base = given.pop("base", Given())
    sampler = Adversarial(base, **given)
    return base.draw(None, problem, n).x, sampler.draw(sampler.init(problem, 0), problem, n)


def moved(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).flatten(1).any(dim=1)


def gaps(problem: Problem, x: Tensor) -> Tensor:
    with torch.no_grad():
        return kl_nats(problem.student(x).logits, problem.teacher(x).logits)


@pytest.mark.parametrize("divergence", ["kl", "l1", "js"])
@pytest.mark.parametrize("random_start", [False, True])
def test_raises_the_disagreement(make_problem: MakeProblem, divergence: Any, random_start: bool) -> None:
    problem = make_problem()
    before, batch = drawn(problem, 64, fraction=1.0, divergence=divergence, random_start=random_start)
    assert gaps(problem, batch.x).mean() > 1.1 * gaps(problem, before).mean()
    assert (gaps(problem, batch.x) > gaps(problem, before)).float().mean() > 0.8


@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_the_ball_and_in_the_box(make_problem: MakeProblem, random_start: bool) -> None:
    problem = make_problem(low=-1.0, high=3.0)
    before, batch = drawn(problem, steps=9, epsilon=0.1, step_size=0.03, random_start=random_start, fraction=1.0)
    reach = (batch.x - before).abs().max()
    assert 0.39 < reach <= 0.4 + 1e-6  # a tenth of a box four wide, and nine steps of 0.12 come to its edge
    assert batch.x.min() >= -1.0
    assert batch.x.max() <= 3.0
    assert (batch.x == 3.0).any()


def test_moves_a_pixel_by_its_step(make_problem: MakeProblem) -> None:
    before, batch = drawn(make_problem(), steps=1, epsilon=0.5, step_size=0.01, fraction=1.0)
    inside = (before > 0.02) & (before < 0.98)
    far = (batch.x - before).abs()[inside]
    assert ((far - 0.01).abs() < 1e-6).float().mean() > 0.99  # signed: each pixel by all of it, unless its slope is 0


def test_a_quarter_of_epsilon_is_the_step_unless_told(make_problem: MakeProblem) -> None:
    first, second = (drawn(make_problem(), epsilon=0.2, step_size=size)[1] for size in (None, 0.05))
    assert torch.equal(first.x, second.x)


@pytest.mark.parametrize(("fraction", "n", "count"), [(0.5, 12, 6), (0.5, 7, 4), (0.5, 1, 1), (0.0, 5, 0), (1.0, 5, 5)])
def test_searches_its_share_and_leaves_the_rest(make_problem: MakeProblem, fraction: float, n: int, count: int) -> None:
    problem = make_problem()
    before, batch = drawn(problem, n, fraction=fraction)
    assert moved(before, batch.x).sum() == count
    assert batch.info["searched"].item() == pytest.approx(count / n)
    assert "made" in batch.info
    assert problem.student.counts["synthesise"] == {"forward": 5 * count, "backward": 5 * count}


def test_each_run_of_rows_gets_its_share_and_keeps_its_mode(make_problem: MakeProblem) -> None:
    base = Given(modes=((0.5, "eval"), (1.0, "batch")))
    before, batch = drawn(make_problem(), 40, base=base, fraction=0.4)
    assert moved(before, batch.x)[:20].sum() == moved(before, batch.x)[20:].sum() == 8
    assert batch.labelling == ((20, "eval"), (20, "batch"))


def test_in_batch_mode_the_company_counts(make_problem: MakeProblem) -> None:
    """One row of a run is searched against what the teacher says of it among all rows of the run."""
    problem, base = make_problem(), Given(modes=((1.0, "batch"),))
    before, batch = drawn(problem, 8, base=base, fraction=0.125, steps=1, epsilon=0.5, step_size=0.01)
    (row,) = moved(before, batch.x).nonzero().flatten()
    x = before.clone().requires_grad_(True)
    gap = kl_nats(problem.student(x).logits, problem.teacher(x, "batch").logits)[row]
    (slope,) = torch.autograd.grad(gap, x)
    expected = (before[row] + 0.01 * slope[row].sign()).clamp(0.0, 1.0)
    torch.testing.assert_close(batch.x[row], expected)


def test_keeps_what_belongs_to_the_rows_and_drops_what_the_teacher_said(make_problem: MakeProblem) -> None:
    _, batch = drawn(make_problem())
    assert batch.teacher is None
    assert torch.equal(batch.source, torch.arange(12))  # type: ignore[arg-type]
    assert torch.equal(batch.y, torch.arange(12) % 10)  # type: ignore[arg-type]


def test_depends_on_the_student_and_leaves_both_as_they_were(make_problem: MakeProblem) -> None:
    first, second = make_problem(student_seed=2), make_problem(student_seed=3)
    before = copy.deepcopy(first.student.module.state_dict())
    assert not torch.equal(drawn(first)[1].x, drawn(second)[1].x)
    assert all(torch.equal(before[key], value) for key, value in first.student.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in first.student.module.parameters())


def test_other_rows_are_searched_in_the_next_draw(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Adversarial(Given())
    state, before = sampler.init(problem, 0), Given().draw(None, problem, 12).x  # type: ignore[arg-type]
    first, second = (moved(before, sampler.draw(state, problem, 12).x) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_base_hears_of_the_loss(make_problem: MakeProblem) -> None:
    problem, base = make_problem(), Given()
    sampler = Adversarial(base)
    state = sampler.init(problem, 0)
    batch, loss = sampler.draw(state, problem, 3), torch.ones(3)
    sampler.observe(state, batch, loss)
    assert base.observed == [(state.base, batch, loss)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base": "uniform"}, "base: expected a sampler"),
        ({"steps": -1}, "steps: expected an integer >= 0, found -1"),
        ({"epsilon": 1.5}, r"epsilon: expected a number in \[0, 1\], found 1.5"),
        ({"step_size": 0.0}, "step_size: expected a number > 0"),
        ({"fraction": -0.1}, "fraction: expected a number in"),
        ({"divergence": "k1"}, "divergence: expected one of kl, l1, js, masked_kl, found 'k1'"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(Adversarial(Given()), **given)
