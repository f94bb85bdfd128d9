"""Training the residual GAN: its losses, its rates, one step by hand, its classes, its exact continuation, its file."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generators.saved import write
from generators.sn_gan_training import FILE, SNGAN, Adversaries, critic_loss, generator_loss, load
from generators.training import Settings, Trainee

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")
TINY = SNGAN(latent=4, width=4, critic_width=4, critic_steps=2, learning_rate=5e-3, last_rate=1e-3, ema=0.5)


def begun(
    settings: SNGAN = TINY, classes: int | None = 2, steps: int = 6, seed: int = 1, low: float = 0.0
) -> Adversaries:
    return settings.init(SHAPE, classes, (low, 1.0), steps, CPU, seed)


def batches(trainee: Trainee, seed: int, rows: int = 6) -> list[tuple[Tensor, Tensor | None]]:
    """Bright images of class 1 and dark ones of class 0."""
    rng = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor | None]] = []
    for _ in range(trainee.batches):
        y = torch.randint(2, (rows,), generator=rng)
        noise = 0.05 * torch.randn(rows, *SHAPE, generator=rng)
        found.append(((0.2 + 0.6 * y.view(-1, 1, 1, 1) + noise).clamp(0, 1), y))
    return found


def take(trainee: Adversaries, first: int, last: int) -> list[dict[str, Tensor]]:
    return [trainee.step(batches(trainee, step), torch.Generator().manual_seed(step)) for step in range(first, last)]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else None
    if items is None:
        return {path: tree}
    return {key: value for name, part in items for key, value in flat(part, f"{path}/{name}").items()}


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit."""
    a, b = flat(one), flat(other)
    assert a.keys() == b.keys()
    for path, value in a.items():
        assert torch.equal(value, b[path]) if isinstance(value, Tensor) else value == b[path], path


# -- the losses and the rate -------------------------------------------------------------------------------------------


def test_losses_are_the_hinge() -> None:
    rng = torch.Generator().manual_seed(1)
    real, made = (2.0 * torch.randn(40, generator=rng) for _ in range(2))
    slow = sum(max(0.0, 1.0 - score) for score in real.tolist()) / 40
    slow += sum(max(0.0, 1.0 + score) for score in made.tolist()) / 40
    torch.testing.assert_close(critic_loss(real, made), torch.tensor(slow))
    torch.testing.assert_close(generator_loss(made), torch.tensor(-sum(made.tolist()) / 40))


def test_a_critic_that_is_sure_and_right_costs_nothing_and_has_no_slope() -> None:
    scores = torch.tensor([1.0, 5.0, -1.0, -3.0], requires_grad=True)
    loss = critic_loss(scores[:2], scores[2:])
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert scores.grad.abs().max() == 0.0
    assert critic_loss(torch.tensor([-2.0]), torch.tensor([2.0])).item() == 6.0  # sure and wrong


def test_the_rate_falls_linearly_from_the_first_step_to_the_last() -> None:
    published = SNGAN().fitted((3, 32, 32))
    assert published.rate(0, 100_000) == 2e-4
    assert published.rate(99_999, 100_000) == pytest.approx(1e-6, rel=1e-9)
    halfway = published.rate(50, 101)
    assert halfway == pytest.approx((2e-4 + 1e-6) / 2)
    assert published.rate(0, 1) == 2e-4


def test_steps_use_the_rate_of_their_number() -> None:
    trainee = begun(steps=5)
    for step in range(5):
        take(trainee, step, step + 1)
        rates = {group["lr"] for way in trainee.state_dict()["ways"] for group in way["param_groups"]}
        assert rates == {TINY.rate(step, 5)}
    assert rates == {TINY.last_rate}


# -- a step ------------------------------------------------------------------------------------------------------------


