"""Training a small diffusion model: what it is shown, what is averaged and saved, and that it learns."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generators.diffusion import NOISE, Denoising, Diffusion, noised, shares
from generators.pipeline import load, reverse

CPU = torch.device("cpu")
SMALL = Diffusion(channels=(8,), unlabelled=0.25)
TRAINED_ON = {"source": "digits", "digest": "d", "size": None, "limit": None}


def about(classes: int | None, names: list[str] | None = None) -> dict[str, Any]:
    settings = {"kind": "diffusion", "shape": [1, 4, 4], "low": 0.0, "high": 1.0, "options": {}, "steps": 1, "seed": 0}
    return {**settings, "classes": classes, "class_names": names, "trained_on": TRAINED_ON}


def trainee(settings: Diffusion = SMALL, classes: int | None = 3, seed: int = 5, steps: int = 40) -> Denoising:
    return settings.init((1, 4, 4), classes, (0.0, 1.0), steps, CPU, seed)


def batch(step: int, n: int = 16) -> tuple[list[tuple[Tensor, Tensor | None]], torch.Generator]:
    rng = torch.Generator().manual_seed(step)
    return [(torch.rand(n, 1, 4, 4, generator=rng), torch.arange(n) % 3)], rng


class Recorder(nn.Module):
    """Notes what the network is asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.asked: list[tuple[Tensor, Tensor, Any]] = []

    def forward(self, z: Tensor, time: Tensor, class_labels: Tensor | None) -> Any:
        self.asked.append((z, time, class_labels))
        return self.network(z, time, class_labels=class_labels)


# -- what it is shown --------------------------------------------------------------------------------------------------


def test_noise_is_added_as_diffusers_adds_it() -> None:
    from diffusers import DDPMScheduler

    clean, noise = torch.randn(2, 6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0, 1, 200, 500, 998, 999])
    expected = DDPMScheduler(**NOISE).add_noise(clean, noise, time)
    torch.testing.assert_close(noised(clean, noise, shares()[time]), expected, atol=1e-5, rtol=1e-5)


def test_a_step_predicts_the_noise_of_images_scaled_to_their_box() -> None:
    settings = Diffusion(channels=(8,))
    one = settings.init((1, 4, 4), None, (-1.0, 3.0), 40, CPU, 5)
    seen = one.network = Recorder(one.network)
    x = torch.full((64, 1, 4, 4), 3.0)  # the top of the box is 1
    loss = one.step([(x, None)], torch.Generator().manual_seed(2))["noise"]
    (z, time, labels) = seen.asked[0]
    assert labels is None
    share = shares()[time][:, None, None, None]
    noise = (z - share.sqrt()) / (1.0 - share).sqrt()
    assert abs(float(noise.mean())) < 0.2  # of 1024 values: 6 standard errors
    assert abs(float(noise.std()) - 1.0) < 0.2
    with torch.no_grad():
        before = settings.init((1, 4, 4), None, (-1.0, 3.0), 40, CPU, 5).network(z, time).sample
    torch.testing.assert_close(loss, (before - noise).square().mean(), atol=1e-4, rtol=1e-4)


