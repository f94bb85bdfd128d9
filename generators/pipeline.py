"""A diffusion model in a local folder of the diffusers library: from noise, and a class where it knows any, to images.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models. 2020. arXiv:2006.11239. Classes by Ho, Salimans:
Classifier-Free Diffusion Guidance. 2022. arXiv:2207.12598. The ways back from noise: theirs (`ddpm`); Song, Meng,
Ermon: Denoising Diffusion Implicit Models. 2020. arXiv:2010.02502 (`ddim`, without noise of its own); Lu, Zhou, Bao,
Chen, Li, Zhu: DPM-Solver++. 2022. arXiv:2211.01095 (`dpm_solver`, of second order). Nothing is downloaded, and only
safetensors are read. diffusers is imported when a function needs it, as that takes seconds.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .saved import BESIDE, absent, describe
from .training import Shape, seeded

__all__ = [
    "Denoiser",
    "Scheduler",
    "Steer",
    "described",
    "guided",
    "load",
    "on_pixels",
    "predicted",
    "reverse",
    "schedule",
]

Scheduler = Literal["dpm_solver", "ddim", "ddpm"]

Steer = Callable[[int, Tensor, Tensor], Tensor]
"""(step, z, clean) -> what is subtracted from z; clean, the predicted image in [-1, 1], has its graph back to z."""

_CLASSES: Mapping[Scheduler, str] = {
    "dpm_solver": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
}
_NOISE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample", "clip_sample_range"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
)
"""What a folder's scheduler says of the noise it was trained with; how to go back is the caller's to say."""

_READABLE = "a DDPM or DDIM pipeline (UNet2DModel), a DiT pipeline or a Stable Diffusion pipeline"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Denoiser:
    """A frozen network that predicts what is noise, and all that is needed to ask it.

    network: (z (n, *latent), t (n,) int64, y (n,) int64 or None) -> its output (n, *latent). decode: z -> images
    (n, *shape), [-1, 1] being the box. latent, shape: (c, h, w). classes: how many it can be told, None where none;
    none: the y that stands for no class, where there is one. names: of the classes, where the folder says. noise: the
    schedule that it was trained with, as the settings of a scheduler of diffusers.
    """

    network: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    decode: Callable[[Tensor], Tensor]
    latent: Shape
    shape: Shape
    classes: int | None
    none: int | None
    names: tuple[str, ...] | None
    noise: Mapping[str, Any]


def guided(denoiser: Denoiser, z: Tensor, t: int, y: Tensor | None, scale: float) -> Tensor:
    """The output (n, *latent) for classes y: that without a class plus `scale` times what the class makes of it.

    1 is the network's own answer for the class, for which it is asked once; otherwise it is asked twice.
    """
    time = torch.full((len(z),), t, dtype=torch.int64, device=z.device)
    if y is None or denoiser.none is None or scale == 1.0:
        return denoiser.network(z, time, y)
    without = torch.full_like(y, denoiser.none)
    both = denoiser.network(torch.cat([z, z]), torch.cat([time, time]), torch.cat([y, without]))
    conditional, unconditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def schedule(name: Scheduler, noise: Mapping[str, Any], steps: int) -> Any:
    """A scheduler of diffusers for so many steps of this noise; its tensors stay on the host, so nothing waits."""
    import diffusers

    kind = getattr(diffusers, _CLASSES[name])
    known = inspect.signature(kind.__init__).parameters
    settings = {key: value for key, value in noise.items() if key in _NOISE and key in known}
    if name == "ddpm" and str(noise.get("variance_type", "")).startswith("fixed"):
        settings["variance_type"] = noise["variance_type"]
    if name == "dpm_solver" and noise.get("clip_sample"):  # its word for it: no quantile above 1 is let through
        settings.update(thresholding=True, sample_max_value=noise.get("clip_sample_range", 1.0))
    made = kind(**settings)
    with warnings.catch_warnings():  # it hands tensors to numpy in a way that newer ones warn of
        warnings.simplefilter("ignore", DeprecationWarning)
        made.set_timesteps(steps)
    return made


def reverse(
    denoiser: Denoiser,
    z: Tensor,
    y: Tensor | None,
    rng: torch.Generator,
    *,
    scheduler: Scheduler = "dpm_solver",
    steps: int = 20,
    scale: float = 1.0,
    steer: Steer | None = None,
    mix: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """From noise z (n, *latent) to images (n, *shape) in [-1, 1], detached. y (n,) int64: their classes.

    rng: for the noise that `ddpm` adds. steer: what each step subtracts from z before it is taken; without it no
    gradient is computed. mix: may put another z in the place of z at the beginning of a step.
    """
    plan = schedule(scheduler, denoiser.noise, steps)
    for step, t in enumerate(plan.timesteps.tolist()):  # sync: no, they are the host's
        mixed = None if mix is None else mix(step, z)
        if mixed is not None:
            z = mixed
            if scheduler == "dpm_solver":
                plan.lower_order_nums = 0  # what it remembers is of other images
        with torch.set_grad_enabled(steer is not None):
            z = z.detach().requires_grad_(steer is not None)
            output = guided(denoiser, z, t, y, scale)
            if steer is not None:
                z = z - steer(step, z, denoiser.decode(predicted(plan, z, output, t)))
        z = plan.step(output.detach(), t, z.detach(), generator=rng).prev_sample
    with torch.no_grad():
        return denoiser.decode(z).clamp(-1.0, 1.0)


def predicted(plan: Any, z: Tensor, output: Tensor, t: int) -> Tensor:
    """The clean z that an output at time t means, with the graphs of both."""
    share = plan.alphas_cumprod[t]
    signal, noise = share.sqrt(), (1.0 - share).sqrt()
    kind = plan.config.prediction_type
    clean: Tensor = output
    if kind == "epsilon":
        clean = (z - noise * output) / signal
    elif kind == "v_prediction":
        clean = signal * z - noise * output
    return clean


# -- folders -----------------------------------------------------------------------------------------------------------

_LOADED: "WeakValueDictionary[tuple[Any, ...], Denoiser]" = WeakValueDictionary()
"""What is in use now, so that equal samplers share it: it never changes."""


def load(folder: str | Path, device: torch.device, k: int, prompts: Sequence[str] | None = None) -> Denoiser:
    """The denoiser of a folder, frozen, in float32. ValueError `folder: ...` that names what is missing.

    k: how many classes are wanted; a network that does not say which of its classes stands for none is taken to have
    one if it has k + 1. prompts: one for each class, for a text pipeline. ImportError where that lacks its package.
    """
    folder = Path(folder)
    parts = _parts(folder)
    stamp = tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file())
    key = (stamp, str(device), k, None if prompts is None else tuple(prompts))
    found = _LOADED.get(key)
    if found is None:
        with seeded(0):  # weights are drawn at random before they are read
            found = _loader(folder, parts)(folder, device, k, prompts)
            _try(found, folder, device)
        _LOADED[key] = found
    return found


def _loader(folder: Path, parts: Mapping[str, str]) -> Callable[..., Denoiser]:
    """By what the pipeline is made of, so that variants of one pipeline are read too."""
    if parts.get("unet") == "UNet2DModel" and "vae" not in parts and "vqvae" not in parts:
        return _pixels
    if parts.get("transformer") in ("DiTTransformer2DModel", "Transformer2DModel") and "text_encoder" not in parts:
        return _transformer
    text = parts.get("unet") == "UNet2DConditionModel" and parts.get("text_encoder") == "CLIPTextModel"
    if text and "text_encoder_2" not in parts:
        return _text
    found = ", ".join(f"{name}: {kind}" for name, kind in parts.items()) or "no part"
    raise ValueError(f"folder: expected {_READABLE} in {folder}, found {found}")


def _try(denoiser: Denoiser, folder: Path, device: torch.device) -> None:
    """One step, of a row for the last class and one for none: what fails here fails in any draw."""
    last = None if denoiser.classes is None else denoiser.classes - 1
    y = None if last is None else torch.tensor([last, last if denoiser.none is None else denoiser.none], device=device)
    try:
        for way in _CLASSES:
            schedule(way, denoiser.noise, 1)
        z = torch.randn(2, *denoiser.latent, device=device)
        x = reverse(denoiser, z, y, torch.Generator(device), scheduler="ddim", steps=1)
        if x.shape[1:] != denoiser.shape:
            raise ValueError(f"expected images {denoiser.shape}, found {tuple(x.shape[1:])}")
    except Exception as error:  # parts that do not belong together, and settings of any kind: nobody can foresee them
        raise ValueError(f"folder: cannot draw from {folder}: {_line(error)}") from error


def _parts(folder: Path) -> dict[str, str]:
    """The pipeline's parts and their classes, as model_index.json names them."""
    if not folder.is_dir():
        what = f"a file at {str(folder)!r}" if folder.exists() else f"nothing at {absent(folder)}"
        raise ValueError(f"folder: expected a folder with {_READABLE}, found {what}")
    index = folder / "model_index.json"
    if not index.is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/model_index.json"))
        hint = f"; perhaps {folder / inside[0]} is meant" if inside else ""
        raise ValueError(f"folder: {folder} is no pipeline, as it has no model_index.json{hint}")
    named = _json(index)
    pairs = {key: value for key, value in named.items() if isinstance(value, list) and len(value) == 2}
    return {key: str(value[1]) for key, value in pairs.items() if value[1] is not None}


