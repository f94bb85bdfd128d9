"""DFQ: its four terms by hand, its loop, its network, and what it says to teachers and settings that do not fit."""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import InputSpec
from samplers import DFQ, MAD, DeepInversion

MakeProblem = Callable[..., Problem]

SMALL = DFQ(batch=12, latent=6, width="small")


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(z) for z in row]
    return [w / sum(weights) for w in weights]


def slow_gap(given: Tensor, norm: nn.BatchNorm2d) -> float:
    """The two Euclidean lengths of one layer, given (n, c, h, w)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    columns = [column.tolist() for column in given.double().transpose(0, 1).flatten(1)]
    mean = [statistics.fmean(c) - m for c, m in zip(columns, norm.running_mean.tolist(), strict=True)]
    var = [statistics.pvariance(c) - v for c, v in zip(columns, norm.running_var.tolist(), strict=True)]
    return math.hypot(*mean) + math.hypot(*var)


def slow_gauss(given: Tensor, norm: nn.BatchNorm2d) -> float:
    """KL(stored || batch) of the Gaussians of one layer's channels, the mean over them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    columns = [column.tolist() for column in given.double().transpose(0, 1).flatten(1)]
    nats = []
    for column, mean, var in zip(columns, norm.running_mean.tolist(), norm.running_var.tolist(), strict=True):
        spread = statistics.pvariance(column)
        gap = (statistics.fmean(column) - mean) ** 2
        nats.append(math.log(math.sqrt(spread / var)) - 0.5 + (var + gap) / (2.0 * spread))
    return statistics.fmean(nats)


def slow_terms(problem: Problem, x: Tensor) -> dict[str, float]:
    """Each term as it is to be minimised, in Python floats and with natural logarithms."""
    teacher: Any = copy.deepcopy(problem.teacher.module).eval()
    with torch.no_grad():
        p = [softmax(row) for row in teacher(x).tolist()]
        q = [softmax(row) for row in copy.deepcopy(problem.student.module).eval()(x).tolist()]
        gaps, gauss = (
            [slow(teacher.body[:at](x), teacher.body[at]) for at in (1, 4)] for slow in (slow_gap, slow_gauss)
        )
    rows = [sum(a * math.log(a / b) for a, b in zip(one, other, strict=True)) for one, other in zip(p, q, strict=True)]
    mean = [sum(column) / len(p) for column in zip(*p, strict=True)]
    return {
        "adversarial": -sum(rows) / len(rows),
        "batchnorm": sum(gaps),
        "gauss": statistics.fmean(gauss),
        "one_hot": -sum(math.log(max(row)) for row in p) / len(p),
        "balance": sum(m * math.log(m) for m in mean),
    }


@pytest.mark.parametrize(
    ("sampler", "weights"),
    [
        (DFQ(), {"adversarial": 1.0, "batchnorm": 1.0, "one_hot": 1.0, "balance": 20.0}),
        (replace(DFQ(), adversarial=0.5, batchnorm=3.0, one_hot=0.0, balance=1.0), None),
        (replace(DFQ(), batchnorm=0.0, gauss=0.5), {"adversarial": 1.0, "gauss": 0.5, "one_hot": 1.0, "balance": 20.0}),
        (DeepInversion(batchnorm=0.0, gauss=2.0, one_hot=0.0), {"gauss": 2.0}),
        (MAD(), {"adversarial": 1.0, "batchnorm": 1.0, "one_hot": 1.0}),
    ],
)
def test_objective_is_the_published_one(
    make_problem: MakeProblem, sampler: DFQ | MAD | DeepInversion, weights: dict[str, float] | None
) -> None:
    weights = {"adversarial": 0.5, "batchnorm": 3.0, "balance": 1.0} if weights is None else weights
    problem, objective = make_problem(), sampler.objective
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    slow = slow_terms(problem, x)
    states = objective.init(problem, 0, "test")
    with objective.watching(problem) as look:
        found = objective(states, look(x, None)).item()
    assert found == pytest.approx(sum(weight * slow[term] for term, weight in weights.items()), rel=1e-4)


def test_one_step_of_the_generator_and_ten_fresh_draws_of_it_in_evaluation_mode(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state, moved, seen = SMALL.init(problem, 0), [], []
    for _ in range(21):
        before = state.generator.stem.weight.detach().clone()
        batch = SMALL.draw(state, problem, 4)
        moved.append(not torch.equal(before, state.generator.stem.weight))
        assert batch.teacher is None
        seen.append(batch.x)
    assert moved == ([True] + [False] * 9) * 2 + [True]
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    for probe in (problem.teacher, problem.student):
        assert probe.counts["synthesise"] == {"forward": 3 * 12, "backward": 3 * 12}
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    whole, part = (SMALL._online.images(state, rows) for rows in (z, z[:1]))
    torch.testing.assert_close(whole[:1], part)  # a row does not depend on its company


def test_network_and_optimiser_are_the_published_ones(make_problem: MakeProblem) -> None:
    for sampler in (DFQ(), MAD()):
        state = sampler.init(make_problem(shape=(3, 32, 32)), 0)
        assert sum(p.numel() for p in state.generator.parameters()) == 4_581_955
        group = state.optimiser.param_groups[0]
        assert (type(state.optimiser), group["lr"], group["betas"]) == (torch.optim.Adam, 1e-3, (0.5, 0.999))
        assert (sampler.batch, sampler.student_steps, sampler._online.factor(0.9)) == (256, 10, 1.0)


def test_needs_batchnorm_unless_the_term_is_off(
    make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]
) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="dfq: needs a teacher with batchnorm"):
        SMALL.init(problem, 0)
    without = replace(SMALL, batchnorm=0.0)
    assert len(without.draw(without.init(problem, 0), problem, 3)) == 3


def test_a_batch_must_hold_all_classes(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match="dfq: batch: expected at least 10 rows to balance 10 classes, found 4"):
        replace(SMALL, batch=4).init(make_problem(), 0)
    replace(SMALL, batch=4, balance=0.0).init(make_problem(), 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"width": "medium"}, "width: expected one of small, large, found 'medium'"),
        ({"batchnorm": "aut"}, "batchnorm: expected .*'auto'.*, found 'aut'"),
        ({"adversarial": -1.0}, "adversarial: expected a number >= 0"),
        ({"batch": 1}, "batch: expected an integer >= 2"),
        ({"adversarial": 0, "batchnorm": 0, "one_hot": 0, "balance": 0}, "one_hot: expected at least one weight"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **given)
