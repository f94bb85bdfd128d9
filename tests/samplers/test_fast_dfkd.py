"""FastDFKD: a round against a loop written by hand, the published numbers, what is drawn anew and when."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from dfkd.interfaces import preset_of
from dfkd.losses import KL
from dfkd.problem import Problem, UnsupportedProblem
from generators.trunk import Trunk
from samplers import Augmented, FastDFKD, Pooled
from samplers.ingredients import MetaStep, Rounds
from samplers.state import State

from .by_hand import (
    Watched,
    crops_of_its_bank,
    detached,
    fast_loss,
    mirrored,
    mixed,
    moved_alike,
    near,
    same_rounds,
    window,
)

MakeProblem = Callable[..., Problem]

TINY = FastDFKD(latent=6, batch=8, steps=2, warmup=1, every=3, crop=0, flip=False)


def test_defaults_are_the_published_numbers() -> None:
    sampler = FastDFKD()
    assert (sampler.batch, sampler.latent, sampler.width, sampler.every, sampler.warmup) == (256, 256, "small", 400, 20)
    assert (sampler.batchnorm, sampler.momentum, sampler.one_hot, sampler.adversarial) == (10.0, 0.9, 0.5, 1.33)
    assert (sampler.redraw_at, sampler.capacity, sampler.crop, sampler.flip) == (140, None, None, True)
    rates = {steps: FastDFKD(steps=steps).rates for steps in (1, 2, 5, 10, 50)}
    assert rates[2] == pytest.approx((5e-3, 0.015, 0.01))
    assert rates[5] == pytest.approx((3e-3, 0.01, 0.015))
    assert rates[10] == pytest.approx((2e-3, 0.01, 0.02))
    assert rates[1] == pytest.approx((5e-3, 0.015, 0.005))
    assert rates[50] == pytest.approx((2e-3, 0.01, 0.1))
    assert FastDFKD(generator_rate=1.0, latent_rate=2.0, meta_rate=3.0).rates == (1.0, 2.0, 3.0)
    preset = preset_of(sampler)
    assert preset is not None
    assert preset.objective == {"kl": (1.0, KL(temperature=20.0))}
    assert (preset.batch, preset.steps, preset.optimiser["learning_rate"]) == (256, 400 * 200, 0.2)


# -- a round -----------------------------------------------------------------------------------------------------


def by_hand(problem: Problem, network: nn.Module, rngs: list[torch.Generator], meta: str, pad: int) -> list[Any]:
    """Rounds after METHODS' words: clone, Adam on clone and z, summed gradients or 67 times the way back, best kept.

    A generator of random numbers for each round.
    """
    teacher, student = Watched(problem.teacher.module), problem.student.module.eval()
    start = torch.optim.Adam(network.parameters(), lr=2 * 1e-3, betas=(0.5, 0.999))
    past: Any = None
    kept = []
    for index, rng in enumerate(rngs):
        clone = Trunk((1, 8, 8), 6, "small")
        clone.load_state_dict(network.state_dict())
        clone.train()
        z = torch.randn(8, 6, generator=rng).requires_grad_()
        y = torch.randint(10, (8,), generator=rng)
        groups: list[dict[str, Any]] = [{"params": clone.parameters()}, {"params": [z], "lr": 0.003}]
        inner = torch.optim.Adam(groups, 1e-3, (0.5, 0.999))
        start.zero_grad()
        sums = [torch.zeros_like(p) for p in clone.parameters()]
        best = (float("inf"), torch.empty(0))
        for _ in range(2):
            x = clone(z)
            seen = mirrored(window(x, rng, pad), rng) if pad else x
            t, moments = teacher(seen)
            s = student(seen) if index >= 1 else None  # one round of warm-up
            loss = fast_loss(teacher, t, s, y, moments, past)
            if loss.item() < best[0]:
                best = (loss.item(), x.detach().clone())
            inner.zero_grad()
            loss.backward()
            for total, p in zip(sums, clone.parameters(), strict=True):
                assert p.grad is not None
                total += p.grad
            inner.step()
        past = mixed(detached(moments), past)
        for p, total, end in zip(network.parameters(), sums, clone.parameters(), strict=True):
            p.grad = total if meta == "fomaml" else 67 * (p.detach() - end.detach())
        start.step()
        kept.append((best[1], y, best[0]))
    return kept


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("meta", get_args(MetaStep))
def test_rounds_are_those_of_a_loop_by_hand(meta: MetaStep, pad: int, make_problem: MakeProblem) -> None:
    problem, other = near(make_problem), near(make_problem)
    sampler = replace(TINY, meta=meta, crop=pad, flip=pad > 0)
    sampler = replace(sampler, generator_rate=1e-3, latent_rate=3e-3)
    state = sampler.begin(problem, 4)
    network = sampler.begin(problem, 4).start.network  # equal, and not the same
    found = [sampler.round(state, problem, torch.Generator().manual_seed(12 + turn)) for turn in range(3)]
    expected = by_hand(other, network, [torch.Generator().manual_seed(12 + turn) for turn in range(3)], meta, pad)
    same_rounds(found, expected)
    origin = sampler.begin(problem, 4).start.network
    moved_alike(*(net.parameters() for net in (state.start.network, network, origin)))


def test_draws_are_crops_of_the_bank(make_problem: MakeProblem) -> None:
    crops_of_its_bank(replace(TINY, crop=2, flip=True), make_problem())
    whole = FastDFKD()
    assert whole.bank == Augmented(Pooled(Rounds(whole), round=256, every=400, warmup=21, capacity=None), flip=True)


def test_rounds_and_draws_keep_the_published_ratio(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), replace(TINY, warmup=2, crop=1, flip=True)
    state = sampler.init(problem, 1)
    asked = []
    for _ in range(7):
        sampler.draw(state, problem, 5)
        counts = [probe.counts["synthesise"] for probe in (problem.teacher, problem.student)]
        asked.append(tuple(c[way] for c in counts for way in ("forward", "backward")))
    a_round = 2 * 8  # steps times images
    # two rounds of warm-up without the student, then one with it before every third draw
    rounds = [1, 1, 1, 2, 2, 2, 3]
    assert asked == [((2 + r) * a_round, (2 + r) * a_round, r * a_round, r * a_round) for r in rounds]
    assert len(state.base.images) == 5 * 8


def test_the_first_layer_is_drawn_anew_once(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), replace(TINY, redraw_at=2, warmup=0)
    state = sampler.begin(problem, 1)
    stds = []
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in state.start.network.named_parameters()}
        sampler.round(state, problem, torch.Generator().manual_seed(3))
        moved = {name: (p - before[name]).abs().max().item() for name, p in state.start.network.named_parameters()}
        stds.append((before["stem.weight"].std().item(), state.start.network.stem.weight.std().item(), moved))
    most = 2.0 * sampler.rates[2]  # how far one step of Adam goes, its moments being of other rounds too
    assert stds[0][1] > 0.1  # torch's own start: uniform up to 1 / sqrt(6)
    assert stds[1][1] < 0.05  # N(0, 0.02^2) and one step
    assert stds[1][2]["stem.weight"] > 0.2
    first = ("stem.weight", "stem.bias", "body.0.weight")
    assert all(change < most for name, change in stds[1][2].items() if name not in first)
    assert all(change < most for change in stds[2][2].values())


def test_what_is_kept_stays_as_it_was(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = TINY.begin(problem, 1)
    rng = torch.Generator().manual_seed(3)
    first = TINY.round(state, problem, rng)
    copy = first.x.clone()
    for _ in range(2):
        TINY.round(state, problem, rng)
    assert torch.equal(first.x, copy)
    assert not first.x.requires_grad


def test_settings_it_refuses(make_problem: MakeProblem) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "steps: expected an integer >= 1, found 0"),
        ({"batch": 1}, "batch: expected an integer >= 2, found 1"),
        ({"meta": "maml"}, "meta: expected one of fomaml, reptile, found 'maml'"),
        ({"generator_rate": 0.0}, "generator_rate: expected a number > 0, found 0.0"),
        ({"redraw_at": 0}, "redraw_at: expected an integer >= 1, found 0"),
        ({"one_hot": 0.0, "batchnorm": 0.0}, "one_hot: expected it or batchnorm above 0"),
        ({"capacity": 5}, "capacity: expected an integer >= 256, found 5"),
        ({"momentum": 1.0}, "momentum: expected a number in"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            FastDFKD(**settings)
    problem = make_problem(teacher=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, spec.num_classes)))
    with pytest.raises(UnsupportedProblem, match="fast_dfkd: needs a teacher with batchnorm; this teacher has logits"):
        TINY.init(problem, 1)
    plain: State = replace(TINY, batchnorm=0.0).init(problem, 1)  # without that term it asks for nothing special
    assert plain.rounds == 0
    with pytest.raises(ValueError, match=r"shape: expected .* sides 8, 12, 16"):
        TINY.init(make_problem(shape=(1, 10, 10)), 1)
