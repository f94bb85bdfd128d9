"""The memory: recalling moves latents alone, learning is the published sum, and neither leaks into the other."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfkd.problem import Problem
from samplers.ingredients.memory import Memory, normality
from samplers.state import State

MakeProblem = Callable[..., Problem]

MEMORY = Memory(latent=6)
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def rng(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def portrait(state: State) -> list[Tensor]:
    return [value.clone() for value in state.network.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def trained(problem: Problem, steps: int = 3) -> State:
    state: State = MEMORY.init(problem, 1)
    for step in range(steps):
        MEMORY.learn(state, problem, X, rng(step))
    return state


def slow_recall(problem: Problem, state: State, n: int) -> Tensor:
    """One Adam step of rate 0.02 on z alone: its first step is the rate times the gradient over its absolute value."""
    z = torch.randn(n, 6, generator=rng()).requires_grad_(True)
    logits = problem.teacher.module(state.network.decoder(z))
    p = logits.softmax(dim=1).mean(dim=0)
    loss = functional.cross_entropy(logits, logits.argmax(dim=1)) + 5.0 * (p * torch.log10(p)).sum()
    loss = loss + functional.mse_loss(z.var(dim=0), torch.ones(6)) + functional.mse_loss(z.mean(dim=0), torch.zeros(6))
    (slope,) = torch.autograd.grad(loss, z)
    with torch.no_grad():
        recalled: Tensor = state.network.decoder(z - 0.02 * slope / (slope.abs() + 1e-8))
    return recalled


def test_recalls_after_one_step_of_the_latents(make_problem: MakeProblem) -> None:
    problem = make_problem()
    problem.teacher.module.eval()
    state = trained(problem)
    torch.testing.assert_close(
        MEMORY.recall(state, problem, 8, rng()), slow_recall(problem, state, 8), rtol=0.0, atol=1e-4
    )


def test_only_the_latents_have_gradients(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = trained(problem)
    before, optimiser = portrait(state), str(state.optimiser.state_dict())
    MEMORY.recall(state, problem, 8, rng())
    assert same(before, portrait(state))
    assert str(state.optimiser.state_dict()) == optimiser
    for module in (state.network, problem.teacher.module, problem.student.module):
        assert all(p.grad is None for p in module.parameters())


def test_what_it_learns_does_not_depend_on_what_was_recalled_before(make_problem: MakeProblem) -> None:
    """The published code adds the gradient of the latents' step to that of the network."""
    problem = make_problem()
    one, other = trained(problem), trained(problem)
    MEMORY.recall(other, problem, 8, rng())
    for state in (one, other):
        MEMORY.learn(state, problem, X, rng(9))
    assert same(portrait(one), portrait(other))


def test_one_row_is_recalled_as_well(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = trained(problem)
    x = MEMORY.recall(state, problem, 1, rng())
    assert x.shape == (1, 1, 8, 8)
    assert torch.isfinite(x).all()


def test_learns_by_the_published_sum(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = trained(problem)
    network = copy.deepcopy(state.network).train()
    problem.teacher.module.eval()
    noise = torch.randn(6, 6, generator=rng(9))
    mean, log_var = network.encoder(X)
    again = network.decoder(mean + noise * torch.exp(0.5 * log_var))
    # theirs are normalised images: one unit is a quarter of the box
    slow = functional.l1_loss(4.0 * again, 4.0 * X)
    slow = slow + functional.l1_loss(problem.teacher.module(again), problem.teacher.module(X))
    slow = slow + 1e-5 * torch.mean(-0.5 * torch.sum(1 + log_var - mean**2 - log_var.exp(), dim=1))
    assert MEMORY.learn(state, problem, X, rng(9)).item() == pytest.approx(slow.item(), rel=1e-4)


def test_learning_moves_it_towards_the_images(make_problem: MakeProblem) -> None:
    problem = make_problem()
    memory = Memory(latent=6, learning_rate=5e-3)
    state = memory.init(problem, 1)
    losses = [memory.learn(state, problem, X, rng(step)).item() for step in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not any(part.training for part in state.network.modules())
    assert all(p.grad is None for p in problem.teacher.module.parameters())


def test_counts_what_it_asks(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = MEMORY.init(problem, 1)
    MEMORY.learn(state, problem, X, rng())
    assert problem.teacher.counts["synthesise"] == {"forward": 12, "backward": 6}
    MEMORY.recall(state, problem, 5, rng())
    assert problem.teacher.counts["synthesise"] == {"forward": 17, "backward": 11}
    assert problem.student.images == 0


def test_normality_is_zero_for_a_standard_batch() -> None:
    z = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2**0.5  # mean 0, unbiased variance 1
    assert normality(z).item() == pytest.approx(0.0, abs=1e-6)
    assert normality(z + 2.0).item() == pytest.approx(4.0)
    assert normality(2.0 * z).item() == pytest.approx(9.0)


def test_names_the_wrong_setting() -> None:
    with pytest.raises(ValueError, match="latent: expected an integer >= 1, found 0"):
        Memory(latent=0)
    with pytest.raises(ValueError, match="recall_rate: expected a number > 0, found 0"):
        Memory(recall_rate=0)
