"""The BatchNorm term: against a recount with Python's own statistics, at its zero, and scaled to the teacher."""

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.rng import initialised
from dfkd.types import InputSpec
from samplers.ingredients import (
    AUTO,
    BatchNormGauss,
    BatchNormNorm,
    Best,
    MovingBatchNorm,
    Objective,
    batchnorm_term,
    descend,
    noise_start,
)
from samplers.state import State

MakeProblem = Callable[..., Problem]


class Net(nn.Module):
    """Two BatchNorm layers whose inputs can be had by hand; `gain` scales what the first is given and has stored."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        with initialised(3):
            self.conv, self.linear = nn.Conv2d(1, 2, 3, bias=False), nn.Linear(2, 3)
        self.first, self.second = nn.BatchNorm2d(2, eps=1e-12), nn.BatchNorm1d(2, eps=1e-12)
        with torch.no_grad():
            self.conv.weight *= gain
        self.first.running_mean = gain * torch.tensor([0.3, -0.2])
        self.first.running_var = gain**2 * torch.tensor([0.5, 2.0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.conv(x)).relu().mean(dim=(2, 3))
        return self.linear(self.second(x))  # type: ignore[no-any-return]


def problem_of(net: nn.Module) -> Problem:
    spec = InputSpec((1, 8, 8), 3)
    return Problem(Probe(net, spec), Probe(Net(), spec, name="student"), spec, torch.device("cpu"))


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def value(term: BatchNormNorm | BatchNormGauss, problem: Problem, x: Tensor) -> Tensor:
    objective = Objective(((1.0, term),))
    states = objective.init(problem, 0, "test")
    with objective.watching(problem) as look:
        return objective(states, look(x, None))


def slow_gap(given: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> float:
    """given (values, channels): the two Euclidean lengths, with the variance that divides by n."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    columns = [column.tolist() for column in given.double().T]
    mean = [statistics.fmean(c) - m for c, m in zip(columns, norm.running_mean.tolist(), strict=True)]
    var = [statistics.pvariance(c) - v for c, v in zip(columns, norm.running_var.tolist(), strict=True)]
    return math.hypot(*mean) + math.hypot(*var)


@pytest.mark.parametrize("first_layer", [1.0, 10.0, 0.0])
def test_equals_a_recount(first_layer: float) -> None:
    net, x = Net(), images()
    with torch.no_grad():
        maps = net.conv(x)
        pooled = net.eval().first(maps).relu().mean(dim=(2, 3))
    slow = first_layer * slow_gap(maps.permute(0, 2, 3, 1).reshape(-1, 2), net.first) + slow_gap(pooled, net.second)
    assert value(BatchNormNorm(first_layer), problem_of(net), x).item() == pytest.approx(slow, rel=1e-4)