def _pixels(folder: Path, device: torch.device, k: int, prompts: Any) -> Denoiser:
    """DDPM and DDIM pipelines, and those that this package trains, which are told classes."""
    del prompts
    from diffusers import UNet2DModel

    unet = _model(folder / "unet", UNet2DModel).to(device)
    config, about = unet.config, described(folder)
    shape = (int(config.in_channels), *_sides(config, folder / "unet"))
    rows = config.num_class_embeds
    classes = about["classes"] if about is not None else rows - 1 if rows == k + 1 else rows
    if (classes is None) != (rows is None) or (classes is not None and rows not in (classes, classes + 1)):
        raise ValueError(f"folder: {folder / BESIDE} speaks of {classes} classes, and the unet has rows for {rows}")
    names = None if about is None or about["class_names"] is None else tuple(about["class_names"])
    return on_pixels(unet, shape, classes, rows, names, _noise(folder, latent=False))


def on_pixels(
    unet: Any, shape: Shape, classes: int | None, rows: int | None, names: Any, noise: Mapping[str, Any]
) -> Denoiser:
    """A UNet2DModel on pixels (c, h, w), with a table of `rows` classes or without; one beyond `classes` is none."""

    def network(z: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        output: Tensor = unet(z, t, class_labels=y).sample
        return output[:, : shape[0]]  # what some say of the variance comes behind

    none = classes if rows is not None and classes is not None and rows > classes else None
    return Denoiser(network, lambda z: z, shape, shape, classes, none, names, noise)


def _transformer(folder: Path, device: torch.device, k: int, prompts: Any) -> Denoiser:
    """DiT pipelines: latents of an autoencoder, told classes, of which the one beyond the last is none."""
    del k, prompts
    from diffusers import DiTTransformer2DModel

    transformer = _model(folder / "transformer", DiTTransformer2DModel).to(device)
    decode, scale = _decoder(folder, device)
    config = transformer.config
    channels, classes = int(config.in_channels), int(config.num_embeds_ada_norm)
    height, width = _sides(config, folder / "transformer")
    labels, rows = _json(folder / "model_index.json").get("id2label"), [str(row) for row in range(classes)]
    names = tuple(str(labels[row]) for row in rows) if isinstance(labels, dict) and set(labels) == set(rows) else None

    def network(z: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        output: Tensor = transformer(z, timestep=t, class_labels=y).sample
        return output[:, :channels]  # what it says of the variance comes behind

    latent, shape = (channels, height, width), (3, height * scale, width * scale)
    return Denoiser(network, decode, latent, shape, classes, classes, names, _noise(folder, latent=True))


def _text(folder: Path, device: torch.device, k: int, prompts: Sequence[str] | None) -> Denoiser:
    """Stable Diffusion: latents of an autoencoder, told one prompt for each class, the empty one for none."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"folder: {folder} is a text pipeline, which needs the package transformers: pip install 'dfkd[text2image]'"
        ) from error
    from diffusers import UNet2DConditionModel

    if prompts is None:
        raise ValueError(
            f"folder: {folder} is a text pipeline, which is told classes by their names; expected a teacher with "
            "class names, found none"
        )
    unet = _model(folder / "unet", UNet2DConditionModel).to(device)
    decode, scale = _decoder(folder, device)
    with _quiet(transformers):
        encoder = _model(folder / "text_encoder", transformers.CLIPTextModel, "model.safetensors")
    tokenizer = _read(transformers.CLIPTokenizer, folder / "tokenizer")
    words = tokenizer(
        [*prompts, ""],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        table = encoder(words.input_ids)[0].to(device)  # (k + 1, tokens, d)

    def network(z: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        output: Tensor = unet(z, t, encoder_hidden_states=table[y]).sample
        return output

    height, width = _sides(unet.config, folder / "unet")
    latent, shape = (int(unet.config.in_channels), height, width), (3, height * scale, width * scale)
    return Denoiser(network, decode, latent, shape, k, k, None, _noise(folder, latent=True))


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Inside, it shows no bar of its own, not in a pipe either."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _decoder(folder: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], int]:
    """The autoencoder's way from latents to images, and how many pixels a side of a latent becomes."""
    from diffusers import AutoencoderKL

    vae = _model(folder / "vae", AutoencoderKL).to(device)
    vae.encoder, vae.quant_conv = None, None  # never asked
    scaling, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0

    def decode(z: Tensor) -> Tensor:
        image: Tensor = vae.decode(z / scaling + shift).sample
        return image

    return decode, 2 ** (len(vae.config.block_out_channels) - 1)


def _sides(config: Any, folder: Path) -> tuple[int, int]:
    """Height and width of what a network is given."""
    found = config.sample_size
    sides = list(found) if isinstance(found, (list, tuple)) else [found, found]
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"folder: expected a sample_size in {folder / 'config.json'}, found {found!r}")
    return sides[0], sides[1]


def _noise(folder: Path, latent: bool) -> Mapping[str, Any]:
    """What the folder's scheduler says; only schedules of betas, with a prediction that is understood.

    latent: whether there is no box, so that nothing is clipped where it does not say.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise ValueError(f"folder: expected {path}, found none")
    noise = _json(path)
    kind = noise.get("prediction_type", "epsilon")
    if "beta_schedule" not in noise or kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(
            f"folder: expected a scheduler with a schedule of betas and a prediction of epsilon, sample or "
            f"v_prediction, found {noise.get('_class_name')} with {kind} in {path}"
        )
    return {"clip_sample": not latent, **noise}


def _model(folder: Path, kind: Any, name: str = _WEIGHTS) -> Any:
    """A network from its folder, in float32, frozen and in evaluation mode; every weight must have been there."""
    _weights(folder, name)
    options = {"use_safetensors": True} | ({"low_cpu_mem_usage": False} if name == _WEIGHTS else {})
    model, told = _read(kind, folder, output_loading_info=True, **options)
    for what in ("missing_keys", "mismatched_keys"):
        if told.get(what):
            first = sorted(map(str, told[what]))[0]
            raise ValueError(f"folder: the weights of {folder} are incomplete ({what[:-5]}: {first})")
    return model.float().eval().requires_grad_(False)


def _weights(folder: Path, name: str) -> None:
    """ValueError where a part has no configuration, or no weights that can be read without a pickle."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder: expected {folder / 'config.json'}, found none")
    _json(folder / "config.json")
    if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
        return
    pickled = sorted(path.name for suffix in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(suffix))
    if pickled:
        raise ValueError(
            f"folder: {folder / pickled[0]} holds pickled objects, which could run code; expected {name}: load the "
            "pipeline where you trust it and save it with safe_serialization=True"
        )
    others = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise ValueError(f"folder: expected weights {folder / name}, found {others}")


def _read(kind: Any, folder: Path, **options: Any) -> Any:
    """from_pretrained, with whatever goes wrong in one line."""
    if not folder.is_dir():
        raise ValueError(f"folder: expected {folder}, found none")
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # settings and bytes that are none make the reader stumble in any way
        raise ValueError(f"folder: cannot read {folder} as {kind.__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def described(folder: Path) -> dict[str, Any] | None:
    """What this package wrote beside the pipeline, where it is one of its own."""
    if not folder.exists():
        raise ValueError(f"folder: no such folder: {absent(folder)}")
    try:
        return describe(folder) if (folder / BESIDE).is_file() else None
    except ValueError as error:
        raise ValueError(f"folder: {str(error).removeprefix('file: ')}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"folder: {path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"folder: expected names and values in {path}, found {type(found).__name__}")
    return found
