"""MosaicKD: both objectives by hand, one step of each for five draws, and rows of the set that the user names."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dfkd.interfaces import is_data_free, sources
from dfkd.problem import Problem
from dfkd.rng import derive
from samplers import MosaicKD
from samplers.state import State

from .by_hand import CLOSE, moved_alike

MakeProblem = Callable[..., Problem]

SMALL: dict[str, Any] = {"limit": 40, "latent": 6, "width": "small", "batch": 12, "critic": 4}
PLAIN: dict[str, Any] = {**SMALL, "crop": 0, "flip": False}


def weights(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.parameters()]


def moved(before: list[Tensor], module: nn.Module) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


def critic(state: State) -> nn.Module:
    found: nn.Module = state.generator.terms[0].critic
    return found


def rows(images: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in images}


def test_its_numbers_are_the_published_ones() -> None:
    published = MosaicKD("digits")
    assert (published.latent, published.width, published.batch) == (100, "large", 256)
    assert (published.student_steps, published.share, published.learning_rate) == (5, 0.5, 1e-3)
    assert (published.adversarial, published.entropy, published.patches) == (1.0, 1.0, 1.0)
    assert published.balance == pytest.approx(10 / math.log(2), rel=1e-3)  # of logarithms of base 2
    assert published.preset.batch == 256 + 256
    assert published.preset.steps == 5 * 200 * (50_000 // 256)


@pytest.mark.usefixtures("doubles")
def test_steps_of_both_are_those_of_a_loop_by_hand(make_problem: MakeProblem) -> None:
    """METHODS 3.14: the critic's step, then the generator's, each by its own Adam along a cosine of the run."""
    problem, other = make_problem(), make_problem()
    teacher, student = other.teacher.module.eval(), other.student.module.eval()
    sampler = MosaicKD("digits", **PLAIN, student_steps=1, balance=10 / math.log(2))
    state, own, origin = (sampler.init(problem, 1) for _ in range(3))
    network, judge, shown = own.generator.generator.train(), critic(own).train(), own.shown
    adams = [
        torch.optim.Adam(net.requires_grad_(True).parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (network, judge)
    ]
    bce, zeros = functional.binary_cross_entropy_with_logits, torch.zeros(12, 2, 2)
    for draw, progress in enumerate((0.0, 0.3, 0.5, 0.6)):
        for adam in adams:
            adam.param_groups[0]["lr"] = 1e-3 * 0.5 * (1.0 + math.cos(math.pi * progress))
        x = network(
            torch.randn(12, 6, generator=torch.Generator().manual_seed(derive(own.generator.stream.seed, draw + 1)))
        )
        real = shown.images.pixels(shown.advance(12), problem.spec)
        fake = bce(judge(x.detach()), zeros, reduction="sum")
        adams[1].zero_grad()
        ((fake + bce(judge(real), zeros + 1, reduction="sum")) / 24).backward()
        adams[1].step()
        t, s = teacher(x), student(x)
        p = t.softmax(dim=1)
        mean = p.mean(dim=0)
        slow = bce(judge(x), zeros + 1, reduction="sum") / 12
        slow = slow - functional.kl_div(s.log_softmax(dim=1), p, reduction="batchmean")
        slow = slow - (p * p.log()).sum(dim=1).mean() + 10.0 * (mean * mean.log2()).sum()
        adams[0].zero_grad()
        slow.backward()
        adams[0].step()
        problem.progress = progress
        loss = sampler.draw(state, problem, 4).info["generator_loss"]
        assert loss.item() == pytest.approx(slow.item(), rel=CLOSE)
    for found, slowly, first in (
        (state.generator.generator, network, origin.generator.generator),
        (critic(state), judge, critic(origin)),
    ):
        moved_alike(*(net.parameters() for net in (found, slowly, first)))


def test_one_step_of_both_for_five_draws(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), MosaicKD("digits", **SMALL)
    state = sampler.init(problem, 1)
    for draw in range(12):
        before = weights(state.generator.generator), weights(critic(state))
        batch = sampler.draw(state, problem, 3)
        assert moved(before[0], state.generator.generator) == (draw % 5 == 0), draw
        assert moved(before[1], critic(state)) == (draw % 5 == 0), draw
        assert ("generator_loss" in batch.info) == (draw % 5 == 0)
        assert state.shown.drawn == 12 * (draw // 5 + 1)
        for optimiser in (state.generator.optimiser, state.generator.terms[0].optimiser):
            assert {int(entry["step"]) for entry in optimiser.state.values()} == {draw // 5 + 1}


def test_both_rates_fall_with_the_run(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), MosaicKD("digits", **SMALL, student_steps=1)
    state = sampler.init(problem, 1)
    lengths = []
    for problem.progress in (0.0, 0.5, 1.0):
        state = sampler.init(problem, 1)
        before = weights(state.generator.generator), weights(critic(state))
        sampler.draw(state, problem, 3)
        after = weights(state.generator.generator), weights(critic(state))
        lengths.append([(a[0] - b[0]).abs().mean().item() for a, b in zip(before, after, strict=True)])
    for first, half, last in zip(*lengths, strict=True):
        assert half == pytest.approx(0.5 * first, rel=1e-2)
        assert last == 0.0 < first


def test_half_of_the_rows_are_the_named_sets(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), MosaicKD("digits", **PLAIN)
    state = sampler.init(problem, 1)
    known = rows(state.elsewhere.place.images.pixels(torch.arange(40), problem.spec))
    for n, taken in ((8, {4}), (7, {3, 4}), (1, {0, 1})):
        seen = set()
        for _ in range(10):
            batch = sampler.draw(state, problem, n)
            assert batch.source is not None
            assert batch.y is None  # its labels are of other classes
            assert rows(batch.x[batch.source == 1]) <= known
            assert not rows(batch.x[batch.source == 0]) & known
            seen.add(int(batch.source.sum()))
        assert seen == taken


def test_the_named_sets_rows_are_cropped_and_mirrored(make_problem: MakeProblem) -> None:
    problem = make_problem()
    plain, changed = (MosaicKD("digits", **SMALL | given) for given in (PLAIN, {"crop": 1, "flip": True}))
    a, b = (sampler.draw(sampler.init(problem, 1), problem, 20).x for sampler in (plain, changed))
    assert torch.equal(a[:10], b[:10])
    assert not torch.equal(a[10:], b[10:])


def test_keeps_those_the_teacher_is_least_sure_of(make_problem: MakeProblem) -> None:
    problem = make_problem()
    whole = MosaicKD("digits", **PLAIN).init(problem, 1).elsewhere.place.images
    few = MosaicKD("digits", **PLAIN, keep=12).init(problem, 1)
    x = whole.pixels(torch.arange(40), problem.spec)
    with torch.no_grad():
        p = problem.teacher(x).logits.softmax(dim=1)
    order = [-sum(q * math.log(q) for q in row if q > 0) for row in p.tolist()]
    best = sorted(range(40), key=lambda place: -order[place])[:12]
    for place in (few.elsewhere.place, few.shown):  # the critic is shown the same
        assert rows(place.images.pixels(torch.arange(12), problem.spec)) == rows(x[best])


def test_says_what_it_reads() -> None:
    sampler = MosaicKD("digits")
    assert not is_data_free(sampler)
    assert sources(sampler) == ["digits"]


def test_a_folder_of_pictures(tmp_path: Path, make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match=r"^mosaic_kd: data: expected images .*, found none"):
        MosaicKD(str(tmp_path), **SMALL).init(make_problem(), 1)
    pixels = np.random.default_rng(1).integers(0, 256, (15, 20, 3, 14), dtype=np.uint8)
    for place in range(14):
        Image.fromarray(pixels[..., place]).save(tmp_path / f"{place}.png")
    problem, sampler = make_problem(shape=(3, 8, 8)), MosaicKD(str(tmp_path), **SMALL)
    assert sampler.draw(sampler.init(problem, 1), problem, 4).x.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": ""}, "data: expected the name of a data set or a path, found ''"),
        ({"keep": 0}, "keep: expected an integer >= 1, found 0"),
        ({"share": -0.1}, r"share: expected a number in \[0, 1\], found -0.1"),
        ({"patches": 0.0}, "patches: expected a number > 0, found 0.0"),
        ({"width": "wide"}, "width: expected one of small, large, found 'wide'"),
        ({"batch": 1}, "batch: expected an integer >= 2, found 1"),
        ({"flip": 1}, "flip: expected true or false, found 1"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MosaicKD(**({"data": "digits"} | given))


def test_a_batch_too_small_for_the_classes(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match="mosaic_kd: batch: expected at least 10 rows"):
        MosaicKD("digits", **SMALL | {"batch": 9}).init(make_problem(), 1)
