"""A small network that learns to tell noise from images, told their classes or not; images come from it step by step.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models. 2020. arXiv:2006.11239: the noise is predicted, at times
drawn evenly. Classes are left out for some rows, so that one network knows images with and without them: Ho, Salimans:
Classifier-Free Diffusion Guidance. 2022. arXiv:2207.12598. Changed: smaller networks. It is saved as a DDPMPipeline of
the diffusers library, which loads it too; that library draws from it where it was told no classes.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from .pipeline import Denoiser, on_pixels, reverse
from .saved import BESIDE, check
from .training import Box, MovingAverage, Shape, seeded

__all__ = ["FOLDER", "NOISE", "Denoising", "Diffusion"]

FOLDER = "generator"

NOISE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "timestep_spacing": "trailing",  # few steps begin at the noise too
}
"""The schedule of noise that is trained with; what is a share of all noise is a time below 1000."""

_GROUPS = 8
_PICTURE_STEPS = 20


@dataclass(frozen=True)
class Diffusion:
    """channels: at full size, at half of it, and so on, each a multiple of 8. blocks: residual blocks at each size,
    >= 1; the smallest has attention too. learning_rate: AdamW's, > 0, reached over the first hundredth of the steps and
    falling to 0 over a cosine. unlabelled: the share of rows that are not told their class, in [0, 1). ema: what the
    averaged network keeps of itself in a step, in [0, 1); 0 for none. scale: of the classes in pictures drawn while it
    learns, >= 0; who draws from the saved one says their own.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    learning_rate: float = 2e-3
    unlabelled: float = 0.1
    ema: float = 0.999
    scale: float = 2.0
    name: ClassVar[str] = "diffusion"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        whole = [self.blocks, *self.channels]
        if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in whole):
            raise ValueError(f"channels: expected them and blocks to be integers >= 1, found {self.channels!r}")
        if not self.channels or any(count % _GROUPS for count in self.channels):
            raise ValueError(f"channels: expected multiples of {_GROUPS}, found {self.channels!r}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate: expected a number > 0, found {self.learning_rate!r}")
        for name in ("unlabelled", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected a number in [0, 1), found {getattr(self, name)!r}")
        if not 0.0 <= self.scale < float("inf"):
            raise ValueError(f"scale: expected a number >= 0, found {self.scale!r}")

    def usual(self, shape: Shape) -> tuple[int, int]:
        return (4000, 64) if max(shape[1:]) <= 16 else (3400, 64)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of this of `steps` steps, counted from 0."""
        warmup = max(1, steps // 100)
        return self.learning_rate * min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    def network(self, shape: Shape, classes: int | None) -> Any:
        """A UNet2DModel for such images; its table of classes has one row more, for none."""
        from diffusers import UNet2DModel

        count, least = len(self.channels), 2 ** (len(self.channels) - 1)
        if any(side % least for side in shape[1:]):
            raise ValueError(
                f"shape: expected sides that are multiples of {least}, as there are channels at {count} sizes, "
                f"found {shape!r}"
            )
        return UNet2DModel(
            sample_size=tuple(shape[1:]),
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=self.channels,
            layers_per_block=self.blocks,
            down_block_types=("DownBlock2D",) * (count - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (count - 1),
            norm_num_groups=_GROUPS,
            attention_head_dim=_GROUPS,
            num_class_embeds=None if classes is None else classes + 1,
        )

    def init(
        self, shape: Shape, classes: int | None, box: Box, steps: int, device: torch.device, seed: int
    ) -> "Denoising":
        with seeded(seed):
            network = self.network(shape, classes)
        return Denoising(self, network.to(device), shape, classes, box, steps)


class Denoising:
    """The network, its average and its optimiser. See training.Trainee."""

    def __init__(
        self, settings: Diffusion, network: Any, shape: Shape, classes: int | None, box: Box, steps: int
    ) -> None:
        self.settings, self.network = settings, network.train()
        self.average = MovingAverage(network, settings.ema)
        self.shape, self.classes, self.steps = shape, classes, steps
        self.low, self.high = box
        self.taken = 0
        self._way = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
        self._shares = shares().to(next(network.parameters()).device)

    @property
    def batches(self) -> int:
        return 1

    def step(self, batches: Sequence[tuple[Tensor, Tensor | None]], rng: torch.Generator) -> dict[str, Tensor]:
        ((x, y),) = batches
        for group in self._way.param_groups:
            group["lr"] = self.settings.rate(self.taken, self.steps)
        noise, time = torch.empty_like(x).normal_(generator=rng), self._times(len(x), rng)
        told = None if self.classes is None else self._told(y, len(x), rng)
        z = noised((x - self.low) * (2.0 / (self.high - self.low)) - 1.0, noise, self._shares[time])
        loss = (self.network(z, time, class_labels=told).sample - noise).square().mean()
        self._way.zero_grad(set_to_none=True)
        loss.backward()
        self._way.step()
        self.average.update(self.network)
        self.taken += 1
        return {"noise": loss.detach()}

    def _times(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) int64: one anywhere in each n-th of the times, so that every batch sees all of them alike."""
        places = (torch.arange(n, device=rng.device) + torch.rand(n, generator=rng, device=rng.device)) / n
        return (places * len(self._shares)).long().clamp(max=len(self._shares) - 1)

    def _told(self, y: Tensor | None, n: int, rng: torch.Generator) -> Tensor:
        """(n,) int64: the classes as the network is told them, some of them none."""
        assert self.classes is not None  # it has a table
        if y is None:
            return torch.full((n,), self.classes, device=rng.device)
        left_out = torch.rand(n, generator=rng, device=rng.device) < self.settings.unlabelled
        return y.masked_fill(left_out, self.classes)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None, rng: torch.Generator) -> Tensor:
        if y is None and self.classes is not None:
            y = torch.full((n,), self.classes, device=rng.device)
        z = torch.randn(n, *self.shape, generator=rng, device=rng.device)
        x = reverse(self.denoiser, z, y, rng, steps=_PICTURE_STEPS, scale=self.settings.scale)
        return (self.low + (self.high - self.low) * 0.5 * (x + 1.0)).clamp(self.low, self.high)

    @property
    def denoiser(self) -> Denoiser:
        """The averaged network as it is drawn from."""
        rows = None if self.classes is None else self.classes + 1
        return on_pixels(self.average.network, self.shape, self.classes, rows, None, NOISE)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "way": self._way.state_dict(),
            "taken": self.taken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._way.load_state_dict(state["way"])
        self.taken = int(state["taken"])

    def save(self, out: Path, description: Mapping[str, Any]) -> Path:
        """A folder: the averaged network and its noise as a DDPMPipeline, and the description beside."""
        from diffusers import DDPMPipeline, DDPMScheduler

        text = json.dumps(check(dict(description), out / FOLDER), allow_nan=False, indent=1)
        draft, place = out / f".{FOLDER}.{os.getpid()}.tmp", out / FOLDER
        try:
            pipeline = DDPMPipeline(self.average.network, DDPMScheduler(**NOISE))
            pipeline.save_pretrained(draft, safe_serialization=True)
            (draft / BESIDE).write_text(text + "\n", encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)  # of a run that was ended before it was done
            draft.rename(place)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"file: cannot write {place}: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return place


def shares() -> Tensor:
    """(1000,): at each time of NOISE, the share of the variance that is the image's."""
    betas = torch.linspace(NOISE["beta_start"], NOISE["beta_end"], NOISE["num_train_timesteps"], dtype=torch.float64)
    return (1.0 - betas).cumprod(dim=0).float()


def noised(clean: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """(n, c, h, w): images in [-1, 1] with noise, so that the image's share of the variance is share (n,)."""
    share = share[:, None, None, None]
    return share.sqrt() * clean + (1.0 - share).sqrt() * noise