def test_steps_are_their_definition() -> None:
    """Two steps with Adams of their own: the critic on each batch, the generator once, then the average.

    Fused ones, as theirs: a bias before a BatchNorm has no slope but rounding, which Adam enlarges.
    """
    trainee, slow = begun(), begun()
    generator, critic = slow.generator, slow.critic
    ways = [torch.optim.Adam(net.parameters(), betas=(0.0, 0.9), fused=True) for net in (generator, critic)]
    average = {key: value.clone() for key, value in generator.state_dict().items()}
    for step in range(2):
        found = take(trainee, step, step + 1)[0]
        rng = torch.Generator().manual_seed(step)
        for way in ways:
            way.param_groups[0]["lr"] = 5e-3 + (1e-3 - 5e-3) * step / 5
        for x, y in batches(slow, step):
            assert y is not None
            scores = critic(torch.cat([x, generator(torch.randn(6, 4, generator=rng), y).detach()]), torch.cat([y, y]))
            judged = (1.0 - scores[:6]).clamp_min(0.0).mean() + (1.0 + scores[6:]).clamp_min(0.0).mean()
            ways[1].zero_grad()
            judged.backward()
            ways[1].step()
        fooled = -critic(generator(torch.randn(6, 4, generator=rng), y), y).mean()
        ways[0].zero_grad()
        fooled.backward()
        ways[0].step()
        keep = min(0.5, (1 + step) / (10 + step))
        for key, value in generator.state_dict().items():
            average[key] = keep * average[key] + (1 - keep) * value if value.is_floating_point() else value.clone()
        torch.testing.assert_close(found["critic"], judged.detach())
        torch.testing.assert_close(found["generator"], fooled.detach())
    for key, value in generator.state_dict().items():
        torch.testing.assert_close(trainee.generator.state_dict()[key], value, msg=key)
        torch.testing.assert_close(trainee.average.network.state_dict()[key], average[key], msg=key)
    for key, value in critic.state_dict().items():
        torch.testing.assert_close(trainee.critic.state_dict()[key], value, msg=key)


def test_the_critic_steps_so_much_oftener() -> None:
    assert SNGAN().fitted((3, 32, 32)).critic_steps == 5
    trainee = begun(SNGAN(latent=4, width=4, critic_width=4, critic_steps=5))
    assert trainee.batches == 5
    take(trainee, 0, 3)
    taken = [{float(part["step"]) for part in way["state"].values()} for way in trainee.state_dict()["ways"]]
    assert taken == [{3.0}, {15.0}]


def test_losses_are_detached_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainee = begun()
    for loss in take(trainee, 0, 1)[0].values():
        assert loss.ndim == 0
        assert not loss.requires_grad
    trainee.sample(2, torch.tensor([0, 1]), torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in trainee.critic.parameters())


def test_seeds_decide_where_it_begins() -> None:
    assert_same(begun(seed=1).state_dict(), begun(seed=1).state_dict())
    one, other = (begun(seed=seed).generator.state_dict()["stem.weight"] for seed in (1, 2))
    assert not torch.equal(one, other)


# -- what it has learnt ------------------------------------------------------------------------------------------------


def test_learns_the_classes() -> None:
    """Bright images for class 1 and dark ones for class 0, a minute fraction of a real training."""
    settings = SNGAN(latent=4, width=8, critic_width=8, critic_steps=1, learning_rate=5e-3, last_rate=1e-3, ema=0.9)
    trainee = begun(settings, steps=60)
    for step in range(60):
        trainee.step(batches(trainee, step, 32), torch.Generator().manual_seed(step))
    x = trainee.sample(64, torch.arange(64) % 2, torch.Generator().manual_seed(9))
    shades = x.mean(dim=(1, 2, 3))
    # the real ones have 0.2 and 0.8
    assert shades[::2].mean().item() == pytest.approx(0.2, abs=0.15)
    assert shades[1::2].mean().item() == pytest.approx(0.8, abs=0.15)


