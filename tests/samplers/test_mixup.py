"""Mixup: proportions of the exact law, and rows that are the blend that their labels say."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch
from samplers import Mixture, Mixup, Real, Uniform
from samplers.mixup import symmetric_beta
from samplers.noise import Uniform as Noise
from samplers.state import State

MakeProblem = Callable[..., Problem]

N, E = 20_000, 0.02
"""The empirical distribution function of N values is off by over E with probability 2 exp(-2 N E^2) = 2.3e-7."""


@dataclass(frozen=True)
class Ramp:
    """Image i of a draw of n is all i / n; its class is i % 10 and its weight i + 1."""

    name: ClassVar[str] = "ramp"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        return Noise().init(problem, seed)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del state, learn
        at = torch.arange(n)
        x = (at / n).reshape(n, 1, 1, 1).expand(n, *problem.spec.shape)
        return Batch(x, y=at % 10, weight=at + 1.0, target=at % 10, source=at)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del batch
        state.seen = loss.clone()


def farthest(values: Tensor, alpha: float) -> float:
    """The largest distance from the law at places that float32 can tell from 0 and 1."""
    places = torch.linspace(1e-6, 1.0 - 1e-6, 5001, dtype=torch.float64)
    found = torch.searchsorted(values.double().sort().values, places) / len(values)
    return float((found - torch.from_numpy(beta.cdf(places.numpy(), alpha, alpha))).abs().max())


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 4.0, 50.0])
def test_proportions_are_beta(alpha: float) -> None:
    values = symmetric_beta(N, alpha, torch.Generator().manual_seed(7), torch.device("cpu"))
    assert farthest(values, alpha) < E
    assert farthest(values, 1.4 * alpha) > E  # another alpha would be seen


@pytest.mark.parametrize("alpha", [1e-3, 1e6])
def test_proportions_are_finite_at_extremes(alpha: float) -> None:
    values = symmetric_beta(N, alpha, torch.Generator().manual_seed(7), torch.device("cpu"))
    assert ((values >= 0.0) & (values <= 1.0)).all()
    ends = float(((values < 1e-3) | (values > 0.999)).float().mean())
    assert ends > 0.98 if alpha < 1.0 else float((values - 0.5).abs().max()) < 0.01


def test_rows_are_the_blend_that_their_labels_say(make_problem: MakeProblem) -> None:
    problem, n = make_problem(), 10
    mixup = Mixup(Ramp())
    batch = mixup.draw(mixup.init(problem, 1), problem, n)
    y = batch.require_y("test")  # of classes 0 to 9, one row each: the shares say who was blended
    torch.testing.assert_close(batch.x[:, 0, 0, 0], y @ (torch.arange(10) / n))
    assert batch.weight is not None
    torch.testing.assert_close(batch.weight, y @ torch.arange(1.0, 11.0))
    assert ((y > 0).sum(dim=1) <= 2).all()
    assert (batch.x == batch.x[:, :1, :1, :1]).all()
    assert batch.target is None
    assert batch.source is None


def test_each_row_has_its_own_proportion_and_partner(make_problem: MakeProblem) -> None:
    """Own shares of N rows; one proportion per batch would give one step, a shared sort would correlate with place."""
    problem = make_problem(shape=(1, 2, 2))
    mixup = Mixup(Ramp(), alpha=0.3)
    state = mixup.init(problem, 1)
    batch = mixup.draw(state, problem, N)
    share = symmetric_beta(N, 0.3, state.stream._generator.manual_seed(0), problem.device)
    assert len(share.unique()) > 0.9 * N
    # the base rises evenly from 0 to 1, so that a row is share * i/n + (1 - share) * partner/n: mean 1/2, within E
    assert abs(float(batch.x[:, 0, 0, 0].mean()) - 0.5) < E
    y = batch.require_y("test")
    own = y.gather(1, (torch.arange(N) % 10)[:, None])[:, 0]
    assert 0.45 < float((own > 0.5).float().mean()) < 0.65  # half, and the tenth of partners of the same class
    assert len(own.unique()) > 0.8 * N


def test_the_base_learns_the_losses_of_its_rows(make_problem: MakeProblem) -> None:
    problem = make_problem()
    mixup = Mixup(Ramp())
    state = mixup.init(problem, 1)
    batch = mixup.draw(state, problem, 5)
    mixup.observe(state, batch, torch.arange(5.0))
    assert torch.equal(state.base.seen, torch.arange(5.0))


def test_what_the_teacher_said_about_unmixed_rows_is_dropped(make_problem: MakeProblem) -> None:
    @dataclass(frozen=True)
    class Answered(Ramp):
        def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
            batch = super().draw(state, problem, n, learn)
            return replace(batch, teacher=problem.label(batch))

    problem = make_problem()
    mixup = Mixup(Answered())
    assert mixup.draw(mixup.init(problem, 1), problem, 4).teacher is None


def test_needs_one_labelling_mode(make_problem: MakeProblem) -> None:
    problem = make_problem()
    mixup = Mixup(Mixture((Uniform(), Real())))
    with pytest.raises(ValueError, match="mixup: expected a base labelled in one BatchNorm mode, found batch and eval"):
        mixup.draw(mixup.init(problem, 1), problem, 8)


def test_names_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="alpha: expected a number > 0, found 0"):
        Mixup(Uniform(), alpha=0)
    with pytest.raises(ValueError, match=r"base: expected a sampler, such as Uniform\(\), found <class"):
        Mixup(Uniform)  # type: ignore[arg-type]
