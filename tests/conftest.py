"""One thread each: on a small machine two torch threads are slower than one, and results are the same everywhere.

And what several folders' tests need: arithmetic in float64, tiny diffusion pipelines with random weights, of each kind
that is read, and a GPU whose host may not wait.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

DIT_CLASSES = 1000
"""As many as diffusers' own DiT pipeline takes every transformer to have."""


def tiny_unet(**options: Any) -> Any:
    """1x8x8 images, or as the options say."""
    from diffusers import UNet2DModel

    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    return UNet2DModel(**{**sizes, **blocks, "attention_head_dim": 4, **options})


def tiny_vae() -> Any:
    """3x8x8 images as 4x4x4 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )


def _ddpm() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(tiny_unet(), DDPMScheduler())


def _ddim() -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler

    return DDIMPipeline(tiny_unet(), DDIMScheduler(beta_schedule="squaredcos_cap_v2"))


def _classes() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(tiny_unet(num_class_embeds=11), DDPMScheduler(timestep_spacing="trailing"))


def _dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=DIT_CLASSES,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    return DiTPipeline(transformer, tiny_vae(), scheduler)


def _tokenizer(folder: Path) -> Any:
    """One that knows the letters, and which of them end a word."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir()
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=16, pad_token="<|endoftext|>")


def _text(folder: Path) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = CLIPTextConfig(
        vocab_size=74,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(words),
        tokenizer=_tokenizer(folder),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """diffusion_folder(kind): a folder with a pipeline that is not to be changed, `ddpm`, `ddim`, `classes` (ten, and
    none), `dit` (a thousand) or `text`."""
    root = tmp_path_factory.mktemp("pipelines")

    @cache
    def made(kind: str) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            makers = {"ddpm": _ddpm, "ddim": _ddim, "classes": _classes, "dit": _dit}
            pipeline = makers[kind]() if kind in makers else _text(root / "tokens")
        pipeline.save_pretrained(root / kind, safe_serialization=True)
        if kind == "dit":  # as published ones have it; saving leaves it out
            index = root / kind / "model_index.json"
            names = {row: f"thing {row}, synonym {row}" for row in range(DIT_CLASSES)}
            index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": names}))
        return root / kind

    return made


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Torch's own generator begins each test alike, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, what is asked for in float32 too.

    Adam's first steps go by the sign of a slope, however small: in float32 the roundings of another processor send some
    weights the other way, and a search that is compared with a loop by hand would have to be forgiven for it. Here both
    are the same to 1e-12 on any.
    """
    before = torch.get_default_dtype()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@contextmanager
def _no_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():  # torch warns that the mode is a prototype, and a warning is an error here
            warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def no_waits() -> AbstractContextManager[None]:
    """Inside, on a GPU, whatever makes the host wait for it raises."""
    return _no_waits()
