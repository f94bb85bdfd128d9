"""Folders of diffusers against that library's own pipelines, the ways back from noise against their formulas."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generators.pipeline import Denoiser, Scheduler, guided, load, predicted, reverse, schedule

Folder = Callable[[str], Path]
CPU = torch.device("cpu")
NAMES = [f"thing {row}" for row in range(10)]
NOISE = {"num_train_timesteps": 1000, "beta_schedule": "linear", "timestep_spacing": "trailing"}
WAYS: tuple[Scheduler, ...] = ("dpm_solver", "ddim", "ddpm")


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known(centres: Tensor, classes: int | None = None, spread: float = 0.0, **noise: Any) -> Denoiser:
    """Of points (m, d) that each are as likely, spread as a Gaussian: the best prediction there is, in closed form.

    With classes, class i is point i and the one beyond the last is all of them. Images are (d, 1, 1).
    """
    share_of: Tensor = schedule("ddpm", {**NOISE, **noise}, 10).alphas_cumprod

    def network(z: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        share = share_of[t][:, None, None]
        flat, variance = z.flatten(1), (1.0 - share_of[t] + share_of[t] * spread**2)[:, None]
        towards = flat[:, None] - share.sqrt() * centres  # (n, m, d)
        log_p = -towards.square().sum(dim=2) / (2.0 * variance)
        if y is not None:
            one = torch.nn.functional.one_hot(y.clamp(max=len(centres) - 1), len(centres)).bool()
            log_p = log_p.masked_fill(~one & (y < len(centres))[:, None], -math.inf)
        score = -(log_p.softmax(dim=1)[:, :, None] * towards).sum(dim=1) / variance
        noise: Tensor = -(1.0 - share_of[t])[:, None].sqrt() * score
        return noise.reshape(z.shape)

    shape = (centres.shape[1], 1, 1)
    return Denoiser(network, lambda z: z, shape, shape, classes, classes, None, {**NOISE, **noise})


# -- against diffusers' own pipelines ----------------------------------------------------------------------------------


def theirs(images: Any) -> Tensor:
    """(n, h, w, c) in [0, 1] -> (n, c, h, w) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2.0 - 1.0


def test_ddpm_as_its_own_pipeline(diffusion_folder: Folder) -> None:
    from diffusers import DDPMPipeline

    folder = diffusion_folder("ddpm")
    pipeline = DDPMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(batch_size=3, generator=seeded(), num_inference_steps=6, output_type="np").images
    rng, denoiser = seeded(), load(folder, CPU, k=10)
    assert (denoiser.shape, denoiser.classes) == ((1, 8, 8), None)
    z = torch.randn(3, *denoiser.latent, generator=rng)
    found = reverse(denoiser, z, None, rng, scheduler="ddpm", steps=6)
    torch.testing.assert_close(found, theirs(expected), atol=1e-5, rtol=0)


def test_ddim_as_its_own_pipeline(diffusion_folder: Folder) -> None:
    from diffusers import DDIMPipeline

    folder = diffusion_folder("ddim")
    pipeline = DDIMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(batch_size=3, generator=seeded(), num_inference_steps=6, output_type="np").images
    rng, denoiser = seeded(), load(folder, CPU, k=10)
    z = torch.randn(3, *denoiser.latent, generator=rng)
    found = reverse(denoiser, z, None, rng, scheduler="ddim", steps=6)
    torch.testing.assert_close(found, theirs(expected), atol=1e-5, rtol=0)


def test_dit_as_its_own_pipeline(diffusion_folder: Folder) -> None:
    from diffusers import DiTPipeline

    folder = diffusion_folder("dit")
    pipeline = DiTPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    y = torch.tensor([3, 999, 0])
    expected = pipeline(y.tolist(), guidance_scale=3.0, generator=seeded(), num_inference_steps=6, output_type="np")
    rng, denoiser = seeded(), load(folder, CPU, k=1000)
    assert (denoiser.shape, denoiser.latent, denoiser.classes, denoiser.none) == ((3, 8, 8), (4, 4, 4), 1000, 1000)
    assert denoiser.names is not None
    assert denoiser.names[999] == "thing 999, synonym 999"
    z = torch.randn(3, *denoiser.latent, generator=rng)
    found = reverse(denoiser, z, y, rng, scheduler="ddim", steps=6, scale=3.0)
    torch.testing.assert_close(found, theirs(expected.images), atol=1e-4, rtol=0)


