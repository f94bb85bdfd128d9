"""Inversion does its job on a teacher trained on real digits: classes hit, BatchNorm distance down, student apart.

As published it is the loop written by hand.
"""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dfkd.config import dump
from dfkd.interfaces import preset_of
from dfkd.losses import KL
from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.rng import initialised
from dfkd.types import InputSpec
from samplers.deep_inversion import DeepInversion
from samplers.ingredients import batchnorm_distance, noise_start
from samplers.pooled import Pooled

from .by_hand import CLOSE, Watched

MakeProblem = Callable[..., Problem]

SPEC = InputSpec((1, 8, 8), 10)


def net(seed: int) -> nn.Module:
    with initialised(seed):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 16, 10),
        )


@pytest.fixture(scope="module")
def digits() -> tuple[Problem, Tensor]:
    """A teacher of 8x8 digits, and the images it was trained on."""
    bunch = load_digits()
    x, y = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16, torch.tensor(bunch.target)
    teacher = net(1)
    optimiser = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    rng = torch.Generator().manual_seed(1)
    for _ in range(150):
        rows = torch.randint(len(x), (128,), generator=rng)
        optimiser.zero_grad()
        cross_entropy(teacher(x[rows]), y[rows]).backward()
        optimiser.step()
    with torch.no_grad():
        right = (teacher.eval()(x).argmax(dim=1) == y).float().mean()
    assert right > 0.97
    problem = Problem(Probe(teacher, SPEC), Probe(net(2), SPEC, name="student"), SPEC, torch.device("cpu"))
    return problem, x


def judged(problem: Problem, x: Tensor) -> tuple[Tensor, float]:
    """The teacher's answers and the distance of its BatchNorm statistics."""
    with torch.no_grad(), problem.teacher.batchnorm_inputs() as layers:
        logits = problem.teacher(x).logits
        return logits, batchnorm_distance(layers).item()


@pytest.mark.parametrize("roll", [0.0, 0.125])
def test_hits_its_targets_and_lowers_the_batchnorm_distance(digits: tuple[Problem, Tensor], roll: float) -> None:
    problem, real = digits
    sampler = DeepInversion(steps=60, batch=128, roll=roll)
    batch = sampler.draw(sampler.init(problem, 3), problem, 128)
    assert batch.target is not None
    logits, distance = judged(problem, batch.x)
    _, of_noise = judged(problem, noise_start(problem, 128, torch.Generator().manual_seed(3)))
    _, of_data = judged(problem, real[:128])
    hit = (logits.argmax(dim=1) == batch.target).float().mean().item()
    assert hit > (0.98 if roll == 0.0 else 0.7)  # a roll asks for images that keep their class when they are moved
    assert distance < (0.1 if roll == 0.0 else 0.4) * of_noise
    assert of_data < 0.2 * of_noise  # what the distance should be brought down to


def test_each_part_of_the_objective_pulls(digits: tuple[Problem, Tensor]) -> None:
    problem, _ = digits

    def made(**changed: Any) -> Tensor:
        sampler = DeepInversion(**{"steps": 30, "batch": 40, "roll": 0.0, **changed})
        return sampler.draw(sampler.init(problem, 3), problem, 40).x

    plain = made()
    assert judged(problem, plain)[1] < 0.5 * judged(problem, made(batchnorm=0.0))[1]
    rough, smooth = ((x[..., 1:] - x[..., :-1]).abs().mean() for x in (plain, made(total_variation=5.0)))
    assert smooth < 0.8 * rough
    loud, quiet = ((x - 0.5).square().mean() for x in (plain, made(l2=5.0)))
    assert quiet < 0.7 * loud

    def gap(x: Tensor) -> Tensor:
        with torch.no_grad():
            p, q = ((probe(x).logits / 3).softmax(dim=1) for probe in (problem.teacher, problem.student))
        return (p - q).abs().sum(dim=1).mean()

    assert gap(made(adaptive=20.0, one_hot=0.0)) > 1.1 * gap(made(one_hot=0.0))


