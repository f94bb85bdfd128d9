"""PRE-DFKD: the generator's objective by hand, who learns at which draw, and what is remembered."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import derive
from dfkd.types import InputSpec
from generators.trunk import Trunk
from samplers import PreDFKD
from samplers.state import State

from .by_hand import CLOSE

MakeProblem = Callable[..., Problem]

SMALL: dict[str, Any] = {"latent": 6, "batch": 12, "learning_rate": 1e-3, "memory_new": 5, "memory_old": 3}


def weights(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def moved(before: list[Tensor], module: nn.Module) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


def steps(optimiser: torch.optim.Optimizer) -> int:
    """How many an optimiser has taken, of all its parameters alike."""
    taken = {int(entry["step"]) for entry in optimiser.state.values()}
    assert len(taken) <= 1
    return taken.pop() if taken else 0


def test_its_numbers_are_the_published_ones() -> None:
    published = PreDFKD()
    assert (published.latent, published.batch, published.student_steps) == (1000, 1024, 10)
    assert (published.learning_rate, published.memory_rate, published.recall_rate) == (0.02, 0.02 / 40, 0.02)
    assert (published.memory_steps, published.memory_new, published.memory_old) == (4, 512, 128)
    assert published.balance == pytest.approx(5 / 2.302585, rel=1e-3)  # of logarithms of base 10
    assert {published.rows(1152, offset) for offset in (0.0, 0.5, 0.999)} == {128}
    assert published.preset.batch == 1024 + 128
    assert published.preset.steps == 36 * 10 * 400


def slow_objective(problem: Problem, features: nn.Module, x: Tensor) -> Tensor:
    """As the authors compute it: logarithms of base 10, and a clamped JS whose arguments are swapped."""
    t, s = problem.teacher.module(x), problem.student.module(x)
    p = t.softmax(dim=1).mean(dim=0)
    loss: Tensor = functional.cross_entropy(t, t.argmax(dim=1)) + 5.0 * (p * torch.log10(p)).sum()
    loss = loss - 0.1 * features(x).abs().mean()
    one, two = (logits.div(3.0).softmax(dim=1) for logits in (t, s))
    mean = (0.5 * (one + two)).clamp(0.01, 0.99)
    js = sum(0.5 * functional.kl_div(q.clamp(0.01, 0.99).log(), mean, reduction="none").mean() for q in (one, two))
    assert isinstance(js, Tensor)
    return loss - js.clamp(0.0, 1.0)  # theirs is larger by 1 throughout


@pytest.mark.usefixtures("doubles")
def test_the_generators_steps_are_those_of_a_loop_by_hand(make_problem: MakeProblem) -> None:
    """METHODS 3.10: one Adam as torch has it, over a trunk of METHODS 2 with an eps of 0.8 in its two inner layers."""
    problem, other, rate = make_problem(), make_problem(), 3e-3
    alone: dict[str, Any] = {"student_steps": 1, "memory_steps": 0, "remembered": 0.0}
    sampler = PreDFKD(**SMALL | alone | {"learning_rate": rate, "balance": 5 / math.log(10)})
    state, own = (sampler.init(problem, 1).generator for _ in range(2))
    whole = State(**sampler.init(problem, 1).__dict__ | {"generator": state})
    network = Trunk((1, 8, 8), 6, "small", batchnorm_eps=0.8, head="tanh_batchnorm", biases=True, spectral_norm=True)
    network.load_state_dict(own.generator.state_dict())
    teacher: Any = other.teacher.module.eval()
    other.student.module.eval()
    adam = torch.optim.Adam(network.train().parameters(), lr=rate)
    for draw in range(5):
        found = sampler.draw(whole, problem, 4).info["generator_loss"].item()
        rng = torch.Generator().manual_seed(derive(own.stream.seed, draw + 1))
        loss = slow_objective(other, teacher.body, network(torch.randn(12, 6, generator=rng)))
        assert found == pytest.approx(loss.item(), rel=CLOSE)
        adam.zero_grad()
        loss.backward()
        adam.step()
    nets = (state.generator, network, own.generator)
    for (name, a), b, c in zip(nets[0].named_parameters(), *(net.parameters() for net in nets[1:]), strict=True):
        if name not in ("body.2.bias", "body.6.bias"):  # before a BatchNorm, with a slope of rounding alone
            assert (a - b).abs().mean() < CLOSE * (b - c).abs().mean(), name


def test_who_learns_at_which_draw(make_problem: MakeProblem) -> None:
    """One step of the generator, then ten draws, after the first four of which the memory learns. Nothing is reset."""
    problem, sampler = make_problem(), PreDFKD(**SMALL)
    state = sampler.init(problem, 1)
    for draw in range(22):
        generator, memory = weights(state.generator.generator), weights(state.memory.network)
        batch = sampler.draw(state, problem, 4)
        assert moved(generator, state.generator.generator) == (draw % 10 == 0), draw
        assert moved(memory, state.memory.network) == (draw % 10 < 4), draw
        assert ("memory_loss" in batch.info) == (draw % 10 < 4)
        assert steps(state.generator.optimiser) == draw // 10 + 1
        assert steps(state.memory.optimiser) == 4 * (draw // 10) + min(4, draw % 10 + 1)


def test_what_the_teacher_is_asked(make_problem: MakeProblem) -> None:
    """Generator 12; a recalled row once; memory: its images and what it makes of them, without old ones at first."""
    problem, sampler = make_problem(), PreDFKD(**SMALL, remembered=0.5, student_steps=2, memory_steps=1)
    state = sampler.init(problem, 1)
    for draw in range(4):
        before = dict(problem.teacher.counts["synthesise"])
        sampler.draw(state, problem, 8)
        asked = {way: count - before[way] for way, count in problem.teacher.counts["synthesise"].items()}
        learns, new = draw % 2 == 0, 5 + (3 if draw >= 2 else 0)
        forward = 4 + (12 + 2 * new + (new - 5) if learns else 0)
        backward = 4 + (12 + new + (new - 5) if learns else 0)
        assert asked == {"forward": forward, "backward": backward}, draw


def test_the_share_of_what_is_remembered(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), PreDFKD(**SMALL, remembered=0.25, memory_steps=0)
    state = sampler.init(problem, 1)
    for n, old in ((8, {2}), (4, {1}), (6, {1, 2}), (1, {0, 1})):
        seen = set()
        for _ in range(12):
            batch = sampler.draw(state, problem, n)
            assert batch.source is not None
            assert torch.equal(batch.source, batch.source.sort().values)
            seen.add(int(batch.source.sum()))
        assert seen == old


def test_rows_are_from_the_network_that_source_names(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), PreDFKD(**SMALL, remembered=0.5, memory_steps=0)
    one, other = (sampler.init(problem, 1) for _ in range(2))
    with torch.no_grad():
        other.memory.network.decoder.head.weight += 0.05
    a, b = (sampler.draw(state, problem, 8).x for state in (one, other))
    assert torch.equal(a[:4], b[:4])
    assert not torch.allclose(a[4:], b[4:], atol=1e-4)


def test_new_and_remembered_images_have_the_mean_and_the_deviation_named(make_problem: MakeProblem) -> None:
    """At the start, when the stored statistics of both last layers are 0 and 1, for what comes out of tanh."""
    problem = make_problem(low=-1.0, high=3.0)
    sampler = PreDFKD(**SMALL, remembered=0.5, memory_steps=0, mean=0.4, std=0.02)
    state = sampler.init(problem, 1)
    for network in (state.generator.generator, state.memory.network.decoder):
        out = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        expected = -1.0 + 4.0 * (0.4 + 0.02 * torch.tanh(out) / (1.0 + 1e-5) ** 0.5)
        torch.testing.assert_close(network.pixels(out), expected)


def test_no_gradient_is_left_anywhere(make_problem: MakeProblem) -> None:
    """In the published code the step of the latents leaves its gradient in the memory."""
    problem, sampler = make_problem(), PreDFKD(**SMALL, remembered=0.5)
    state = sampler.init(problem, 1)
    for _ in range(12):
        sampler.draw(state, problem, 4)
        assert all(p.grad is None for p in state.memory.network.parameters())


def loss_of(state: State, problem: Problem, sampler: PreDFKD) -> float:
    z = torch.randn(64, sampler.latent, generator=torch.Generator().manual_seed(9))
    with torch.no_grad(), sampler.objective.watching(problem) as look:
        return sampler.objective([None] * 4, look(state.generator.generator(z), None)).item()


def test_the_generator_learns(make_problem: MakeProblem) -> None:
    problem = make_problem()
    sampler = PreDFKD(**(SMALL | {"learning_rate": 0.01}), student_steps=1, memory_steps=0)
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 2)
    before = loss_of(state, problem, sampler)
    for _ in range(25):
        sampler.draw(state, problem, 2)
    assert loss_of(state, problem, sampler) < before - 0.2


def test_a_teacher_without_penultimate_features(
    make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]
) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="pre_dfkd: needs a teacher with penultimate"):
        PreDFKD(**SMALL).init(problem, 1)
    sampler = PreDFKD(**SMALL, activation=0.0)
    assert len(sampler.draw(sampler.init(problem, 1), problem, 3)) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"remembered": 1.1}, r"remembered: expected a number in \[0, 1\], found 1.1"),
        ({"memory_new": 1}, "memory_new: expected an integer >= 2, found 1"),
        ({"recall_rate": 0.0}, "recall_rate: expected a number > 0, found 0.0"),
        ({"latent": 0}, "latent: expected an integer >= 1, found 0"),
        ({"one_hot": 0, "balance": 0, "activation": 0, "adversarial": 0}, "one_hot: expected at least one weight"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PreDFKD(**given)


def test_a_batch_too_small_for_the_classes(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match="pre_dfkd: batch: expected at least 10 rows"):
        PreDFKD(batch=9).init(make_problem(), 1)
