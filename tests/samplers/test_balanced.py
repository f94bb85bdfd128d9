"""Balanced: classes as even as the candidates allow, on a teacher whose classes are known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, InputSpec, whole
from samplers import Balanced, DeadLeaves, Mixture, OneImage, OutOfDomain, Real, Shader, Spectrum, Uniform
from samplers.balanced import rank_in_class
from samplers.state import State, Stream

MakeProblem = Callable[..., Problem]
Brightness = Callable[[InputSpec], nn.Module]


@dataclass(frozen=True)
class Grey:
    """Images of one random brightness each, dark ones more often: u ** power."""

    power: float = 2.0
    least: float = 0.0
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "grey"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        return State(stream=Stream(seed, problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        u = torch.rand(n, generator=state.stream.advance()) ** self.power
        state.learnt = learn
        x = (self.least + (1 - self.least) * u).reshape(n, 1, 1, 1).expand(n, *problem.spec.shape)
        return Batch(x, target=torch.arange(n), labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def drawn(sampler: Balanced, problem: Problem, n: int, seed: int = 1) -> tuple[Batch, list[int]]:
    batch = sampler.draw(sampler.init(problem, seed), problem, n)
    classes = (batch.x.mean(dim=(1, 2, 3)) * 5).long().clamp(max=4)
    return batch, classes.bincount(minlength=5).tolist()


def test_rank_is_the_count_of_earlier_rows_of_the_class() -> None:
    classes = torch.randint(7, (200,), generator=torch.Generator().manual_seed(3))
    slow = [classes[:i].eq(classes[i]).sum().item() for i in range(200)]
    assert rank_in_class(classes, 9).tolist() == slow  # classes 7 and 8 are empty


@pytest.mark.parametrize("n", [1, 5, 50, 52])
def test_classes_are_even_where_there_are_candidates(n: int, make_problem: MakeProblem, brightness: Brightness) -> None:
    problem = make_problem(num_classes=5, teacher=brightness)
    batch, counts = drawn(Balanced(Grey(), multiple=8), problem, n)
    assert max(counts) - min(counts) <= 1
    assert int(batch.info["shortfall"]) == 0
    assert problem.teacher.counts["label"] == {"forward": 8 * n, "backward": 0}  # all candidates are paid for


def test_without_it_they_are_not_even(make_problem: MakeProblem, brightness: Brightness) -> None:
    problem = make_problem(num_classes=5, teacher=brightness)
    plain = Grey().draw(Grey().init(problem, 1), problem, 50).x.mean(dim=(1, 2, 3))
    counts = (plain * 5).long().bincount(minlength=5)
    assert counts.max() - counts.min() > 10


def test_says_what_it_lacks(make_problem: MakeProblem, brightness: Brightness) -> None:
    """No image is darker than 0.4: two of five classes have no candidate, and the rest share the rows."""
    problem = make_problem(num_classes=5, teacher=brightness)
    batch, counts = drawn(Balanced(Grey(power=1.0, least=0.4), multiple=8), problem, 60)
    assert counts == [0, 0, 20, 20, 20]
    assert int(batch.info["shortfall"]) == 24


@pytest.mark.parametrize("base", [DeadLeaves(), Spectrum(), Shader(), OneImage(), OutOfDomain("digits")])
def test_evens_out_what_a_teacher_sees_in_images(base: Any, make_problem: MakeProblem) -> None:
    """A class is short only where there were no more candidates of it."""
    problem = make_problem(num_classes=4)
    sampler = Balanced(base, multiple=6)
    batch = sampler.draw(sampler.init(problem, 1), problem, 40)
    assert batch.teacher is not None
    found = batch.teacher.logits.argmax(dim=1).bincount(minlength=4)
    state = sampler.init(problem, 1)
    candidates = problem.label(base.draw(state.base, problem, 240)).logits.argmax(dim=1).bincount(minlength=4)
    assert (found >= candidates.clamp(max=10)).all()
    assert int(batch.info["shortfall"]) == int((10 - candidates).clamp_min(0).sum())
    plain = 40 * candidates / 240
    assert float(found.double().std()) < float(plain.std())


def test_takes_candidates_from_everywhere_in_the_base(make_problem: MakeProblem, brightness: Brightness) -> None:
    """Of 4 n candidates in a base's order, the chosen ones' places have mean 2 n: 2000 values in [0, 1], over 0.064 off
    with probability 1.5e-7; taking the first of each class gives far less than a half."""
    problem = make_problem(num_classes=5, teacher=brightness)
    batch, _ = drawn(Balanced(Grey(power=1.0)), problem, 2000)
    assert batch.target is not None
    assert len(batch.target.unique()) == 2000  # no candidate twice
    assert abs(float(batch.target.double().mean()) / 8000 - 0.5) < 0.064


def test_keeps_answers_only_where_company_does_not_count(make_problem: MakeProblem) -> None:
    problem = make_problem()
    modes: tuple[BatchNormMode, ...] = ("eval", "batch")
    for mode in modes:
        sampler: Any = Balanced(Grey(labelling=mode))
        batch = sampler.draw(sampler.init(problem, 1), problem, 8)
        assert batch.labelling == ((8, mode),)
        assert (batch.teacher is None) == (mode == "batch")
        if batch.teacher is not None:
            torch.testing.assert_close(batch.teacher.logits, problem.teacher(batch.x).logits.detach())


def test_passes_on_whether_to_learn(make_problem: MakeProblem) -> None:
    problem = make_problem()
    sampler = Balanced(Grey())
    state = sampler.init(problem, 1)
    for learn in (True, False):
        sampler.draw(state, problem, 3, learn)
        assert state.base.learnt is learn


def test_refuses_what_it_cannot_do(make_problem: MakeProblem) -> None:
    problem = make_problem()
    with pytest.raises(ValueError, match="multiple: expected an integer >= 2, found 1"):
        Balanced(Uniform(), multiple=1)
    mixed = Balanced(Mixture((Uniform(), Real())))
    with pytest.raises(ValueError, match="balanced: expected a base labelled in one BatchNorm mode"):
        mixed.draw(mixed.init(problem, 1), problem, 4)
