"""CMI: rounds against a loop written by hand, what one begins anew and what it carries on, the published numbers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dfkd.interfaces import preset_of
from dfkd.losses import KL
from dfkd.problem import Problem, UnsupportedProblem
from samplers import CMI, Augmented, Pooled
from samplers.ingredients import Rounds
from samplers.state import State

from .by_hand import (
    CLOSE,
    Watched,
    crops_of_its_bank,
    enlarged,
    masked_kl,
    mirrored,
    moved_alike,
    near,
    same_rounds,
    window,
)

MakeProblem = Callable[..., Problem]

TINY = CMI(steps=3, latent=6, batch=8, every=2, features=20, negatives=5, projection=4)
STEPS, RATE = 6, 3e-3


def test_defaults_are_the_published_numbers() -> None:
    sampler = CMI()
    assert (sampler.batchnorm, sampler.one_hot, sampler.adversarial, sampler.contrast) == (1.0, 1.0, 0.5, 0.8)
    assert (sampler.temperature, sampler.features, sampler.negatives, sampler.projection) == (0.1, 40960, 4096, 256)
    assert (sampler.steps, sampler.batch, sampler.latent, sampler.width, sampler.every) == (200, 256, 256, "small", 400)
    assert (sampler.learning_rate, sampler.capacity, sampler.crop, sampler.flip) == (1e-3, None, None, True)
    preset = preset_of(sampler)
    assert preset is not None
    assert preset.objective == {"kl": (1.0, KL(temperature=20.0))}
    assert (preset.batch, preset.optimiser["learning_rate"], preset.steps) == (128, 0.1, 80_000)


# -- a round -----------------------------------------------------------------------------------------------------


def contrast(head: nn.Sequential, local: Tensor, shown: Tensor, remembered: Tensor) -> Tensor:
    """METHODS 3.7: which global view belongs to each local one, at temperature 0.1; keys give no gradient.

    local, shown: (n, d) features. remembered: (m, 2, d). A mean over the images and one over remembered rows.
    """
    local, shown = torch.cat([local, remembered[:, 0]]), torch.cat([shown, remembered[:, 1]])
    queries, keys = (out / (out**2).sum(1, keepdim=True).sqrt() for out in (head(local), head(shown)))
    scores = queries @ keys.detach().T / 0.1
    rows = torch.logsumexp(scores, dim=1) - scores.diagonal()
    n = len(rows) - len(remembered)
    total: Tensor = rows[:n].mean()
    return total + rows[n:].mean() if len(remembered) else total


def begun_anew(network: nn.Module, rng: torch.Generator) -> None:
    """All weights N(0, 0.02^2), those of BatchNorm N(1, 0.02^2), biases 0, no statistics."""
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
                part.weight.normal_(1.0 if isinstance(part, nn.BatchNorm2d) else 0.0, 0.02, generator=rng)
                if part.bias is not None:
                    part.bias.zero_()
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()


def by_hand(problem: Problem, state: State, rngs: list[torch.Generator]) -> tuple[list[Any], Tensor]:
    """Rounds after METHODS' words, and the features remembered; the network and the head of the state are moved.

    In each a new network, Adam on it and on z, the head's own Adam all along, the best step's images.
    """
    teacher, student = Watched(problem.teacher.module), problem.student.module.eval()
    network, head, stream = state.generator.train(), state.terms[3].head.layers, state.terms[3].stream
    heads = torch.optim.Adam(head.parameters(), lr=RATE)
    bank, kept = torch.empty(0, 2, 12), []
    for rng in rngs:
        begun_anew(network, rng)
        z = torch.randn(8, 6, generator=rng).requires_grad_()
        y = torch.randint(10, (8,), generator=rng)
        adam = torch.optim.Adam([*network.parameters(), z], lr=RATE, betas=(0.5, 0.999))
        best = (float("inf"), torch.empty(0))
        for _ in range(STEPS):
            x = network(z)
            seen = mirrored(window(x, rng, 2), rng)
            t, moments = teacher(seen)
            loss = teacher.distance(moments) + cross_entropy(t, y) - 0.5 * masked_kl(t, student(seen))
            coins = stream.advance()
            local = mirrored(enlarged(x, coins, 0.25), coins)
            remembered = bank[torch.randperm(len(bank), generator=coins)[:5]]
            loss = loss + 0.8 * contrast(head, teacher.features(local), teacher.features(seen), remembered)
            if loss.item() < best[0]:
                best = (loss.item(), x.detach().clone())
            adam.zero_grad()
            heads.zero_grad()
            loss.backward()
            adam.step()
            heads.step()
        with torch.no_grad():
            seen, coins = mirrored(window(best[1], rng, 2), rng), stream.advance()
            local = mirrored(enlarged(best[1], coins, 0.25), coins)
            new = torch.stack([teacher.features(local), teacher.features(seen)], dim=1)
        bank = torch.cat([bank, new])[-20:]
        kept.append((best[1], y, best[0]))
    return kept, bank


@pytest.mark.usefixtures("doubles")
def test_rounds_are_those_of_a_loop_by_hand(make_problem: MakeProblem) -> None:
    """Three rounds, so that the features remembered are more than are drawn and, in the end, more than are kept."""
    problem, other = near(make_problem), near(make_problem)
    sampler = replace(TINY, steps=STEPS, learning_rate=RATE, crop=2, flip=True)
    state, own, origin = (sampler.begin(problem, 4) for _ in range(3))
    found = [sampler.round(state, problem, torch.Generator().manual_seed(12 + turn)) for turn in range(3)]
    expected, bank = by_hand(other, own, [torch.Generator().manual_seed(12 + turn) for turn in range(3)])
    same_rounds(found, expected)
    torch.testing.assert_close(state.terms[3].bank, bank, rtol=0.0, atol=CLOSE)
    moved_alike(*(part.terms[3].head.parameters() for part in (state, own, origin)))


def test_draws_are_crops_of_the_bank(make_problem: MakeProblem) -> None:
    crops_of_its_bank(replace(TINY, crop=2, flip=True), make_problem())
    whole = CMI()
    assert whole.bank == Augmented(Pooled(Rounds(whole), round=256, every=400, warmup=1, capacity=None), flip=True)


def test_a_round_begins_anew_but_for_the_head_and_the_features(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), replace(TINY, learning_rate=1e-12)  # nothing moves but what is drawn anew
    state = sampler.begin(problem, 1)
    head = [p.detach().clone() for p in state.terms[3].head.parameters()]
    rng, generators, kept = torch.Generator().manual_seed(2), [], []
    for index in range(3):
        sampler.round(state, problem, rng)
        generators.append({name: p.detach().clone() for name, p in state.generator.named_parameters()})
        kept.append(state.terms[3].bank)
        assert len(kept[-1]) == min(8 * (index + 1), 20)
    for one, two in pairwise(generators):
        for name, p in one.items():
            if name.endswith("bias"):
                assert p.abs().max() < 1e-9
            else:
                assert (p - two[name]).abs().max() > 0.01, name
                assert p.std().item() == pytest.approx(0.02, rel=0.3), name
    torch.testing.assert_close(head, [p.detach() for p in state.terms[3].head.parameters()])
    assert torch.equal(kept[1][:8], kept[0])  # what is remembered stays, until it is the oldest
    assert torch.equal(kept[2][:12], kept[1][4:])
    assert state.terms[3].optimiser.state_dict()["state"][0]["step"] == 9  # the head's Adam is the same all along


def test_rounds_and_draws_keep_the_published_ratio(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = TINY.init(problem, 1)
    before = problem.teacher.counts["synthesise"]["forward"]
    assert before == 1  # how long the features are
    for draw in range(5):
        TINY.draw(state, problem, 4)
        rounds, teacher = 1 + draw // 2, problem.teacher.counts["synthesise"]
        # two views at each of three steps, and of the images kept
        assert (teacher["forward"], teacher["backward"]) == (1 + rounds * (3 * 2 + 2) * 8, rounds * 3 * 2 * 8)
        assert problem.student.counts["synthesise"]["forward"] == rounds * 3 * 8
        assert len(state.base.images) == rounds * 8


def test_what_it_refuses(make_problem: MakeProblem) -> None:
    for settings, message in (
        ({"steps": 0}, "steps: expected an integer >= 1, found 0"),
        ({"contrast": -1.0}, "contrast: expected a number >= 0, found -1.0"),
        ({"temperature": 0.0}, "temperature: expected a number > 0, found 0.0"),
        ({"capacity": 7}, "capacity: expected an integer >= 256, found 7"),
    ):
        with pytest.raises(ValueError, match=message):
            CMI(**settings)
    with pytest.raises(ValueError, match="one_hot: expected at least one weight above 0, found none"):
        CMI(batchnorm=0.0, one_hot=0.0, adversarial=0.0, contrast=0.0)
    flat = make_problem(teacher=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, spec.num_classes)))
    with pytest.raises(UnsupportedProblem, match="cmi: needs a teacher with batchnorm; this teacher has logits"):
        TINY.init(flat, 1)
