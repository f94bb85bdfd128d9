"""A few steps of a generator a round, from a start that learns to need no more, and a bank of all it has made.

Fang, Mo, Wang, Song, Bei, Zhang, Song: Up to 100x Faster Data-Free Knowledge Distillation. 2022. arXiv:2112.06253.
Changed: the bank's images are kept as bytes on the device; at sizes other than 32 the crop's border is an eighth of the
side, 4 at 32; for numbers of steps they did not publish the learning rates are those of the nearest; the adversary
begins after the warm-up, theirs in its last round; the preset's rate falls to 0, theirs to 2e-4. Left out: their
network and settings for images of 224 pixels, with latents kept over rounds.
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from dfkd.interfaces import Preset, Sampler
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch
from generators.trunk import Width

from .checks import at_least, between, one_of, positive, true_or_false, weight_or_auto, whole_at_least
from .ingredients import (
    BatchNormWeight,
    Best,
    Disagreement,
    Meta,
    MetaStep,
    Objective,
    OneHot,
    TrunkNetwork,
    banked,
    batchnorm_term,
    built,
    cropped,
    descend,
    redraw_first,
    unfound,
)
from .state import State

RATES = {2: (5e-3, 0.015), 5: (3e-3, 0.01), 10: (2e-3, 0.01)}
"""Published learning rates of the generator and of its latents, by the steps of a round."""


@dataclass(frozen=True)
class FastDFKD:
    """steps: of the generator and its latents in a round, >= 1; 2, 5 and 10 are published. latent: length of the
    generator's input, >= 1. width: of its trunk, `small` or `large`. generator_rate: Adam's for the generator, > 0, or
    None for the published one. latent_rate: the same for its latents. meta: how a round moves the next one's start,
    `fomaml` (the sum of the steps' gradients) or `reptile` (the way back from the round's end). meta_rate: Adam's for
    it, > 0; None takes steps times the generator's. batch: images in a round, >= 2.
    batchnorm: weight of the distance to the teacher's stored statistics, >= 0, or `auto` for a weight scaled to the
    teacher: 10 is theirs, for CIFAR nets. momentum: what earlier rounds' statistics count in it, in [0, 1). one_hot:
    weight of the cross-entropy against the class drawn, >= 0. adversarial: weight of the disagreement with the student
    where both give the same class, >= 0. Theirs are 0.5 and 1.33 for a ResNet-34, 0.4 and 1.1 for wide ResNets.
    warmup: rounds before the first draw, without the adversary, >= 0. every: draws from one round to the next, >= 1.
    redraw_at: the round, counted from 1, before which the generator's first layer is drawn anew, or None. capacity:
    most images kept, None keeps all. crop: black pixels around an image, of which a window is cut, shown to the teacher
    and to the student; 0 is off, None takes an eighth of the side. flip: whether half of them are mirrored; turn it off
    where a mirrored image means something else.
    """

    steps: int = 5
    latent: int = 256
    width: Width = "small"
    generator_rate: float | None = None
    latent_rate: float | None = None
    meta: MetaStep = "fomaml"
    meta_rate: float | None = None
    batch: int = 256
    batchnorm: BatchNormWeight = 10.0
    momentum: float = 0.9
    one_hot: float = 0.5
    adversarial: float = 1.33
    warmup: int = 20
    every: int = 400
    redraw_at: int | None = 140
    capacity: int | None = None
    crop: int | None = None
    flip: bool = True
    name: ClassVar[str] = "fast_dfkd"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    preset: ClassVar[Preset] = Preset(
        objective={"kl": (1.0, KL(temperature=20.0))},
        optimiser={"learning_rate": 0.2, "weight_decay": 1e-4},
        batch=256,
        steps=80_000,
    )

    def __post_init__(self) -> None:
        true_or_false(self, "flip")
        whole_at_least(self, 1, "steps", "latent", "every")
        whole_at_least(self, 2, "batch")
        whole_at_least(self, 0, "warmup")
        one_of(self, get_args(Width), "width")
        one_of(self, get_args(MetaStep), "meta")
        for name in ("generator_rate", "latent_rate", "meta_rate"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.redraw_at is not None:
            whole_at_least(self, 1, "redraw_at")
        weight_or_auto(self, "batchnorm")
        at_least(self, 0.0, "one_hot", "adversarial")
        between(self, 0.0, 0.999, "momentum")
        if not self._objective(0).terms:
            raise ValueError("one_hot: expected it or batchnorm above 0, found nothing to look for in the first rounds")
        _ = self.bank  # it checks what is left

    @property
    def uses_student(self) -> bool:
        return self.adversarial > 0.0

    @property
    def rates(self) -> tuple[float, float, float]:
        """Of the generator, of its latents, and of the start that rounds share."""
        generator, latent = RATES[min(RATES, key=lambda steps: abs(steps - self.steps))]
        generator = generator if self.generator_rate is None else self.generator_rate
        latent = latent if self.latent_rate is None else self.latent_rate
        return generator, latent, self.steps * generator if self.meta_rate is None else self.meta_rate

    def _objective(self, rounds: int) -> Objective:
        """After so many rounds; the adversary is last, so that what comes before it has the same states without it."""
        adversarial = self.adversarial if rounds >= self.warmup else 0.0
        return Objective(
            (
                batchnorm_term(self.batchnorm, momentum=self.momentum),
                (self.one_hot, OneHot("target")),
                (adversarial, Disagreement("masked_kl")),
            )
        )

    # -- rounds --------------------------------------------------------------------------------------------------

    def begin(self, problem: Problem, seed: int) -> State:
        terms = self._objective(self.warmup).init(problem, derive(seed, "terms"), who=self.name)
        network = TrunkNetwork(self.latent, self.width)
        start = built(network.build, problem, derive(seed, "generator"), self.name)
        return State(terms=terms, start=Meta(start, self.rates[2], self.meta), rounds=0)

    def round(self, state: State, problem: Problem, rng: torch.Generator) -> Batch:
        spec, start = problem.spec, state.start
        if state.rounds + 1 == self.redraw_at:
            redraw_first(start.network, rng)
        z = torch.randn(self.batch, self.latent, generator=rng, device=problem.device).requires_grad_(True)
        target = torch.randint(spec.num_classes, (self.batch,), generator=rng, device=problem.device)
        objective, best, generator = self._objective(state.rounds), Best(unfound(problem, self.batch)), start.begin()
        groups = [{"params": generator.parameters(), "lr": self.rates[0]}, {"params": [z], "lr": self.rates[1]}]
        descend(
            problem,
            objective,
            state.terms[: len(objective.terms)],
            make=lambda: generator(z),
            optimiser=torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True),
            steps=self.steps,
            target=target,
            view=cropped(rng, spec, self.crop, self.flip),
            after=lambda: start.collect(generator),
            best=best,
        )
        start.end(generator)
        state.rounds += 1
        return Batch(best.x, target=target, info={"loss": best.loss})

    # -- the sampler ---------------------------------------------------------------------------------------------

    @property
    def bank(self) -> Sampler:
        return banked(
            self,
            rows=self.batch,
            every=self.every,
            warmup=self.warmup + 1,  # those of the warm-up, and the one that the first draws are for
            capacity=self.capacity,
            crop=self.crop,
            flip=self.flip,
        )

    def init(self, problem: Problem, seed: int) -> State:
        state: State = self.bank.init(problem, seed)
        return state

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self.bank.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.bank.observe(state, batch, loss)