def test_times_are_even_and_each_batch_sees_all_of_them() -> None:
    one, counts = trainee(), torch.zeros(10)
    for step in range(50):
        time = one._times(20, torch.Generator().manual_seed(step))
        assert time.dtype == torch.int64
        assert torch.equal(time // 50, torch.arange(20))
        counts += torch.bincount(time // 100, minlength=10)
    assert torch.equal(counts, torch.full((10,), 100.0))


def test_some_rows_are_not_told_their_class() -> None:
    """8000 rows, a quarter of them: off by over 0.035 with probability <= 2 exp(-2 * 8000 * 0.035^2) = 6e-9."""
    one = trainee()
    y = torch.arange(8000) % 3
    told = one._told(y, 8000, torch.Generator().manual_seed(3))
    left_out = told == 3
    assert abs(float(left_out.float().mean()) - 0.25) < 0.035
    assert torch.equal(told[~left_out], y[~left_out])
    seen = one.network = Recorder(one.network)
    for step in range(8):
        one.step(*batch(step))
    labels = torch.cat([asked[2] for asked in seen.asked])
    assert set(labels.tolist()) == {0, 1, 2, 3}  # the network is told so, of which the last is none
    assert (labels == 3).sum() < len(labels) / 2


# -- what is averaged, and drawn from ----------------------------------------------------------------------------------


def test_the_average_follows_as_a_slow_loop_says() -> None:
    one = trainee(Diffusion(channels=(8,), ema=0.9))
    name = "conv_out.weight"
    slow = one.network.state_dict()[name].clone().double()
    for step in range(12):
        one.step(*batch(step))
        keep = min(0.9, (1 + step) / (10 + step))
        slow = keep * slow + (1 - keep) * one.network.state_dict()[name].double()
    torch.testing.assert_close(one.average.network.state_dict()[name].double(), slow, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(slow.float(), one.network.state_dict()[name])


def test_images_come_from_the_average_and_are_pixels() -> None:
    one, y = trainee(), torch.tensor([0, 1, 2])
    for step in range(3):
        one.step(*batch(step))

    def drawn(y: Tensor | None) -> Tensor:
        return one.sample(3, y, torch.Generator().manual_seed(1))

    x = drawn(y)
    assert x.shape == (3, 1, 4, 4)
    assert not x.requires_grad
    assert x.min() >= 0.0
    assert x.max() <= 1.0
    assert not torch.equal(x, drawn(y.flip(0)))
    assert not torch.equal(x, drawn(None))
    with torch.no_grad():
        one.network.conv_out.bias.add_(5.0)
    assert torch.equal(x, drawn(y))
    with torch.no_grad():
        one.average.network.get_parameter("conv_out.bias").add_(5.0)
    assert not torch.equal(x, drawn(y))


def test_goes_on_exactly_and_leaves_the_global_generators() -> None:
    before = torch.get_rng_state()
    whole, first = trainee(), trainee()
    for step in range(4):
        whole.step(*batch(step))
    for step in range(2):
        first.step(*batch(step))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = trainee(seed=9)
    again.load_state_dict(torch.load(file, weights_only=True))
    for step in range(2, 4):
        again.step(*batch(step))
    for one, other in zip(whole.average.network.parameters(), again.average.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    assert Diffusion(learning_rate=1.0).rate(0, 1000) == pytest.approx(0.1)
    assert Diffusion(learning_rate=1.0).rate(505, 1000) == pytest.approx(0.5, abs=0.01)
    assert Diffusion(learning_rate=1.0).rate(999, 1000) < 1e-4


# -- saved ones --------------------------------------------------------------------------------------------------------


def test_a_saved_one_draws_what_it_drew(tmp_path: Path) -> None:
    one, y = trainee(), torch.tensor([0, 1, 2])
    one.step(*batch(0))
    place = one.save(tmp_path, about(3, ["a", "b", "c"]))
    assert place == tmp_path / "generator"
    assert json.loads((place / "dfkd.json").read_text())["trained_on"] == TRAINED_ON
    assert not list(place.rglob("*.bin"))
    denoiser = load(place, CPU, k=4)
    assert (denoiser.classes, denoiser.none, denoiser.names) == (3, 3, ("a", "b", "c"))
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(3, 1, 4, 4, generator=rng)
    found = reverse(denoiser, z, y, rng, steps=20, scale=SMALL.scale)
    torch.testing.assert_close((found + 1.0) / 2.0, one.sample(3, y, torch.Generator().manual_seed(1)))
    one.save(tmp_path, about(3))  # as a run does that was ended before it was done
    assert load(place, CPU, k=4).names is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generator"]
    (place / "dfkd.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^folder: .*has no kind"):
        load(place, CPU, k=4)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """Here a limit on the size of files: weights do not fit, and the folder of before stays."""
    resource = pytest.importorskip("resource")
    one = trainee()
    place = one.save(tmp_path, about(3, ["a", "b", "c"]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"^file: cannot write .*/generator: .*File too large"):
            one.save(tmp_path, about(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load(place, CPU, k=4).names == ("a", "b", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generator"]


def test_diffusers_itself_draws_from_one_without_classes(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline

    one = trainee(classes=None)
    one.step(*batch(0))
    place = one.save(tmp_path, about(None))
    pipeline = DDPMPipeline.from_pretrained(place, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(2, 1, 4, 4, generator=rng)
    ours = reverse(load(place, CPU, k=3), z, None, rng, scheduler="ddpm", steps=5)
    torch.testing.assert_close((ours + 1.0) / 2.0, torch.from_numpy(theirs).permute(0, 3, 1, 2), atol=1e-5, rtol=0)


# -- that it learns ----------------------------------------------------------------------------------------------------


def test_learns_two_images_and_which_class_is_which() -> None:
    """Of 2 images, one a class, it draws the one whose class it is told, and either where it is told none."""
    pictures = torch.zeros(2, 1, 4, 4)
    pictures[0, 0, :2], pictures[1, 0, :, 2:] = 1.0, 1.0
    steps = 300
    settings = Diffusion(channels=(16,), learning_rate=1e-2, ema=0.97)
    one = settings.init((1, 4, 4), 2, (0.0, 1.0), steps, CPU, 1)
    rng, y, losses = torch.Generator(), torch.arange(64) % 2, []
    for step in range(steps):
        losses.append(float(one.step([(pictures[y], y)], rng.manual_seed(step))["noise"]))
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    told = torch.arange(20) % 2
    x = one.sample(20, told, rng.manual_seed(1))
    distance = (x[:, None] - pictures).abs().mean(dim=(2, 3, 4))
    assert torch.equal(distance.argmin(dim=1), told)
    assert distance.min(dim=1).values.mean() < 0.05
    untold = one.sample(60, None, rng.manual_seed(2))
    nearest = (untold[:, None] - pictures).abs().mean(dim=(2, 3, 4)).argmin(dim=1)
    assert 12 <= int(nearest.sum()) <= 48


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_are_checked() -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"channels": (12,)}, r"^channels: expected multiples of 8"),
        ({"channels": ()}, r"^channels: "),
        ({"blocks": 0}, r"^channels: expected them and blocks"),
        ({"learning_rate": 0.0}, r"^learning_rate: expected a number > 0"),
        ({"unlabelled": 1.0}, r"^unlabelled: expected a number in \[0, 1\)"),
        ({"ema": 1.0}, r"^ema: expected a number in \[0, 1\)"),
        ({"scale": -1.0}, r"^scale: expected a number >= 0"),
    )
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            Diffusion(**options)
    with pytest.raises(ValueError, match=r"^shape: expected sides that are multiples of 4"):
        Diffusion().init((1, 6, 8), None, (0.0, 1.0), 10, CPU, 0)
    listed: Any = [8, 16]
    assert Diffusion(channels=listed) == Diffusion(channels=(8, 16))
