"""SpaceshipNet: the exchange row by row, one round for so many draws, one set of latents, an Adam for each round."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import derive
from dfkd.types import InputSpec
from generators.depths import image_from, maps_of
from samplers import SpaceshipNet
from samplers.spaceshipnet import exchanged
from samplers.state import State

from .by_hand import CLOSE, Watched, mirrored, moved_alike, window

MakeProblem = Callable[..., Problem]

SMALL: dict[str, Any] = {"latent": 6, "batch": 10, "steps": 2, "crop": 0, "flip": False}


def weights(state: State) -> list[Tensor]:
    return [value.detach().clone() for value in state.generator.parameters()]


def generator_of(state: State) -> torch.Generator:
    """The one of the next draw."""
    return torch.Generator().manual_seed(derive(state.stream.seed, state.stream.step + 1))


def test_its_numbers_are_the_published_ones() -> None:
    published = SpaceshipNet()
    assert (published.latent, published.steps, published.batch, published.every) == (256, 200, 256, 2000)
    assert (published.learning_rate, published.exchange) == (1e-3, 0.7)
    assert (published.one_hot, published.batchnorm) == (0.5, 1.0)
    assert published.preset.steps == 200 * 2000


# -- the exchange --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "channels"), [(6, 8), (5, 7), (1, 4)])
def test_half_of_the_channels_are_the_partners(n: int, channels: int) -> None:
    maps = (torch.arange(n)[:, None, None, None] + torch.zeros(n, channels, 2, 3)).float()
    mixed = exchanged(maps, torch.Generator().manual_seed(1))
    assert mixed.shape == maps.shape
    for row in range(n):
        partner, own = n - 1 - row, 0
        for channel in range(channels):
            (value,) = set(mixed[row, channel].flatten().tolist())  # a channel is taken as a whole
            assert value in (row, partner)
            own += value == row
        assert partner == row or own == channels // 2


def test_each_row_has_a_half_of_its_own() -> None:
    maps = torch.arange(64)[:, None, None, None].expand(64, 16, 1, 1).float()
    own = exchanged(maps, torch.Generator().manual_seed(1)).flatten(1) == maps.flatten(1)
    assert len({tuple(row) for row in own.tolist()}) > 60
    # 64 rows, each channel its own in half of them: more than 5 standard deviations (4) off with probability 6e-7
    assert ((own.sum(dim=0) - 32).abs() < 20).all()


def test_the_whole_draw_is_mixed_or_none(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SpaceshipNet(**SMALL)
    state = sampler.init(problem, 1)
    mixed = 0
    for _ in range(200):
        batch = sampler.draw(state, problem, 4)
        assert batch.target is not None
        assert len(set((batch.target < 0).tolist())) == 1
        mixed += int(batch.target[0] < 0)
    # mean 140, standard deviation 6.5: more than 5 of them off with probability 6e-7
    assert abs(mixed - 140) < 33


# -- draws ---------------------------------------------------------------------------------------------------------


def test_unmixed_rows_are_finished_by_the_generator_as_it_is_now(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SpaceshipNet(**SMALL, exchange=0.0, every=3)
    state = sampler.init(problem, 1)
    for _ in range(7):
        batch = sampler.draw(state, problem, 6)
        with torch.no_grad():
            finished = [image_from(state.generator, state.maps[depth].float(), depth) for depth in range(3)]
        assert batch.target is not None
        matches = []
        for depth in range(3):
            gaps = (batch.x[:, None] - finished[depth][None]).abs().amax(dim=(2, 3, 4))  # (6, rows of the bank)
            matches.append(bool((gaps.min(dim=1).values < 1e-5).all()))
            if matches[-1]:
                assert torch.equal(state.classes[gaps.argmin(dim=1)], batch.target)
                assert len(set(gaps.argmin(dim=1).tolist())) == 6  # none twice
        assert any(matches)


def test_a_draw_has_one_depth_and_all_depths_come(make_problem: MakeProblem) -> None:
    """With two depths' maps gone, draws of the third are all that is still finite."""
    problem, sampler = make_problem(), SpaceshipNet(**SMALL)
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 4)
    for depth in range(3):
        broken = copy.deepcopy(state)
        broken.maps = [torch.full_like(part, torch.nan) for part in state.maps]
        broken.maps[depth] = state.maps[depth]
        whole = [torch.isfinite(sampler.draw(broken, problem, 4).x).flatten(1).all(dim=1).tolist() for _ in range(60)]
        assert {len(set(rows)) for rows in whole} == {1}
        # a third of 60: mean 20, standard deviation 3.7; at most 1 has probability 1e-9
        assert 1 < sum(rows[0] for rows in whole) < 45