def test_fewer_rows_than_classes_aim_at_all_of_them_in_turn(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(num_classes=10), DeepInversion(steps=1, batch=3)
    state, seen = sampler.init(problem, 0), set()
    for _ in range(40):
        target = sampler.draw(state, problem, 3).target
        assert target is not None
        assert len(set(target.tolist())) == 3
        seen |= set(target.tolist())
    assert seen == set(range(10))  # one is missed with probability below 10 (0.7)^40 = 6e-6


def test_classes_are_balanced_and_in_no_order(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(num_classes=4), DeepInversion(steps=1, batch=10)
    state = sampler.init(problem, 0)
    target = sampler.draw(state, problem, 20).target
    assert target is not None
    assert target.dtype == torch.int64
    for half in target.split(10):
        assert sorted(half.bincount(minlength=4).tolist()) == [2, 2, 3, 3]
    # were they in order, a draw of one row would always aim at class 0
    firsts = {int(sampler.draw(state, problem, 1).target[0]) for _ in range(40)}  # type: ignore[index]
    assert firsts == {0, 1, 2, 3}  # one is missed with probability below 4 (0.8)^40 = 5e-4; the seed is fixed


def test_a_draw_is_cut_from_whole_batches(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), DeepInversion(steps=3, batch=8)
    many = sampler.draw(sampler.init(problem, 0), problem, 11)
    before = problem.teacher.counts["synthesise"]["forward"]
    one = sampler.draw(sampler.init(problem, 0), problem, 1)
    assert many.x.shape == (11, 1, 8, 8)
    assert torch.equal(one.x, many.x[:1])
    assert problem.teacher.counts["synthesise"]["forward"] - before == 3 * 8 + 256  # and the noise `auto` asks about


def test_keeps_the_best_images_not_the_last(make_problem: MakeProblem) -> None:
    """At an absurd learning rate the loss rises; the images kept are those of its least value, not the live ones."""
    problem = make_problem()
    sampler = DeepInversion(steps=12, batch=8, learning_rate=3.0, batchnorm=0.0)
    batch = sampler.draw(sampler.init(problem, 0), problem, 8)
    with torch.no_grad():
        loss = cross_entropy(problem.teacher(batch.x).logits, batch.target)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, batch.info["loss"])


def test_starts_from_noise_and_moves_by_the_learning_rate(make_problem: MakeProblem) -> None:
    """Adam's first step moves each pixel by the rate at most; two steps keep the images after one."""
    problem = make_problem(low=-1.0, high=3.0)
    first, second = (
        DeepInversion(steps=steps, batch=8, learning_rate=0.01).draw(
            DeepInversion(steps=steps, batch=8).init(problem, 0), problem, 8
        )
        for steps in (1, 2)
    )
    moved = (second.x - first.x).abs().max().item()
    assert 0.0 < moved <= 0.01 * 4.0 * 1.0001


# -- as published ------------------------------------------------------------------------------------------------------


def test_published_settings_are_the_published_numbers_in_our_units() -> None:
    """Theirs are of pixels whose standard deviation is 1, and of a norm over the whole batch."""
    cifar10, imagenet = DeepInversion.cifar10(), DeepInversion.imagenet()
    assert (cifar10.steps, cifar10.batch, cifar10.learning_rate) == (2000, 256, 0.05 / 4)
    assert (cifar10.batchnorm, cifar10.first_layer, cifar10.l2, cifar10.flip) == (10.0, 1.0, 0.0, False)
    assert cifar10.total_variation == pytest.approx(2.5e-5 * 4 * math.sqrt(256), rel=0.01)
    assert int(cifar10.roll * 32) == 2
    assert (imagenet.steps, imagenet.batch, imagenet.learning_rate) == (20_000, 152, 0.2 / 4)
    assert (imagenet.batchnorm, imagenet.first_layer, imagenet.flip) == (0.01, 10.0, True)
    assert imagenet.total_variation == pytest.approx(1e-4 * 4 * math.sqrt(152), rel=0.01)
    assert imagenet.l2 == pytest.approx(1e-5 * 4)
    assert (int(imagenet.roll * 224), int(imagenet.roll * 112)) == (30, 15)
    assert (cifar10.schedule, imagenet.schedule) == ("constant", "cosine")
    assert DeepInversion.imagenet_adaptive() == replace(imagenet, adaptive=0.2)
    for published in (cifar10, imagenet):
        assert (published.betas, published.clip) == ((0.9, 0.999), False)
        assert (published.one_hot, published.variation, published.adaptive) == (1.0, "l2", 0.0)


def test_a_bank_of_it_is_by_default_that_of_the_comparison_of_cmi() -> None:
    """A round of 256 images for 400 steps of the student, of which all are kept."""
    bank = Pooled(DeepInversion.cifar10())
    assert (bank.round, bank.every, bank.warmup, bank.capacity) == (256, 400, 1, None)


def test_its_preset_is_the_published_one() -> None:
    preset = preset_of(Pooled(DeepInversion()))
    assert preset is not None
    assert preset.objective == {"kl": (1.0, KL(temperature=3.0))}
    assert preset.optimiser == {"learning_rate": 0.1, "schedule": "steps", "milestones": (0.4, 0.8)}  # 100, 200 of 250
    assert (preset.batch, preset.steps) == (256, 250 * 195)


@dataclass(frozen=True)
class Published:
    """A published search in the authors' units, with priors that count as much as the BatchNorm term, so that none of
    them could be missed. shift: the largest roll, in pixels of 16. first: what the first BatchNorm layer counts. rate:
    what is left of it where a share of the steps is done."""

    ours: DeepInversion
    first: float
    pixels: float
    shift: int
    flip: bool
    rate: Callable[[float], float]


def cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


SEARCHES = {"cifar10": Published(DeepInversion.cifar10(), 1.0, 0.0, 1, False, lambda done: 1.0)}
SEARCHES["imagenet"] = Published(replace(DeepInversion.imagenet(), l2=4 * 0.1), 10.0, 0.1, 2, True, cosine)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("name", SEARCHES)
def test_published_searches_are_the_loop_by_hand(name: str, make_problem: MakeProblem) -> None:
    """In their units: noise of one deviation that is never clipped, Adam as torch has it, a whole-batch variation.

    Two batches, one after the other: the second starts from noise of its own, with an Adam of its own.
    """
    known, problem, other = SEARCHES[name], make_problem(shape=(1, 16, 16)), make_problem(shape=(1, 16, 16))
    sampler = replace(known.ours, steps=4, batch=8, learning_rate=0.5 / 4, batchnorm=1.0, adaptive=5.0)
    sampler = replace(sampler, total_variation=0.05 * 4 * math.sqrt(8))
    state, rng, coins = sampler.init(problem, 1), torch.Generator().manual_seed(2), random.Random(5)
    found = [sampler._invert(state, problem, rng, coins) for _ in range(2)]

    teacher, student = Watched(other.teacher.module), other.student.module.eval()
    rng, coins, tossed = torch.Generator().manual_seed(2), random.Random(5), set()
    for images, y, loss in found:
        x = torch.randn(8, 1, 16, 16, generator=rng).requires_grad_(True)
        assert ((0.5 + x / 4) < 0).any()
        assert torch.equal(y, torch.randperm(10, generator=rng)[:8])
        # ours is 1e-8 of a slope by pixels between 0 and 1, which is 4 times one by theirs
        adam, seen = torch.optim.Adam([x], lr=0.5, eps=1e-8 / 4), list[tuple[float, Tensor]]()
        for at in range(4):
            adam.param_groups[0]["lr"] = 0.5 * (known.rate(at / 4))
            down, right = coins.randint(-known.shift, known.shift), coins.randint(-known.shift, known.shift)
            shown = x[:, :, [(i - down) % 16 for i in range(16)]][..., [(i - right) % 16 for i in range(16)]]
            if known.flip:
                tossed.add(backwards := coins.random() < 0.5)
                shown = shown[..., list(range(15, -1, -1))] if backwards else shown
            logits, moments = teacher(0.5 + shown / 4)
            by_hand = cross_entropy(logits, y) + teacher.distance(moments, known.first)
            right_of, below = shown[..., 1:] - shown[..., :-1], shown[..., 1:, :] - shown[..., :-1, :]
            falling, rising = shown[..., 1:, 1:] - shown[..., :-1, :-1], shown[..., 1:, :-1] - shown[..., :-1, 1:]
            by_hand = by_hand + 0.05 * sum(part.norm() for part in (right_of, below, falling, rising))
            by_hand = by_hand + known.pixels * sum((image**2).sum().sqrt() for image in shown) / 8
            p, q = ((z / 3.0).softmax(dim=1) for z in (logits, student(0.5 + shown / 4)))
            m = 0.5 * (p + q)
            js = 0.5 * (p * (p / m).log()).sum(1) + 0.5 * (q * (q / m).log()).sum(1)
            by_hand = by_hand - 5.0 * js.mean()
            seen.append((by_hand.item(), x.detach().clone()))
            (x.grad,) = torch.autograd.grad(by_hand, x)
            adam.step()
        least, best = min(seen, key=lambda one: one[0])
        assert least < seen[0][0]
        assert loss.item() == pytest.approx(least, rel=CLOSE)
        torch.testing.assert_close(images, (0.5 + best / 4).clamp(0.0, 1.0), rtol=0.0, atol=CLOSE)
    assert tossed == ({True, False} if known.flip else set())


def test_a_batch_is_made_when_it_is_due_and_starts_anew(make_problem: MakeProblem) -> None:
    """Before every third draw; with one step what is kept is the noise it started from, no pixel of the last round."""
    problem = make_problem()
    sampler = Pooled(DeepInversion(steps=1, batch=8, batchnorm=1.0, roll=0.0), round=8, every=3)
    state = sampler.init(problem, 1)
    for draw in range(7):
        stream = copy.deepcopy(state.base.stream)
        sampler.draw(state, problem, 4)
        rounds = 1 + draw // 3
        assert (len(state.images), problem.teacher.counts["synthesise"]["forward"]) == (8 * rounds, 8 * rounds)
        if draw % 3 == 0:
            noise = (0.5 + 0.25 * torch.randn(8, 1, 8, 8, generator=stream.advance())).clamp(0.0, 1.0)
            torch.testing.assert_close(state.images[-8:].float() / 255, noise, rtol=0.0, atol=0.51 / 255)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_rate_and_betas_are_those_given(schedule: Any, make_problem: MakeProblem, monkeypatch: Any) -> None:
    rates, betas, step = [], [], torch.optim.Adam.step

    def spied(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        betas.append(self.param_groups[0]["betas"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", spied)
    problem = make_problem()
    sampler = DeepInversion(steps=4, batch=8, learning_rate=0.2, betas=(0.3, 0.7), schedule=schedule)
    sampler.draw(sampler.init(problem, 0), problem, 8)
    fall = [1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * at / 4)) for at in range(4)]
    assert rates == pytest.approx([0.2 * factor for factor in fall])
    assert betas == [(0.3, 0.7)] * 4


def test_what_is_not_clipped_on_the_way_is_in_the_box_in_the_end(make_problem: MakeProblem) -> None:
    problem = make_problem(low=-1.0, high=3.0)
    loose, tight = (DeepInversion(steps=6, batch=8, learning_rate=0.3, clip=clip) for clip in (False, True))
    for sampler in (loose, tight):
        x = sampler.draw(sampler.init(problem, 0), problem, 8).x
        assert (x.min().item(), x.max().item()) == (-1.0, 3.0)
    assert not torch.equal(loose.draw(loose.init(problem, 0), problem, 8).x, x)


def test_what_is_as_before_is_named_as_before() -> None:
    """Banks draw by the name, and folders that were begun go on by the settings."""
    said = "DeepInversion(steps=7, batch=256, learning_rate=0.1, batchnorm='auto', first_layer=1.0, one_hot=1.0, "
    said += "total_variation=0.0, variation='l1', l2=0.0, roll=0.125, flip=False, adaptive=0.0, labelling='eval'"
    assert repr(DeepInversion(steps=7)) == f"{said})"
    assert repr(DeepInversion(steps=7, clip=False)) == f"{said}, clip=False)"
    (options,) = dump(DeepInversion(betas=(0.9, 0.99))).values()
    assert options["betas"] == [0.9, 0.99]
    assert not {"schedule", "clip"} & set(options)


def test_no_hook_and_no_change_is_left(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), DeepInversion(steps=2, batch=8, adaptive=1.0)
    probes = (problem.teacher, problem.student)
    before = [{k: v.clone() for k, v in probe.module.state_dict().items()} for probe in probes]
    sampler.draw(sampler.init(problem, 0), problem, 4)
    for probe, state in zip(probes, before, strict=True):
        assert all(torch.equal(state[key], value) for key, value in probe.module.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in probe.module.parameters())
        assert not any(part._forward_pre_hooks or part._forward_hooks for part in probe.module.modules())


def test_asks_the_student_in_the_adaptive_form_only(make_problem: MakeProblem) -> None:
    for adaptive in (0.0, 1.0):
        problem, sampler = make_problem(), DeepInversion(steps=2, batch=8, adaptive=adaptive)
        assert sampler.uses_student == bool(adaptive)
        sampler.draw(sampler.init(problem, 0), problem, 4)
        assert problem.student.counts["synthesise"]["forward"] == 2 * 8 * bool(adaptive)


def test_a_teacher_without_batchnorm(make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="deep_inversion: needs a teacher with batchnorm"):
        DeepInversion().init(problem, 0)
    sampler = DeepInversion(batchnorm=0.0, steps=100, learning_rate=0.1, batch=40)
    batch = sampler.draw(sampler.init(problem, 0), problem, 40)
    with torch.no_grad():
        logits = problem.teacher(batch.x).logits
    assert batch.target is not None
    assert (logits.argmax(dim=1) == batch.target).float().mean() > 0.95


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps: expected an integer >= 1, found 0"),
        ({"batch": 2.5}, "batch: expected an integer >= 1, found 2.5"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0"),
        ({"batchnorm": "aut"}, "batchnorm: expected .*'auto'.*, found 'aut'"),
        ({"batchnorm": -1.0}, "batchnorm: expected .*, found -1.0"),
        ({"roll": 0.6}, r"roll: expected a number in \[0, 0.5\], found 0.6"),
        ({"flip": 0.5}, "flip: expected true or false, found 0.5"),
        ({"variation": "l3"}, "variation: expected one of l1, l2"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
        ({"betas": (0.9, 1.0)}, r"betas: expected two numbers in \[0, 1\), found \(0.9, 1.0\)"),
        ({"betas": 0.9}, r"betas: expected two numbers in \[0, 1\), found 0.9"),
        ({"schedule": "steps"}, "schedule: expected one of cosine, constant, found 'steps'"),
        ({"clip": 1.0}, "clip: expected true or false, found 1.0"),
        ({"one_hot": 0.0, "batchnorm": 0.0}, "one_hot: expected at least one weight above 0"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DeepInversion(**given)


def test_a_search_without_a_finite_loss_has_found_nothing(make_problem: MakeProblem) -> None:
    """Not the noise that it began with: a bank that is given it ends the run."""
    sampler, problem = DeepInversion(steps=2, batch=8, one_hot=1e39), make_problem()
    batch = sampler.draw(sampler.init(problem, 0), problem, 8)
    assert bool(batch.x.isnan().all())
