"""A generator of images trained against a spectrally normalised critic: it learns from data what the data looks like.

Miyato, Kataoka, Koyama, Yoshida: Spectral Normalization for Generative Adversarial Networks. 2018. arXiv:1802.05957,
with the settings of Stanton, Izmailov, Kirichenko, Alemi, Wilson: Does Knowledge Distillation Really Work? 2021.
arXiv:2106.05945. Classes as in Miyato, Koyama: cGANs with Projection Discriminator. 2018. arXiv:1802.05637. Changed:
images are drawn from a moving average of the generator, and smaller networks learn small images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .saved import describe, read_tensors, write
from .sn_gan import SNCritic, SNGenerator
from .training import Box, MovingAverage, Shape, seeded

__all__ = ["FILE", "SNGAN", "critic_loss", "generator_loss", "load"]

FILE = "generator.safetensors"

SMALL = 16
"""Images of up to this many pixels a side are learnt in fewer steps by smaller networks, where nothing else is said."""

_PUBLISHED = {"width": 256, "critic_width": 128, "critic_steps": 5, "learning_rate": 2e-4}
_SMALL = {"width": 32, "critic_width": 32, "critic_steps": 1, "learning_rate": 5e-3}
_BETAS = (0.0, 0.9)


@dataclass(frozen=True)
class SNGAN:
    """latent: length of z, >= 1. width: channels of the generator, >= 1; critic_width: those of the critic, >= 1;
    critic_steps: its steps for each of the generator's, >= 1; learning_rate: both Adams' at the start, > 0; None takes
    256, 128, 5 and 2e-4, as published, and for images of up to 16 pixels a side 32, 32, 1 and 5e-3. last_rate: what the
    learning rate has fallen to, linearly, in the last step, > 0. ema: what the averaged generator keeps of itself in a
    step, in [0, 1); 0 for none.
    """

    latent: int = 128
    width: int | None = None
    critic_width: int | None = None
    critic_steps: int | None = None
    learning_rate: float | None = None
    last_rate: float = 1e-6
    ema: float = 0.999
    name: ClassVar[str] = "sn_gan"

    def __post_init__(self) -> None:
        for name in ("latent", "width", "critic_width", "critic_steps"):
            value = getattr(self, name)
            if value is None and name in _PUBLISHED:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")
        for name in ("learning_rate", "last_rate"):
            value = getattr(self, name)
            if not (value is None and name in _PUBLISHED) and not 0.0 < value < float("inf"):
                raise ValueError(f"{name}: expected a number > 0, found {value!r}")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema: expected a number in [0, 1), found {self.ema!r}")

    def usual(self, shape: Shape) -> tuple[int, int]:
        return (2000, 32) if _small(shape) else (100_000, 128)

    def fitted(self, shape: Shape) -> "SNGAN":
        """These settings with those that are None as images of this shape take them."""
        usual: dict[str, Any] = _SMALL if _small(shape) else _PUBLISHED
        return replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of this of `steps` steps, counted from 0."""
        assert self.learning_rate is not None  # fitted
        return self.learning_rate + (self.last_rate - self.learning_rate) * step / max(1, steps - 1)

    def generator(self, shape: Shape, classes: int | None, box: Box) -> SNGenerator:
        width = self.fitted(shape).width
        assert width is not None
        return SNGenerator(shape, self.latent, width, classes, low=box[0], high=box[1])

    def critic(self, shape: Shape, classes: int | None, box: Box) -> SNCritic:
        width = self.fitted(shape).critic_width
        assert width is not None
        return SNCritic(shape, width, classes, low=box[0], high=box[1])

    def init(
        self, shape: Shape, classes: int | None, box: Box, steps: int, device: torch.device, seed: int
    ) -> "Adversaries":
        with seeded(seed):
            generator = self.generator(shape, classes, box)
            critic = self.critic(shape, classes, box)
        return Adversaries(self.fitted(shape), generator.to(device), critic.to(device), steps)