def test_samples_come_from_the_average_and_move_nothing() -> None:
    trainee = begun()
    take(trainee, 0, 3)
    before = {path: value.clone() for path, value in flat(trainee.state_dict()).items() if isinstance(value, Tensor)}
    y = torch.tensor([0, 1, 1])
    x = trainee.sample(3, y, torch.Generator().manual_seed(1))
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    assert not x.requires_grad
    assert torch.equal(x, trainee.average.network(z, y))
    with torch.no_grad():
        assert (x - trainee.generator.eval()(z, y)).abs().max() > 1e-4
    after = flat(trainee.state_dict())
    assert all(torch.equal(value, after[path]) for path, value in before.items())


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 2])
def test_interrupted_equals_uninterrupted(classes: int | None) -> None:
    def told(trainee: Adversaries, step: int) -> None:
        real = [(x, None if classes is None else y) for x, y in batches(trainee, step)]
        trainee.step(real, torch.Generator().manual_seed(step))

    whole, first, second = (begun(classes=classes, seed=seed) for seed in (1, 1, 8))
    for step in range(6):
        told(whole, step)
    for step in range(3):
        told(first, step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        told(second, step)
    assert_same(second.state_dict(), whole.state_dict())


# -- its file ----------------------------------------------------------------------------------------------------------


def described(**changed: Any) -> dict[str, Any]:
    about = {
        "kind": "sn_gan",
        "shape": list(SHAPE),
        "low": -1.0,
        "high": 1.0,
        "classes": 2,
        "class_names": ["dark", "bright"],
        "options": {"latent": 4, "width": 4},
        "trained_on": {"source": "here", "digest": "0", "size": None, "limit": None},
        "steps": 3,
        "seed": 1,
    }
    return {**about, **changed}


def test_is_given_back_by_its_file(tmp_path: Path) -> None:
    trainee = begun(low=-1.0)
    take(trainee, 0, 3)
    path = trainee.save(tmp_path, described())
    assert path == tmp_path / FILE
    generator, about = load(path)
    assert about["class_names"] == ["dark", "bright"]
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    y = torch.tensor([0, 1, 1])
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    x = trainee.sample(3, y, torch.Generator().manual_seed(1))
    assert torch.equal(generator(z, y), x)
    assert -1.0 <= x.min() < 0.0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": "diffusion"}, "file: expected a generator of kind sn_gan, found diffusion in"),
        ({"options": {"latent": 4, "wide": 4}}, "file: .* describes a generator that cannot be built .*wide"),
        ({"options": {"latent": 4, "width": 0}}, "file: .* cannot be built .*width: expected an integer >= 1, found 0"),
        (
            {"options": {"latent": 4, "width": 8}},
            "file: the weights of .* are not those that it describes .*size mismatch",
        ),
        ({"classes": None, "class_names": None}, "file: the weights of .* are not those that it describes"),
    ],
)
def test_refuses_files_that_do_not_fit_their_description(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = tmp_path / FILE
    write(path, begun().generator.state_dict(), described(**changed))
    with pytest.raises(ValueError, match=said) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_file_is_plain_safetensors(tmp_path: Path) -> None:
    """No pickle in it, and what another program wrote without the description is none of ours."""
    trainee = begun()
    path = trainee.save(tmp_path, described())
    tensors = load_file(path)
    assert set(tensors) == set(trainee.generator.state_dict())
    save_file(tensors, path, metadata={"other": json.dumps(described())})
    with pytest.raises(ValueError, match=r"file: .*generator.safetensors is no generator"):
        load(path)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_is_of_the_protocol() -> None:
    settings: Settings = TINY
    trainee: Trainee = settings.init(SHAPE, None, (0.0, 1.0), 2, CPU, 0)
    assert trainee.batches == 2


def test_small_images_take_smaller_networks_and_fewer_steps() -> None:
    published = SNGAN().fitted((3, 32, 32))
    assert published == SNGAN(128, 256, 128, 5, 2e-4, 1e-6, 0.999)
    assert SNGAN().fitted((1, 28, 28)) == SNGAN().fitted((3, 64, 64)) == published
    assert SNGAN().usual((3, 32, 32)) == (100_000, 128)
    small = SNGAN().fitted((1, 8, 8))
    assert small == SNGAN(128, 32, 32, 1, 5e-3)
    assert SNGAN().usual((1, 8, 8))[0] < 10_000
    assert SNGAN(width=12, critic_steps=3).fitted((1, 8, 8)) == replace(small, width=12, critic_steps=3)
    trainee = SNGAN().init((1, 16, 16), None, (0.0, 1.0), 2, CPU, 0)
    assert (trainee.generator.start[0], trainee.critic.score.weight.shape, trainee.batches) == (32, (1, 32), 1)


def test_a_file_says_what_was_left_open(tmp_path: Path) -> None:
    settings = SNGAN(latent=4)
    trainee = settings.init(SHAPE, 2, (0.0, 1.0), 2, CPU, 0)
    path = trainee.save(tmp_path, described(options=asdict(settings)))
    assert load(path)[1]["options"] == asdict(settings.fitted(SHAPE))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latent": 0}, "latent: expected an integer >= 1, found 0"),
        ({"width": 0}, "width: expected an integer >= 1, found 0"),
        ({"critic_steps": True}, "critic_steps: expected an integer >= 1, found True"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0, found 0.0"),
        ({"last_rate": float("nan")}, "last_rate: expected a number > 0, found nan"),
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\), found 1.0"),
    ],
)
def test_refuses(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SNGAN(**given)


def test_refuses_images_that_it_cannot_make() -> None:
    with pytest.raises(ValueError, match=r"shape: expected .* even sides of 8 or more"):
        TINY.init((1, 7, 7), None, (0.0, 1.0), 5, CPU, 0)