def test_stable_diffusion_as_its_own_pipeline(diffusion_folder: Folder) -> None:
    pytest.importorskip("transformers")
    from diffusers import StableDiffusionPipeline

    folder, prompts = diffusion_folder("text"), [f"a {name}" for name in NAMES]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    y = torch.tensor([3, 9, 0])
    asked = [prompts[row] for row in y]
    expected = pipeline(asked, guidance_scale=3.0, generator=seeded(), num_inference_steps=6, output_type="np").images
    rng, denoiser = seeded(), load(folder, CPU, k=10, prompts=prompts)
    assert (denoiser.shape, denoiser.latent, denoiser.classes, denoiser.none) == ((3, 8, 8), (4, 4, 4), 10, 10)
    z = torch.randn(3, *denoiser.latent, generator=rng)
    found = reverse(denoiser, z, y, rng, scheduler="ddim", steps=6, scale=3.0)
    torch.testing.assert_close(found, theirs(expected), atol=1e-4, rtol=0)
    other = reverse(denoiser, z, y.flip(0), rng, scheduler="ddim", steps=6, scale=3.0)
    assert not torch.equal(found[0], other[0])  # the prompt is heard


def test_equal_folders_in_use_are_read_once_and_the_global_generators_left(diffusion_folder: Folder) -> None:
    before = torch.get_rng_state()
    one = load(diffusion_folder("classes"), CPU, k=10)
    assert load(diffusion_folder("classes"), CPU, k=10) is one
    assert torch.equal(before, torch.get_rng_state())
    assert (one.classes, one.none) == (10, 10)
    assert (load(diffusion_folder("classes"), CPU, k=11).none) is None  # a row for each of eleven classes