class Adversaries:
    """Generator, its average, and critic, with their optimisers, by settings that are fitted. See training.Trainee."""

    def __init__(self, settings: SNGAN, generator: SNGenerator, critic: SNCritic, steps: int) -> None:
        self.settings, self.generator, self.critic = settings, generator.train(), critic.train()
        self.average = MovingAverage(generator, settings.ema)
        self.steps, self.taken = steps, 0
        self._ways = [
            torch.optim.Adam(network.parameters(), lr=settings.rate(0, steps), betas=_BETAS, fused=True)
            for network in (generator, critic)
        ]

    @property
    def batches(self) -> int:
        assert self.settings.critic_steps is not None  # fitted
        return self.settings.critic_steps

    def step(self, batches: Sequence[tuple[Tensor, Tensor | None]], rng: torch.Generator) -> dict[str, Tensor]:
        """A step of the critic on each batch, then one of the generator for as many rows of the last one's classes."""
        rate = self.settings.rate(self.taken, self.steps)
        for way in self._ways:
            for group in way.param_groups:
                group["lr"] = rate
        for x, y in batches:
            judged = self._teach_critic(x, y, rng)
        x, y = batches[-1]
        fooled = self._teach_generator(len(x), y, rng)
        self.average.update(self.generator)
        self.taken += 1
        return {"critic": judged, "generator": fooled}

    def _teach_critic(self, x: Tensor, y: Tensor | None, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            made = self.generator(self._latents(len(x), rng), y)
        # asked once about all rows, as no row's score depends on another
        both = self.critic(torch.cat([x, made]), None if y is None else torch.cat([y, y]))
        loss = critic_loss(both[: len(x)], both[len(x) :])
        self._descend(loss, self._ways[1])
        return loss.detach()

    def _teach_generator(self, n: int, y: Tensor | None, rng: torch.Generator) -> Tensor:
        self.critic.requires_grad_(False)
        loss = generator_loss(self.critic(self.generator(self._latents(n, rng), y), y))
        self.critic.requires_grad_(True)
        self._descend(loss, self._ways[0])
        return loss.detach()

    def _descend(self, loss: Tensor, way: torch.optim.Optimizer) -> None:
        way.zero_grad(set_to_none=True)
        loss.backward()
        way.step()

    def _latents(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(n, self.generator.latent, generator=rng, device=rng.device)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None, rng: torch.Generator) -> Tensor:
        made: Tensor = self.average.network(self._latents(n, rng), y)
        return made

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "average": self.average.state_dict(),
            "ways": [way.state_dict() for way in self._ways],
            "taken": self.taken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        self.average.load_state_dict(state["average"])
        for way, saved in zip(self._ways, state["ways"], strict=True):
            way.load_state_dict(saved)
        self.taken = int(state["taken"])

    def save(self, out: Path, description: Mapping[str, Any]) -> Path:
        """One file; of the networks only the averaged generator, which is all that images are drawn from.

        Its options are described as they were fitted, so that the file stays readable where what is usual changes.
        """
        write(out / FILE, self.average.network.state_dict(), {**description, "options": asdict(self.settings)})
        return out / FILE


# -- the two losses ----------------------------------------------------------------------------------------------------


def critic_loss(real: Tensor, made: Tensor) -> Tensor:
    """Hinge: scores (n,) of real images below 1, and of made ones above -1, cost what they lack; a mean over rows."""
    return (1.0 - real).relu().mean() + (1.0 + made).relu().mean()


def generator_loss(made: Tensor) -> Tensor:
    """Minus the critic's mean score (n,) of made images."""
    return -made.mean()


# -- saved ones --------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> tuple[SNGenerator, dict[str, Any]]:
    """The generator of a file, on the CPU, in evaluation mode and frozen, and its description.

    ValueError `file: ...` in one line for what is no such file.
    """
    about = describe(path)
    if about["kind"] != SNGAN.name:
        raise ValueError(f"file: expected a generator of kind {SNGAN.name}, found {about['kind']} in {path}")
    shape, classes = about["shape"], about["classes"]
    try:
        with seeded(0):  # weights are drawn, to be replaced; the global generators must not notice
            generator = SNGAN(**about["options"]).generator(shape, classes, (about["low"], about["high"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"file: {path} describes a generator that cannot be built ({error})") from error
    try:
        generator.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"file: the weights of {path} are not those that it describes ({reason})") from error
    return generator.eval().requires_grad_(False), about


def _small(shape: Shape) -> bool:
    return max(shape[1:]) <= SMALL