def test_what_is_not_learnt_from_is_no_row_of_the_bank(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SpaceshipNet(**SMALL, exchange=0.0)
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 4)
    batch = sampler.draw(state, problem, 6, learn=False)
    assert batch.target is not None
    assert (batch.target == -1).all()
    with torch.no_grad():
        for depth in range(3):
            finished = image_from(state.generator, state.maps[depth].float(), depth)
            assert (batch.x[:, None] - finished[None]).abs().amax(dim=(2, 3, 4)).min() > 1e-4


# -- rounds --------------------------------------------------------------------------------------------------------


def test_a_round_for_so_many_draws_and_what_it_keeps(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SpaceshipNet(**SMALL, every=3, capacity=25)
    state, classes = sampler.init(problem, 1), torch.empty(0, dtype=torch.int64)
    for draw in range(10):
        before = weights(state)
        batch = sampler.draw(state, problem, 4)
        due = draw % 3 == 0
        assert any(not torch.equal(a, b) for a, b in zip(before, weights(state), strict=True)) == due
        assert ("loss" in batch.info) == due
        assert state.rounds == draw // 3 + 1
        if due:
            added = state.classes[-10:]
            assert sorted(added.tolist()) == list(range(10))  # every class equally often
            classes = torch.cat([classes, added])[-25:]
        assert torch.equal(state.classes, classes)
        assert {(len(maps), maps.dtype) for maps in state.maps} == {(min(25, 10 * state.rounds), torch.float16)}
    assert problem.teacher.counts["synthesise"]["backward"] == 4 * 2 * 10
    assert problem.student.images == 0


def slow_loss(problem: Problem, x: Tensor, target: Tensor, one_hot: float) -> float:
    """The weighted cross-entropy and the BatchNorm distance, from what the layers are given."""
    net, given = problem.teacher.module.eval(), []
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    hooks = [part.register_forward_pre_hook(lambda _, args: given.append(args[0])) for part in norms]
    with torch.no_grad():
        log_p = net(x).log_softmax(dim=1)
    for hook in hooks:
        hook.remove()
    loss: float = -one_hot * sum(log_p[row, y].item() for row, y in enumerate(target.tolist())) / len(x)
    for part, layer in zip(norms, given, strict=True):
        assert part.running_mean is not None
        assert part.running_var is not None
        mean = layer.mean(dim=(0, 2, 3))
        var = ((layer - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
        loss += math.sqrt(((mean - part.running_mean) ** 2).sum().item())
        loss += math.sqrt(((var - part.running_var) ** 2).sum().item())
    return loss


def test_a_round_has_one_set_of_latents_and_keeps_the_best_steps_maps(make_problem: MakeProblem) -> None:
    """Where the rate is far too large the first step is the best; its maps are kept, not those of the last."""
    problem = make_problem()
    sampler = SpaceshipNet(**SMALL | {"steps": 6}, learning_rate=30.0, one_hot=0.0)
    state = sampler.init(problem, 1)
    z = torch.randn(10, 6, generator=generator_of(state))
    with torch.no_grad():
        maps, x = maps_of(copy.deepcopy(state.generator).train(), z)
    batch = sampler.draw(state, problem, 4)
    for kept, made in zip(state.maps, maps, strict=True):
        torch.testing.assert_close(kept.float(), made, atol=2e-3, rtol=2e-3)  # half precision
    assert batch.info["loss"].item() == pytest.approx(slow_loss(problem, x, state.classes, one_hot=0.0), rel=1e-4)


def test_a_round_descends_the_published_sum(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SpaceshipNet(**SMALL | {"steps": 1})
    state = sampler.init(problem, 1)
    z = torch.randn(10, 6, generator=generator_of(state))
    with torch.no_grad():
        x = copy.deepcopy(state.generator).train()(z)
    loss = sampler.draw(state, problem, 4).info["loss"]
    assert loss.item() == pytest.approx(slow_loss(problem, x, state.classes, one_hot=0.5), rel=1e-4)


@pytest.mark.usefixtures("doubles")
def test_rounds_are_those_of_a_loop_by_hand(make_problem: MakeProblem) -> None:
    """METHODS 3.13: a new Adam on the old network, one set of latents, crops and mirrored ones for the teacher."""
    problem, other = make_problem(), make_problem()
    sampler = SpaceshipNet(**SMALL | {"steps": 3, "crop": 2, "flip": True}, every=1)
    state, own, origin = (sampler.init(problem, 1) for _ in range(3))
    teacher, network = Watched(other.teacher.module), own.generator
    for turn in range(2):
        rng = torch.Generator().manual_seed(derive(own.stream.seed, turn + 1))
        z, y = torch.randn(10, 6, generator=rng), torch.randperm(10, generator=rng)
        adam = torch.optim.Adam(network.train().parameters(), lr=1e-3, betas=(0.5, 0.999))
        least, maps = float("inf"), list[Tensor]()
        for _ in range(3):
            now, x = maps_of(network, z)
            logits, moments = teacher(mirrored(window(x, rng, 2), rng))
            loss = teacher.distance(moments) + 0.5 * cross_entropy(logits, y)
            if loss.item() < least:
                least, maps = loss.item(), [part.detach().clone() for part in now]
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert sampler.draw(state, problem, 4).info["loss"].item() == pytest.approx(least, rel=CLOSE)
        for kept, made in zip(state.maps, maps, strict=True):
            torch.testing.assert_close(kept[-10:].float(), made, atol=2e-3, rtol=2e-3)  # half precision
        assert torch.equal(state.classes[-10:], y)
    moved_alike(*(part.generator.parameters() for part in (state, own, origin)))


def test_latents_stay_while_the_generator_moves(make_problem: MakeProblem) -> None:
    """With a rate of next to nothing all steps see the same loss, which new latents would not."""
    problem, losses = make_problem(), []
    for steps in (1, 7):
        sampler = SpaceshipNet(**SMALL | {"steps": steps}, learning_rate=1e-12)
        losses.append(sampler.draw(sampler.init(problem, 1), problem, 4).info["loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_every_round_has_a_new_adam_and_the_old_generator(make_problem: MakeProblem) -> None:
    """The first step of an Adam is as long as its rate for every weight; a later one is not."""
    problem, sampler = make_problem(), SpaceshipNet(**SMALL | {"steps": 1}, every=1)
    state = sampler.init(problem, 1)
    for _ in range(3):
        before = state.generator.head.weight.detach().clone()
        sampler.draw(state, problem, 2)
        step = (state.generator.head.weight - before).abs()
        torch.testing.assert_close(step, torch.full_like(step, 1e-3), rtol=0.02, atol=0.0)


def test_rounds_lower_the_objective(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SpaceshipNet(**SMALL | {"steps": 15}, every=1)
    state = sampler.init(problem, 1)
    losses = [sampler.draw(state, problem, 2).info["loss"].item() for _ in range(3)]
    assert losses[2] < losses[0] - 0.1


def test_views_are_cropped_for_the_teacher_and_for_the_student(make_problem: MakeProblem) -> None:
    problem = make_problem()
    plain, moved = (SpaceshipNet(**SMALL | given) for given in ({}, {"crop": 2, "flip": True}))
    one, other = (sampler.init(problem, 1) for sampler in (plain, moved))
    first, second = plain.draw(one, problem, 4), moved.draw(other, problem, 4)
    assert first.info["loss"] != second.info["loss"]
    assert not torch.equal(first.x, second.x)


# -- what it refuses -----------------------------------------------------------------------------------------------


def test_a_generator_that_diverges_ends_the_run(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), SpaceshipNet(**SMALL)
    state = sampler.init(problem, 1)
    with torch.no_grad():
        state.generator.stem.weight.fill_(torch.nan)
    assert bool(sampler.draw(state, problem, 4).x.isnan().all())


def test_a_search_without_a_finite_loss_gives_nothing(make_problem: MakeProblem) -> None:
    """Not the maps that it began with, which are finite."""
    problem, sampler = make_problem(), SpaceshipNet(**SMALL | {"batchnorm": 3e38})
    state = sampler.init(problem, 1)
    assert bool(sampler.draw(state, problem, 4).x.isnan().all())


def test_a_teacher_without_batchnorm(make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="spaceshipnet: needs a teacher with batchnorm"):
        SpaceshipNet(**SMALL).init(problem, 1)
    sampler = SpaceshipNet(**SMALL, batchnorm=0.0)
    assert len(sampler.draw(sampler.init(problem, 1), problem, 3)) == 3


def test_a_batch_too_small_for_the_classes(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match="batch: expected at least 10 rows, one for each class, found 9; fast_dfkd"):
        SpaceshipNet(**SMALL | {"batch": 9}).init(make_problem(), 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"exchange": 1.5}, r"exchange: expected a number in \[0, 1\], found 1.5"),
        ({"capacity": 100}, "capacity: expected an integer >= 256, found 100"),
        ({"every": 0}, "every: expected an integer >= 1, found 0"),
        ({"one_hot": 0, "batchnorm": 0}, "one_hot: expected it or batchnorm above 0"),
        ({"crop": -1}, "crop: expected an integer >= 0, found -1"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SpaceshipNet(**given)