# -- formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_free_guidance_is_its_formula(scale: float, diffusion_folder: Folder) -> None:
    denoiser = load(diffusion_folder("classes"), CPU, k=10)
    z, y = torch.randn(4, 1, 8, 8, generator=seeded()), torch.tensor([0, 3, 9, 3])
    with torch.no_grad():
        for row in range(4):
            t = torch.tensor([700])
            told = denoiser.network(z[row : row + 1], t, y[row : row + 1])
            untold = denoiser.network(z[row : row + 1], t, torch.tensor([10]))
            assert not torch.allclose(told, untold, atol=1e-3)
            expected = scale * told + (1.0 - scale) * untold
            found = guided(denoiser, z, 700, y, scale)[row : row + 1]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_ddim_is_its_formula_and_asks_no_chance() -> None:
    """Song et al., eq. 12 with sigma = 0, in Python floats."""
    denoiser = known(torch.tensor([[0.5], [-0.25]]), spread=0.1)
    z = torch.randn(5, 1, 1, 1, generator=seeded())
    plan = schedule("ddim", NOISE, 8)
    times = plan.timesteps.tolist()
    expected = z.double()
    for t in times:
        before = t - 1000 // 8
        share, later = float(plan.alphas_cumprod[t]), float(plan.alphas_cumprod[before]) if before >= 0 else 1.0
        noise = denoiser.network(expected.float(), torch.full((5,), t), None).double()
        clean = ((expected - math.sqrt(1 - share) * noise) / math.sqrt(share)).clamp(-1.0, 1.0)
        expected = math.sqrt(later) * clean + math.sqrt(1 - later) * noise
    rng = seeded(1)
    before_draw = rng.get_state()
    found = reverse(denoiser, z, None, rng, scheduler="ddim", steps=8)
    torch.testing.assert_close(found, expected.float().clamp(-1.0, 1.0), atol=1e-5, rtol=0)
    assert torch.equal(before_draw, rng.get_state())
    assert torch.equal(found, reverse(denoiser, z, None, seeded(2), scheduler="ddim", steps=8))
    assert not torch.equal(
        reverse(denoiser, z, None, seeded(1), scheduler="ddpm", steps=8),
        reverse(denoiser, z, None, seeded(2), scheduler="ddpm", steps=8),
    )


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_clean_prediction_inverts_the_noising(kind: str) -> None:
    plan = schedule("ddim", {**NOISE, "prediction_type": kind}, 10)
    clean, noise = torch.randn(2, 3, 1, 4, 4, generator=seeded())
    for t in (0, 400, 999):
        share = plan.alphas_cumprod[t]
        z = share.sqrt() * clean + (1 - share).sqrt() * noise
        speed = share.sqrt() * noise - (1 - share).sqrt() * clean
        output = {"epsilon": noise, "sample": clean, "v_prediction": speed}[kind]
        torch.testing.assert_close(predicted(plan, z, output, t), clean, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_ways_back_recover_a_known_distribution(way: Scheduler) -> None:
    """Two points as likely, with the exact prediction: at one of them, half at each.

    400 draws; a share off by over 0.14 has probability <= 2 exp(-2 * 400 * 0.14^2) = 3e-7.
    """
    centres = torch.tensor([[0.7, -0.3], [-0.5, 0.4]])
    rng = seeded()
    z = torch.randn(400, 2, 1, 1, generator=rng)
    x = reverse(known(centres), z, None, rng, scheduler=way, steps=100 if way == "ddpm" else 25).flatten(1)
    distance = (x[:, None] - centres).norm(dim=2)
    found = distance.min(dim=1).values < 0.02
    assert found.float().mean() > (0.999 if way == "ddpm" else 0.96)  # few steps leave some between the points
    assert abs(float((distance[:, 0] < distance[:, 1]).float().mean()) - 0.5) < 0.14


@pytest.mark.parametrize("way", WAYS)
def test_classes_are_obeyed(way: Scheduler) -> None:
    centres = torch.tensor([[0.7, -0.3], [-0.5, 0.4]])
    rng, y = seeded(), torch.arange(20) % 2
    z = torch.randn(20, 2, 1, 1, generator=rng)
    x = reverse(known(centres, classes=2), z, y, rng, scheduler=way, steps=25, scale=1.5).flatten(1)
    assert ((x[:, None] - centres).norm(dim=2).argmin(dim=1) == y).all()


# -- folders that are none ---------------------------------------------------------------------------------------------


@pytest.fixture
def copy(diffusion_folder: Folder, tmp_path: Path) -> Callable[[str], Path]:
    def copied(kind: str) -> Path:
        return Path(shutil.copytree(diffusion_folder(kind), tmp_path / kind))

    return copied


def test_names_what_is_missing(copy: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^folder: expected a folder with a DDPM .* found nothing at '.*/none'$"):
        load(tmp_path / "none", CPU, k=10)
    folder = copy("ddpm")
    with pytest.raises(ValueError, match=r"found nothing at '.*/dpm'; the nearest is '.*/ddpm'$"):
        load(tmp_path / "dpm", CPU, k=10)
    with pytest.raises(ValueError, match=r"no model_index.json; perhaps .*/ddpm is meant$"):
        load(tmp_path, CPU, k=10)
    (folder / "scheduler" / "scheduler_config.json").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"^folder: expected .*scheduler_config.json, found none$"):
        load(folder, CPU, k=10)
    (tmp_path / "kept").rename(folder / "scheduler" / "scheduler_config.json")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^folder: cannot read .*/unet as UNet2DModel: "):
        load(folder, CPU, k=10)
    weights.unlink()
    with pytest.raises(ValueError, match=r"^folder: expected weights .*safetensors, found config.json$"):
        load(folder, CPU, k=10)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^folder: expected .*unet.config.json, found none$"):
        load(folder, CPU, k=10)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"^folder: .*model_index.json cannot be read"):
        load(folder, CPU, k=10)


def test_refuses_pickles(copy: Callable[[str], Path]) -> None:
    folder = copy("ddpm")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"^folder: .*model.bin holds pickled objects, which could run code"):
        load(folder, CPU, k=10)


def test_refuses_weights_that_are_not_all_there(copy: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy("ddpm")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_out.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^folder: .*conv_out.bias"):
        load(folder, CPU, k=10)


def test_refuses_other_pipelines_and_schedules(copy: Callable[[str], Path]) -> None:
    folder = copy("ddpm")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet1DModel"]}))
    with pytest.raises(ValueError, match=r"^folder: expected a DDPM .*, found scheduler: .*, unet: UNet1DModel$"):
        load(folder, CPU, k=10)
    (folder / "model_index.json").write_text(json.dumps(index))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}))
    with pytest.raises(ValueError, match=r"^folder: expected a scheduler with a schedule of betas .*FlowMatch"):
        load(folder, CPU, k=10)


