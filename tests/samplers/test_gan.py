"""GAN: draws from what was trained before, even over classes and steered where the answer is known; what it refuses."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.claim import what_is_read
from dfkd.data import fingerprint
from dfkd.interfaces import is_data_free, sources
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import Batch, InputSpec
from generators.sn_gan_training import SNGAN, load
from samplers import GAN, Adversarial, Mixture, Uniform
from samplers.ingredients import batchnorm_distance, disagreement
from samplers.state import State

MakeProblem = Callable[..., Problem]
Brightness = Callable[[InputSpec], nn.Module]

SETTINGS = SNGAN(latent=4, width=8, critic_width=4)
BIAS = -0.4
"""Dark images are more often than bright ones."""


def saved(folder: Path, classes: int | None = None, **changed: Any) -> str:
    """A generator whose images are known: of one brightness each, (1 + tanh(z_0 + BIAS)) / 2; of class 0 darker by 2 in
    the tanh's argument, and of class 1 brighter."""
    shape = (1, 8, 8)
    trainee = SETTINGS.init(shape, classes, (0.0, 1.0), 1, torch.device("cpu"), 1)
    network: Any = trainee.average.network
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            if name.endswith("affine.weight"):
                parameter[:, :8] = 1.0  # scales of the classes, before their shifts
        planes = network.stem.weight.view(8, 16, 4)
        planes[0, :, 0], planes[1, :, 0] = 1.0, -1.0  # one is z_0 after the ReLU, the other minus it
        centre = network.head.weight[0, :, 1, 1]
        centre[:4] = torch.tensor([1.0, -1.0, -2.0, 2.0])
        network.head.bias.fill_(BIAS)
        if classes is not None:
            network.norm.affine.weight[0, 8 + 2] = network.norm.affine.weight[1, 8 + 3] = 1.0
    about = {
        "kind": "sn_gan",
        "shape": shape,
        "low": 0.0,
        "high": 1.0,
        "classes": classes,
        "class_names": None,
        "options": asdict(SETTINGS),
        "trained_on": {"source": "greys", "digest": "a1b2", "size": None, "limit": 32},
        "steps": 80,
        "seed": 1,
    }
    return str(trainee.save(folder, {**about, **changed}))


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("greys"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two classes, dark and bright."""
    return saved(tmp_path_factory.mktemp("two"), 2, steps=60)


def drawn(sampler: GAN, problem: Problem, n: int, seed: int = 1) -> Batch:
    return sampler.draw(sampler.init(problem, seed), problem, n)


def shades(batch: Batch, k: int = 5) -> list[int]:
    """How many rows have each of k levels of brightness."""
    level = (batch.x.mean(dim=(1, 2, 3)) * k).long().clamp(max=k - 1)
    return level.bincount(minlength=k).tolist()


# -- draws -------------------------------------------------------------------------------------------------------------


def test_draws_are_the_generators(greys: str, make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), GAN(greys)
    batch, again = drawn(sampler, problem, 5, seed=3), sampler.init(problem, 3)
    z = torch.randn(5, 4, generator=again.stream.advance())
    shade = 0.5 * (1.0 + torch.tanh(z[:, 0] + BIAS))
    torch.testing.assert_close(batch.x, shade.view(5, 1, 1, 1).expand(5, 1, 8, 8), atol=1e-4, rtol=0.0)
    network, _ = load(greys)
    assert torch.equal(batch.x, network(z, None))
    assert batch.target is None
    assert sum(sum(counts.values()) for counts in problem.teacher.counts.values()) == 0  # it is not asked


def test_classes_come_equally_often_and_look_it(two: str, make_problem: MakeProblem) -> None:
    problem = make_problem(num_classes=2)
    batch = drawn(GAN(two), problem, 64)
    assert batch.target is not None
    assert batch.target.bincount().tolist() == [32, 32]
    shade = batch.x.mean(dim=(1, 2, 3))
    assert shade[batch.target == 0].mean() < 0.2
    assert shade[batch.target == 1].mean() > 0.7
    odd = drawn(GAN(two), problem, 5).target
    assert odd is not None
    assert sorted(odd.bincount().tolist()) == [2, 3]


def test_without_labels_its_classes_are_nobodys_business(two: str, make_problem: MakeProblem) -> None:
    problem = make_problem(num_classes=7)
    batch = drawn(GAN(two, labels=False), problem, 64)
    assert batch.target is None
    shade = batch.x.mean(dim=(1, 2, 3))
    assert 25 <= int((shade > 0.5).sum()) <= 39  # half of each class, of which few are on the other side


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (2.0, 7.0)])
def test_images_fill_the_teachers_box(greys: str, low: float, high: float, make_problem: MakeProblem) -> None:
    unit = drawn(GAN(greys), make_problem(), 20).x
    other = drawn(GAN(greys), make_problem(low=low, high=high), 20).x
    torch.testing.assert_close(other, low + (high - low) * unit)


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_choosing_evens_out_what_the_teacher_sees(
    greys: str, make_problem: MakeProblem, brightness: Brightness
) -> None:
    problem = make_problem(num_classes=5, teacher=brightness)
    plain, even = shades(drawn(GAN(greys), problem, 100)), drawn(GAN(greys, balance=True, multiple=8), problem, 100)
    assert max(plain) - min(plain) > 15
    counts = shades(even)
    assert sum(counts) == 100
    assert int(even.info["shortfall"]) == sum(max(0, 20 - count) for count in counts)
    assert max(counts) - min(counts) < (max(plain) - min(plain)) / 2
    assert problem.teacher.counts["label"]["forward"] == 800  # all candidates are paid for


# -- searching ---------------------------------------------------------------------------------------------------------


def log_p(problem: Problem, batch: Batch) -> float:
    """Mean log-probability of the targets."""
    assert batch.target is not None
    logits = problem.teacher(batch.x).logits.detach()
    return logits.log_softmax(dim=1).gather(1, batch.target[:, None]).mean().item()


def test_searching_raises_the_targets_probability(
    greys: str, make_problem: MakeProblem, brightness: Brightness
) -> None:
    """The teacher names the brightness, which the generator can make: after the search most rows are what was aimed at;
    before it, a class is hit by chance. Latents too short to reach their class miss it."""
    problem = make_problem(num_classes=5, teacher=brightness)
    steered = drawn(GAN(greys, steps=40, batch=50, learning_rate=0.2), problem, 50)
    assert steered.target is not None
    assert steered.target.bincount().tolist() == [10] * 5
    plain = replace(drawn(GAN(greys), problem, 50), target=steered.target)
    assert log_p(problem, steered) > log_p(problem, plain) + 3.0
    named, by_chance = (problem.teacher(each.x).logits.argmax(dim=1) for each in (steered, plain))
    assert int(named.eq(steered.target).sum()) > 40
    assert int(by_chance.eq(steered.target).sum()) < 20
    assert problem.teacher.counts["synthesise"]["backward"] == 40 * 50


def test_searching_begins_at_a_draw_and_keeps_the_best(greys: str, make_problem: MakeProblem) -> None:
    """One step judges its start only, so that the start is kept."""
    problem = make_problem()
    start = drawn(GAN(greys), problem, 8)
    once = drawn(GAN(greys, steps=1, batch=8), problem, 8)
    torch.testing.assert_close(once.x, start.x)
    more = drawn(GAN(greys, steps=6, batch=8), problem, 8)
    assert (more.x - start.x).abs().max() > 1e-3
    assert float(more.info["loss"]) < float(once.info["loss"])


def test_a_latent_keeps_its_length(greys: str, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = make_problem(), []
    sampler = GAN(greys, steps=5, batch=6, learning_rate=0.5)
    state = sampler.init(problem, 1)
    of = state.maker.images

    def images(z: Tensor, y: Tensor | None) -> Tensor:
        seen.append(z.detach().clone())
        made_images: Tensor = of(z, y)
        return made_images

    monkeypatch.setattr(state.maker, "images", images)
    sampler.draw(state, problem, 6)
    assert len(seen) == 5
    for z in seen[1:]:
        assert (z - seen[0]).abs().max() > 0.1
        torch.testing.assert_close(z.norm(dim=1), seen[0].norm(dim=1))


def test_searching_against_the_student_raises_their_disagreement(greys: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    sampler = GAN(greys, steps=40, batch=32, learning_rate=0.2, one_hot=0.0, adversarial=1.0)
    assert sampler.uses_student
    assert not replace(sampler, steps=0).uses_student
    gaps = []
    for each in (GAN(greys), sampler):
        x = drawn(each, problem, 32).x
        gaps.append(disagreement(problem.student(x).logits, problem.teacher(x).logits, "kl").mean().item())
    assert gaps[1] > 1.1 * gaps[0]


def test_searching_for_the_statistics_comes_nearer_to_them(greys: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    distances = []
    for each in (GAN(greys), GAN(greys, steps=20, batch=32, learning_rate=0.1, one_hot=0.0, batchnorm=1.0)):
        x = drawn(each, problem, 32).x
        with torch.no_grad(), problem.teacher.batchnorm_inputs() as watched:
            problem.teacher(x)
            distances.append(float(batchnorm_distance(watched)))
    assert distances[1] < distances[0]


def test_what_a_search_needs_is_said(greys: str, make_problem: MakeProblem, brightness: Brightness) -> None:
    problem = make_problem(teacher=brightness)
    with pytest.raises(UnsupportedProblem, match="gan: needs a teacher with batchnorm"):
        GAN(greys, steps=2, batchnorm=1.0).init(problem, 1)
    GAN(greys, batchnorm=1.0).init(problem, 1)  # nothing is searched for


# -- what it was trained on --------------------------------------------------------------------------------------------


def test_says_what_it_was_trained_on(greys: str, two: str) -> None:
    sampler = Adversarial(Mixture((GAN(greys), Uniform())))
    assert not is_data_free(sampler)
    assert sources(sampler) == [greys, "greys"]
    read = what_is_read([sampler, GAN(two, labels=False)])
    assert read is not None
    data = {"source": "greys", "digest": "a1b2", "size": None, "limit": 32}
    assert read["trained_on"] == {greys: data, two: data}
    assert read["sources"] == {greys: fingerprint(greys), two: fingerprint(two)}
    json.dumps(read)  # it goes into a manifest
    assert what_is_read([Uniform()]) is None


def test_a_state_belongs_to_its_generator(greys: str, two: str, make_problem: MakeProblem) -> None:
    problem = make_problem(num_classes=2)
    states: list[State] = [GAN(file).init(problem, 1) for file in (greys, two)]
    with pytest.raises(ValueError, match="state: expected the generator 'sn_gan a1b2 60 1', found 'sn_gan a1b2 80 1'"):
        states[1].load_state_dict(states[0].state_dict())


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_refuses_generators_of_other_images(greys: str, make_problem: MakeProblem) -> None:
    with pytest.raises(
        ValueError, match=r"file: expected a generator of images \(3, 16, 16\), .* found one of \(1, 8, 8\)"
    ):
        GAN(greys).init(make_problem(shape=(3, 16, 16)), 1)


def test_refuses_generators_of_other_classes(two: str, tmp_path: Path, make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match=r"file: expected a generator of 5 classes, .* found one of 2 .*labels=false"):
        GAN(two).init(make_problem(num_classes=5), 1)
    named = saved(tmp_path, 2, class_names=["cat", "dog"])
    problem = make_problem(num_classes=2)
    GAN(named).init(problem, 1)  # names that nobody knows cannot differ
    problem.spec = InputSpec((1, 8, 8), 2, class_names=("cat", "deer"))
    with pytest.raises(
        ValueError, match=r"file: .* found class 1 to be 'dog' in .* and 'deer' for the teacher; labels=false"
    ):
        GAN(named).init(problem, 1)
    GAN(named, labels=False).init(problem, 1)


@pytest.mark.parametrize("balance", [False, True])
def test_refuses_what_is_no_file_of_a_generator(
    greys: str, balance: bool, tmp_path: Path, make_problem: MakeProblem
) -> None:
    problem = make_problem()
    with pytest.raises(ValueError, match="file: no such file or folder: 'missing'"):
        GAN("missing", balance=balance).init(problem, 1)
    short = tmp_path / "short.safetensors"
    short.write_bytes(Path(greys).read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"file: .*short.safetensors is not a readable safetensors file"):
        GAN(str(short), balance=balance).init(problem, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"file": ""}, "file: expected a generator's file, found ''"),
        ({"labels": 1}, "labels: expected true or false, found 1"),
        ({"multiple": 1}, "multiple: expected an integer >= 2, found 1"),
        ({"steps": -1}, "steps: expected an integer >= 0, found -1"),
        ({"batch": 0}, "batch: expected an integer >= 1, found 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0"),
        ({"adversarial": -1.0}, "adversarial: expected a number >= 0"),
        ({"batchnorm": "much"}, "batchnorm: expected a number >= 0 or 'auto'"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
        ({"steps": 3, "one_hot": 0.0}, "one_hot: expected at least one weight above 0 to search for, found none"),
    ],
)
def test_refuses(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GAN(**{"file": "g.safetensors", **given})
