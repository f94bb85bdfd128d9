"""The contrastive term against a slow reference, whom its gradients reach, and what its bank holds."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Problem
from samplers.ingredients import Contrast, Objective, identity, resized
from samplers.state import State

MakeProblem = Callable[..., Problem]

TERM = Contrast(temperature=0.2, bank=10, negatives=3, projection=4)


def images(n: int = 4, seed: int = 3) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def slow_features(net: nn.Module, x: Tensor) -> list[list[float]]:
    """Of each image the mean over positions of each channel that a BatchNorm layer is given, by hooks of its own."""
    given: list[Tensor] = []
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(lambda _, args: given.append(args[0])) for norm in norms]
    with torch.no_grad():
        net.eval()(x)
    for handle in handles:
        handle.remove()
    return [[sum(map(sum, plane)) / (len(plane) * len(plane[0])) for g in given for plane in g[i].tolist()]
            for i in range(len(x))]  # fmt: skip


def slow_head(head: nn.Module, feature: list[float]) -> list[float]:
    """Two layers and the length 1, in Python floats."""
    weights = [p.tolist() for p in head.parameters()]
    hidden = [max(0.0, sum(a * b for a, b in zip(row, feature, strict=True)) + bias)
              for row, bias in zip(weights[0], weights[1], strict=True)]  # fmt: skip
    out = [sum(a * b for a, b in zip(row, hidden, strict=True)) + bias
           for row, bias in zip(weights[2], weights[3], strict=True)]  # fmt: skip
    length = math.sqrt(sum(v * v for v in out))
    return [v / length for v in out]


def slow_contrast(queries: list[list[float]], keys: list[list[float]], temperature: float, n: int) -> float:
    rows = []
    for i, query in enumerate(queries):
        cosines = [sum(a * b for a, b in zip(query, key, strict=True)) / temperature for key in keys]
        rows.append(math.log(sum(math.exp(c) for c in cosines)) - cosines[i])
    return sum(rows[:n]) / n + (sum(rows[n:]) / (len(rows) - n) if len(rows) > n else 0.0)


def begin(problem: Problem, term: Contrast = TERM) -> tuple[Objective, list[Any]]:
    objective = Objective(((1.0, term),))
    return objective, objective.init(problem, 5, "test")


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_equals_its_definition(kept: int, make_problem: MakeProblem) -> None:
    problem = make_problem()
    objective, states = begin(problem)
    state: State = states[0]
    d = len(slow_features(problem.teacher.module, images(1))[0])
    state.bank = torch.randn(kept, 2, d, generator=torch.Generator().manual_seed(1))
    stream, x = copy.deepcopy(state.stream), images()
    with objective.watching(problem) as look:
        found = objective(states, look(x.clone().requires_grad_(True), None))
    rng = stream.advance()
    local = resized(rng, 0.25, True)(x)
    drawn = torch.randperm(kept, generator=rng)[:3].tolist()
    pairs = [(a, b) for a, b in zip(*(slow_features(problem.teacher.module, v) for v in (local, x)), strict=True)]
    pairs += [(state.bank[i, 0].tolist(), state.bank[i, 1].tolist()) for i in drawn]
    queries, keys = ([slow_head(state.head, pair[side]) for pair in pairs] for side in (0, 1))
    assert len(queries) == 4 + min(kept, 3)
    assert found.item() == pytest.approx(slow_contrast(queries, keys, 0.2, 4), rel=1e-4)


def test_only_the_local_view_is_moved_and_the_head_by_it(make_problem: MakeProblem) -> None:
    problem = make_problem()
    objective, states = begin(problem)
    shown, local = images().requires_grad_(True), images(seed=8).requires_grad_(True)
    with objective.watching(problem) as look:
        loss = objective(states, look(shown, None, local))
    loss.backward()
    assert shown.grad is None
    moved = [local.grad, *(p.grad for p in states[0].head.parameters())]
    assert all(grad is not None and grad.abs().max() > 0.0 for grad in moved)


def test_the_head_learns_beside_the_images_and_goes_on(make_problem: MakeProblem) -> None:
    problem = make_problem()
    objective, states = begin(problem, Contrast(bank=0, projection=8, learning_rate=0.01))
    shades = torch.linspace(0, 1, 16).reshape(16, 1, 1, 1) * images(16)  # sixteen that can be told apart
    losses = []
    with objective.watching(problem) as look:
        for _ in range(60):
            loss = objective(states, look(shades.clone().requires_grad_(True), None))
            loss.backward()
            objective.after_step(states)
            losses.append(loss.item())
            assert all(p.grad is None for p in states[0].head.parameters())
        objective.end_round(states, look(images(), None))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert states[0].optimiser.state[next(states[0].head.parameters())]["step"] == 60
    assert len(states[0].bank) == 0


def test_the_bank_keeps_the_newest_images_features(make_problem: MakeProblem) -> None:
    problem = make_problem()
    objective, states = begin(problem)
    kept = [images(4, seed) for seed in (1, 2, 3)]
    with objective.watching(problem) as look, torch.no_grad():
        for x in kept:
            objective.end_round(states, look(identity(x), None, x))
    bank = states[0].bank
    expected = torch.tensor(slow_features(problem.teacher.module, torch.cat(kept)))[-10:]
    torch.testing.assert_close(bank[:, 1], expected)  # ten rows at most, the oldest two are gone
    assert not torch.equal(bank[:, 0], bank[:, 1])
    assert not bank.requires_grad


def test_settings_it_refuses() -> None:
    for settings, message in (
        ({"temperature": 0.0}, "temperature: expected a number > 0, found 0.0"),
        ({"bank": -1}, "bank: expected an integer >= 0, found -1"),
        ({"projection": 0}, "projection: expected an integer >= 1, found 0"),
        ({"least_area": 1.5}, r"least_area: expected a number in \(0, 1\], found 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Contrast(**settings)