@pytest.mark.parametrize(
    ("kind", "part", "changed", "said"),
    [
        (
            "ddpm",
            "unet/config.json",
            {"sample_size": None},
            r"expected a sample_size in .*unet.config.json, found None",
        ),
        ("ddpm", "unet/config.json", {"sample_size": [8]}, r"expected a sample_size in .*, found \[8\]"),
        ("ddpm", "unet/config.json", {"norm_num_groups": 0}, "cannot read .*/unet as UNet2DModel: "),
        ("ddpm", "unet/config.json", {"class_embed_type": "identity"}, "cannot draw from .*: class_labels should be"),
        ("ddpm", "scheduler/scheduler_config.json", {"beta_schedule": "cube"}, "cannot draw from .*: cube is not"),
        ("ddpm", "scheduler/scheduler_config.json", {"timestep_spacing": "wide"}, "cannot draw from .*: wide is not"),
        ("dit", "vae/config.json", {"scaling_factor": None}, "cannot draw from "),
        ("dit", "vae/config.json", {"block_out_channels": [8]}, "cannot read .*/vae as AutoencoderKL: "),
        ("text", "unet/config.json", {"sample_size": None}, "expected a sample_size in "),
        (
            "text",
            "model_index.json",
            {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
            "expected a ",
        ),
    ],
)
def test_what_cannot_be_drawn_from_is_found_when_it_is_read(
    copy: Callable[[str], Path], kind: str, part: str, changed: dict[str, Any], said: str
) -> None:
    if kind == "text":
        pytest.importorskip("transformers")
    path = copy(kind) / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ValueError, match=rf"^folder: {said}") as error:
        load(path.parents[part.count("/")], CPU, k=10, prompts=NAMES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [None, 20])
def test_a_description_of_other_classes_is_refused(copy: Callable[[str], Path], classes: int | None) -> None:
    trained_on = {"source": "s", "digest": "d", "size": None, "limit": None}
    about = {"kind": "diffusion", "shape": [1, 8, 8], "low": 0, "high": 1, "classes": classes, "class_names": None}
    folder = copy("classes")
    (folder / "dfkd.json").write_text(
        json.dumps({**about, "options": {}, "trained_on": trained_on, "steps": 1, "seed": 0})
    )
    with pytest.raises(
        ValueError, match=rf"^folder: .*dfkd.json speaks of {classes} classes, and the unet has rows for 11"
    ):
        load(folder, CPU, k=10)


def test_a_text_encoder_whose_weights_are_not_all_there_is_refused(copy: Callable[[str], Path]) -> None:
    """Its library would draw them at random, and the prompts would mean nothing."""
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    weights = copy("text") / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    del tensors[next(name for name in tensors if "layer_norm1.weight" in name)]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^folder: the weights of .*text_encoder are incomplete .*layer_norm1.weight"):
        load(weights.parents[1], CPU, k=10, prompts=NAMES)


def test_what_a_network_says_of_the_variance_is_left_out(tmp_path: Path) -> None:
    """Twice the channels, as of pipelines that learn the variance too: their first half is the noise."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    sizes = {"in_channels": 1, "out_channels": 2, "block_out_channels": (8,), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "attention_head_dim": 4}
    unet = UNet2DModel(8, **sizes, **blocks).eval()
    DDPMPipeline(unet, DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "p")
    denoiser, z = load(tmp_path / "p", CPU, k=10), torch.randn(2, 1, 8, 8, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(guided(denoiser, z, 500, None, 1.0), unet(z, 500).sample[:, :1])
    assert reverse(denoiser, z, None, seeded(), scheduler="ddpm", steps=3).shape == (2, 1, 8, 8)


def test_names_that_are_not_those_of_all_classes_are_none(copy: Callable[[str], Path]) -> None:
    index = copy("dit") / "model_index.json"
    whole = json.loads(index.read_text())
    for labels in (["thing"] * 1000, {str(row + 1): "thing" for row in range(1000)}, {"0": "thing"}, 3):
        index.write_text(json.dumps({**whole, "id2label": labels}))
        assert load(index.parent, CPU, k=1000).names is None


def test_text_is_read_without_a_bar(diffusion_folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    logging = pytest.importorskip("transformers").utils.logging
    folder = diffusion_folder("text")
    capfd.readouterr()
    load(folder, CPU, k=10, prompts=[f"one {name}" for name in NAMES])  # read by nobody else
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


def test_text_needs_its_package_and_names(diffusion_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    folder = diffusion_folder("text")
    with pytest.raises(ValueError, match="expected a teacher with class names, found none"):
        load(folder, CPU, k=10)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs the package transformers: pip install 'dfkd\[text2image\]'"):
        load(folder, CPU, k=10, prompts=NAMES)
