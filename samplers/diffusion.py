"""Images from a diffusion model that the user has, led by the teacher at every step where that is asked for.

Led by the teacher, and the mixing of what is still noise: Qi et al.: DiffDFKD. 2025. arXiv:2504.00870. Classes alone,
without the teacher: Li et al.: Is Synthetic Data From Diffusion Models Ready for Knowledge Distillation? 2023.
arXiv:2305.12954. Changed: the gradient goes through the denoiser, where the first authors' code cuts it off; images are
led in batches of mixed classes; a mixed image keeps most of its own and its class.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dfkd.interfaces import Preset
from dfkd.losses import KL
from dfkd.naming import SHOWN, nearest
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch, InputSpec
from generators.pipeline import Denoiser, Scheduler, Steer, described, load, reverse

from .checks import at_least, one_of, paths_as_text, some_rows, true_or_false, weight_or_auto, whole_at_least
from .cutmix import interval
from .ingredients import BatchNormWeight, Disagreement, Look, Objective, OneHot, batchnorm_term
from .pooled import places
from .state import State, Stream

MIXES = 5
"""Parts of the steps, at the beginning of each of which but the first images are mixed."""

_USUAL_SCALE = 2.0


@dataclass(frozen=True)
class Diffusion:
    """It makes its images anew for every draw: `pooled` keeps them.

    folder: a pipeline of the diffusers library, with safetensors: one without classes (DDPM, DDIM), one with (what
    `dfkd train-generator` writes, DiT), or Stable Diffusion. scheduler: the way back from noise, `dpm_solver`, `ddim`
    or `ddpm`. steps: of it, >= 1; `ddpm` wants many. scale: of the classes (1: as they are, 0: none, whatever they are
    called), >= 0; None is 2 where the pipeline knows images without a class too. batch: images made together, >= 1; the
    last batch is smaller, but not where the teacher leads. prompt: for text pipelines, with {} for the name of a class.
    resize: whether images of another size, or grey for coloured, are made to fit; without it they are refused.
    guidance: how far the teacher leads: what is subtracted of the gradient, at each step, >= 0; 0 never asks it.
    one_hot: weight of its cross-entropy against the class, >= 0. batchnorm: weight of the distance to its stored
    statistics, >= 0, or `auto` for a weight scaled to it. adversarial: weight of the disagreement with the student
    where both give the same class, >= 0. warmup: images before that begins, >= 0. cutmix: whether images are mixed
    while they are noise, after each fifth of the steps: a box of up to half of an image comes from another.
    """

    folder: str
    scheduler: Scheduler = "dpm_solver"
    steps: int = 20
    scale: float | None = None
    batch: int = 64
    prompt: str = "a photo of a {}"
    resize: bool = False
    guidance: float = 0.0
    one_hot: float = 1.0
    batchnorm: BatchNormWeight = 0.0
    adversarial: float = 0.0
    warmup: int = 0
    cutmix: bool = False
    name: ClassVar[str] = "diffusion"
    data_free: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        paths_as_text(self, "folder")
        if not isinstance(self.folder, str) or not self.folder:
            raise ValueError(f"folder: expected the path of a diffusers pipeline, found {self.folder!r}")
        one_of(self, get_args(Scheduler), "scheduler")
        whole_at_least(self, 1, "steps", "batch")
        whole_at_least(self, 0, "warmup")
        if self.scale is not None:
            at_least(self, 0.0, "scale")
        if not isinstance(self.prompt, str) or self.prompt.count("{}") != 1 or self.prompt.count("{") != 1:
            raise ValueError(f"prompt: expected text with one {{}} for the class, found {self.prompt!r}")
        true_or_false(self, "resize", "cutmix")
        at_least(self, 0.0, "guidance", "one_hot", "adversarial")
        weight_or_auto(self, "batchnorm")
        if self.guidance > 0.0 and not self._objective(self.warmup).terms:
            raise ValueError("one_hot: expected it, batchnorm or adversarial above 0 with guidance, found none")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)

    def trained_on(self) -> dict[str, Any]:
        """By folder, the data that it was trained on, where it says: what `dfkd train-generator` wrote does."""
        about = described(Path(self.folder))
        return {} if about is None else {self.folder: about["trained_on"]}

    @property
    def uses_student(self) -> bool:
        return self._objective(self.warmup).uses_student

    @property
    def preset(self) -> Preset:
        """Of who leads with the teacher, or of who does not."""
        if self.guidance > 0.0:
            optimiser: dict[str, Any] = {"learning_rate": 0.2, "weight_decay": 5e-4}
            return Preset({"kl": (1.0, KL(temperature=30.0))}, optimiser, batch=256, steps=240 * 196)
        optimiser = {"learning_rate": 0.1, "weight_decay": 1e-4, "schedule": "steps", "milestones": (0.3, 0.6, 0.9)}
        return Preset({"kl": (1.0, KL(temperature=10.0))}, optimiser, batch=256, steps=100 * 782)

    def _objective(self, made: int) -> Objective:
        """After so many images; the adversary is last, so that what comes before it has the same states without it."""
        if self.guidance == 0.0:
            return Objective(())
        adversarial = self.adversarial if made >= self.warmup else 0.0
        return Objective(
            (
                (self.one_hot, OneHot("target")),
                batchnorm_term(self.batchnorm),
                (adversarial, Disagreement("masked_kl")),
            )
        )

    def init(self, problem: Problem, seed: int) -> State:
        spec = problem.spec
        names = spec.class_names
        prompts = None if names is None else [self.prompt.format(name) for name in names]
        if self.scale == 0.0:
            prompts = [""] * spec.num_classes  # none is told, so that none need have a name
        denoiser = load(Path(self.folder), problem.device, spec.num_classes, prompts)
        self._fits(denoiser, spec)
        objective = self._objective(self.warmup)
        terms = objective.init(problem, derive(seed, "terms"), who=self.name) if objective.terms else []
        told = None if self.scale == 0.0 else told_for(denoiser, spec, self.folder, problem.device)
        return State(stream=Stream(seed, problem.device), model=_Model(denoiser, told), terms=terms, made=0)

    def _fits(self, denoiser: Denoiser, spec: InputSpec) -> None:
        """ValueError where settings ask of the pipeline what it cannot do."""
        if denoiser.shape != spec.shape and not self.resize:
            raise ValueError(
                f"folder: expected images {spec.shape}, as the teacher takes, found {denoiser.shape} in "
                f"{self.folder!r}; resize: true makes them fit"
            )
        if {denoiser.shape[0], spec.channels} not in ({spec.channels}, {1, 3}):
            raise ValueError(f"folder: expected {spec.channels} channels, found {denoiser.shape[0]} in {self.folder!r}")
        if denoiser.none is None and self.scale not in (None, 1.0):
            raise ValueError(
                f"scale: expected 1 or None, as {self.folder!r} has not learnt images without a class beside those "
                f"with one, found {self.scale!r}"
            )
        most = int(denoiser.noise.get("num_train_timesteps", 1000))
        if self.steps > most:
            raise ValueError(f"steps: expected at most the {most} that {self.folder!r} has learnt, found {self.steps}")

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        rng = state.stream.advance()
        objective, made = self._objective(state.made), 0
        drawn: list[tuple[Tensor, Tensor | None, Tensor]] = []
        while made < n:
            # the teacher's statistics are those of a whole batch of mixed classes, so that is what it leads
            rows = self.batch if objective.terms else min(self.batch, n - made)
            drawn.append(self._made(state, problem, objective, rows, rng))
            made += rows
        if learn:
            state.made += made
        x = torch.cat([x for x, _, _ in drawn])[:n]
        targets = [target for _, target, _ in drawn if target is not None]
        info = {"loss": torch.stack([loss for _, _, loss in drawn]).mean()} if objective.terms else {}
        return Batch(x, target=torch.cat(targets)[:n] if targets else None, info=info)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss

    def _made(
        self, state: State, problem: Problem, objective: Objective, n: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Pixels (n, c, h, w), the classes aimed at (n,) where any are, the objective of the last clean prediction."""
        model, spec, device = state.model, problem.spec, problem.device
        denoiser, told = model.denoiser, model.told
        aimed = told is not None or (self.one_hot > 0.0 and bool(objective.terms))
        target = places(spec.num_classes, n, rng, device) if aimed else None
        z = torch.randn(n, *denoiser.latent, generator=rng, device=device)
        loss = torch.zeros((), device=device)

        y, scale = None if told is None or target is None else told[target], self.scale
        if y is None and denoiser.none is not None:  # the network's own answer for none
            y, scale = torch.full((n,), denoiser.none, device=device), 1.0

        def back(steer: Steer | None) -> Tensor:
            return reverse(
                denoiser,
                z,
                y,
                rng,
                scheduler=self.scheduler,
                steps=self.steps,
                scale=_USUAL_SCALE if scale is None else scale,
                steer=steer,
                mix=partial(self._mixed, rng) if self.cutmix else None,
            )

        if not objective.terms:
            return fitted(back(None), spec), target, loss
        with objective.watching(problem) as look:
            seen = Seen(loss)
            states = state.terms[: len(objective.terms)]
            x = back(partial(self._lead, objective, states, look, target, spec, seen))
        return fitted(x, spec), target, seen.loss

    def _lead(
        self,
        objective: Objective,
        states: list[Any],
        look: Look,
        target: Tensor | None,
        spec: InputSpec,
        seen: "Seen",
        step: int,
        z: Tensor,
        clean: Tensor,
    ) -> Tensor:
        """(n, *latent): guidance times the gradient, at z, of the objective of the clean prediction.

        Times the rows, over which an objective is a mean: what one image is led by does not depend on how many are.
        """
        del step
        loss = objective(states, look(fitted(clean, spec), target))
        (slope,) = torch.autograd.grad(loss, z)
        seen.loss = loss.detach()
        return self.guidance * len(z) * slope

    def _mixed(self, rng: torch.Generator, step: int, z: Tensor) -> Tensor | None:
        """z (n, c, h, w) where in each row a box is from another row; None where it is not time."""
        if step == 0 or step % max(1, self.steps // MIXES):
            return None
        n, _, height, width = z.shape
        side = (0.5 * torch.rand(n, generator=rng, device=z.device)).sqrt()
        down, across = (interval(length, side, rng) for length in (height, width))
        partner = torch.randperm(n, generator=rng, device=z.device)
        return torch.where(down[:, None, :, None] & across[:, None, None, :], z[partner], z)


class Seen:
    """What the last step was found to be worth, 0-d."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class _Model:
    """The denoiser, and what it is told for each class of the teacher, (k,). It never changes, so nothing is saved."""

    def __init__(self, denoiser: Denoiser, told: Tensor | None) -> None:
        self.denoiser, self.told = denoiser, told

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def fitted(x: Tensor, spec: InputSpec) -> Tensor:
    """Images (n, c, h, w) in [-1, 1] -> pixels of the spec, in its box; differentiable."""
    if x.shape[1] != spec.channels:  # from grey to colours or back
        x = x.expand(-1, spec.channels, -1, -1) if x.shape[1] == 1 else x.mean(dim=1, keepdim=True)
    if x.shape[2:] != spec.shape[1:]:
        x = interpolate(x, spec.shape[1:], mode="bilinear", antialias=True)
    return (spec.middle + 0.5 * spec.span * x).clamp(spec.low, spec.high)


def told_for(denoiser: Denoiser, spec: InputSpec, folder: str, device: torch.device) -> Tensor | None:
    """(k,) int64: the denoiser's class for each of the teacher's, by their names where both have them."""
    if denoiser.classes is None:
        return None
    names, k = denoiser.names, spec.num_classes
    otherwise = "" if denoiser.none is None else "; scale: 0 draws its images without classes"
    if names is None or spec.class_names is None:
        if denoiser.classes != k:
            raise ValueError(
                f"folder: expected a pipeline of {k} classes, as the teacher has, found {denoiser.classes} in "
                f"{folder!r}{otherwise}"
            )
        return torch.arange(k, device=device)
    # a whole name before a synonym; of equal names, as two birds and machines are both cranes, each stays in its place
    known = {synonym.strip(): place for place, name in enumerate(names) for synonym in name.split(",")}
    known |= {name: place for place, name in enumerate(names)}
    for name in spec.class_names:
        if name not in known:
            close = nearest(name, known)
            some = f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            hint = f"; the nearest is {close!r}" if close is not None else f"; it has {some}{otherwise}"
            raise ValueError(
                f"folder: expected the teacher's class {name!r} among the {len(names)} classes of {folder!r}, "
                f"found none of that name{hint}"
            )
    told = [known[name] for name in spec.class_names]
    for place, (its, wanted) in enumerate(zip(names, spec.class_names, strict=False)):
        if its == wanted:
            told[place] = place
    return torch.tensor(told, device=device)