def slow_gauss(given: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> float:
    """given (values, channels): mean over channels of KL(N(stored) || N(batch)), by numerical integration."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    total = 0.0
    for column, m, v in zip(given.double().T, norm.running_mean.tolist(), norm.running_var.tolist(), strict=True):
        mean, var = statistics.fmean(column.tolist()), statistics.pvariance(column.tolist())
        width = math.sqrt(v) / 200
        for step in range(-2000, 2001):  # ten stored deviations to either side
            x = m + step * width
            p = math.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            log_ratio = (x - mean) ** 2 / (2 * var) - (x - m) ** 2 / (2 * v) + 0.5 * math.log(var / v)
            total += p * log_ratio * width
    return total / len(norm.running_mean)


def test_the_gaussian_form_is_a_divergence_of_gaussians() -> None:
    net, x = Net(), images()
    assert net.first.running_mean is not None
    assert net.second.running_var is not None
    with torch.no_grad():
        maps = net.conv(x)
        net.first.running_mean.copy_(maps.mean(dim=(0, 2, 3)) + 0.1)  # so that no channel is dead behind the ReLU
        pooled = net.eval().first(maps).relu().mean(dim=(2, 3))
    net.second.running_var.copy_(torch.tensor([0.02, 0.3]))
    slow = (slow_gauss(maps.permute(0, 2, 3, 1).reshape(-1, 2), net.first) + slow_gauss(pooled, net.second)) / 2
    assert value(BatchNormGauss(), problem_of(net), x).item() == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize("term", [BatchNormNorm(), BatchNormGauss()])
def test_is_zero_with_finite_gradient_on_what_was_stored(term: BatchNormNorm | BatchNormGauss) -> None:
    net, x = Net().train(), images()
    net.first.momentum = net.second.momentum = 1.0
    with torch.no_grad():
        net(x)  # stores the statistics of exactly these images, but divides the variance by n - 1
        for norm, n in ((net.first, 4 * 36), (net.second, 4)):
            assert norm.running_var is not None
            norm.running_var *= (n - 1) / n
    x.requires_grad_(True)
    problem = problem_of(net.eval())
    distance = value(term, problem, x)
    (slope,) = torch.autograd.grad(distance, x)
    assert distance.item() < 1e-5
    assert torch.isfinite(slope).all()


def test_relative_means_the_same_for_a_teacher_of_another_scale() -> None:
    plain, large = (value(BatchNormNorm(), problem_of(Net(gain)), images()).item() for gain in (1.0, 10.0))
    assert large > 5.0 * plain
    one = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3))
    noise = [
        value(
            BatchNormNorm(relative=True),
            problem_of(net),
            noise_start(problem_of(net), 4000, torch.Generator().manual_seed(9)),
        ).item()
        for net in (Net(1.0), Net(10.0), one)
    ]
    assert noise == pytest.approx([1.0, 1.0, 1.0], abs=0.1)  # other noise than was asked for the scale: nearly 1


def test_auto_is_a_fixed_weight_of_the_relative_distance() -> None:
    assert batchnorm_term("auto", 3.0) == (AUTO, BatchNormNorm(3.0, relative=True))
    assert batchnorm_term(0.5) == (0.5, BatchNormNorm())


def test_a_teacher_without_batchnorm_is_refused_by_name() -> None:
    plain = problem_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(UnsupportedProblem, match="inversion: needs a teacher with batchnorm; this teacher has logits"):
        Objective((batchnorm_term("auto"),)).init(plain, 0, "inversion")
    assert Objective((batchnorm_term(0.0),)).init(plain, 0, "inversion") == []


def test_noise_is_centred_in_the_box_and_in_it(make_problem: MakeProblem) -> None:
    problem = make_problem(low=-1.0, high=3.0)
    x = noise_start(problem, 2000, torch.Generator().manual_seed(5))
    assert x.min() == -1.0
    assert x.max() == 3.0
    # law: N(1, 1) clipped two deviations out has mean 1 and standard deviation 0.959; 128 000 values, 5 standard errors
    assert x.mean().item() == pytest.approx(1.0, abs=0.014)
    assert x.std().item() == pytest.approx(0.959, abs=0.012)


def test_names_the_wrong_multiplier() -> None:
    with pytest.raises(ValueError, match=r"first_layer: .* >= 0, found -1\.0"):
        BatchNormNorm(-1.0)


# -- with a moving average -----------------------------------------------------------------------------------------


def given_to(net: Net, x: Tensor) -> list[Tensor]:
    """What the two BatchNorm layers of an evaluated net are given, (values, channels)."""
    with torch.no_grad():
        first = net.conv(x)
        second = net.eval().first(first).relu().mean(dim=(2, 3))
    return [first.permute(0, 2, 3, 1).reshape(-1, 2), second]


def slow_moving(rounds: list[tuple[Tensor, Tensor]], net: Net, m: float) -> list[float]:
    """rounds: images at the first and at the last step of each. The distances at the first steps, in Python floats."""
    average: list[list[tuple[float, float]]] | None = None
    found = []
    for first, last in rounds:
        now = [[(statistics.fmean(c), statistics.pvariance(c)) for c in g.double().T.tolist()]
               for g in given_to(net, first)]  # fmt: skip
        total = 0.0
        for layer, (norm, channels) in enumerate(zip((net.first, net.second), now, strict=True)):
            gaps: list[list[float]] = [[], []]
            for c, both in enumerate(channels):
                for which, stored in enumerate((norm.running_mean, norm.running_var)):
                    assert stored is not None
                    old = both[which] if average is None else average[layer][c][which]
                    share = both[which] if average is None else (1 - m) * both[which] + m * old
                    gaps[which].append(share - float(stored[c]))
            total += math.hypot(*gaps[0]) + math.hypot(*gaps[1])
        found.append(total)
        end = [[(statistics.fmean(c), statistics.pvariance(c)) for c in g.double().T.tolist()]
               for g in given_to(net, last)]  # fmt: skip
        average = (
            end
            if average is None
            else [
                [
                    tuple(m * a + (1 - m) * b for a, b in zip(old, new, strict=True))
                    for old, new in zip(*both, strict=True)
                ]
                for both in zip(average, end, strict=True)
            ]
        )
    return found


def test_the_moving_form_equals_its_definition() -> None:
    net = Net()
    problem, term = problem_of(net), MovingBatchNorm(momentum=0.7)
    objective = Objective(((1.0, term),))
    assert objective.learns
    states = objective.init(problem, 0, "test")
    rng = torch.Generator().manual_seed(8)
    rounds = [tuple(torch.rand(4, 1, 8, 8, generator=rng) * scale for scale in (1.0, 2.0)) for _ in range(3)]
    found = []
    with objective.watching(problem) as look:
        for first, last in rounds:
            found.append(objective(states, look(first, None)).item())
            objective(states, look(last, None))
            objective.after_step(states)
            with torch.no_grad():
                objective.end_round(states, look(first, None))  # the images kept are those of the first step
    torch.testing.assert_close(found, slow_moving([(a, b) for a, b in rounds], net, 0.7), rtol=1e-4, atol=0.0)


def test_no_gradient_passes_through_the_average() -> None:
    problem, x = problem_of(Net()), images().requires_grad_(True)
    term = MovingBatchNorm(momentum=0.9)
    objective = Objective(((1.0, term),))
    states = objective.init(problem, 0, "test")
    with objective.watching(problem) as look:
        (plain,) = torch.autograd.grad(objective(states, look(x, None)), x)
        objective.end_round(states, look(x, None))
        # the average is that of these images, so the mixture is too: the same distance, a tenth of the slope
        mixed = objective(states, look(x, None))
        torch.testing.assert_close(mixed, value(BatchNormNorm(), problem, x))
        (slope,) = torch.autograd.grad(mixed, x)
    torch.testing.assert_close(slope, 0.1 * plain)


def test_the_average_moves_once_a_round() -> None:
    problem = problem_of(Net())
    objective = Objective((batchnorm_term(1.0, momentum=0.5),))
    states = objective.init(problem, 0, "test")
    x = images().requires_grad_(True)
    seen = []
    for _ in range(3):
        descend(problem, objective, states, lambda: x, torch.optim.SGD([x], lr=0.1), 4, best=Best(x))
        assert states[0].last.numel() == 0  # nothing but the average goes on
        seen.append(states[0].average.clone())
    assert all(average.shape == (2, 4) for average in seen)
    assert not torch.equal(seen[0], seen[1])
    again = MovingBatchNorm(0.5).init(problem, 0)
    again.load_state_dict(states[0].state_dict())
    assert torch.equal(again.average, seen[2])


def test_the_moving_form_may_be_scaled_to_the_teacher() -> None:
    problem = problem_of(Net())
    weight, term = batchnorm_term("auto", momentum=0.9)
    assert (weight, term) == (AUTO, MovingBatchNorm(0.9, relative=True))
    noise, state = BatchNormNorm(relative=True).init(problem, 5), term.init(problem, 5)
    assert isinstance(state, State)
    assert noise is not None
    assert torch.equal(state.noise, noise)
    assert batchnorm_term(3.0) == (3.0, BatchNormNorm())
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\), found 1.0"):
        MovingBatchNorm(1.0)
