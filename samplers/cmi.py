"""Images of a generator that begins anew every round, told apart from all it has made before, in a bank that grows.

Fang, Song, Wang, Shen, Wang, Song: Contrastive Model Inversion for Data-Free Knowledge Distillation. 2021.
arXiv:2105.08584. Changed: features are of all BatchNorm layers for every teacher (theirs take fewer for ResNets), those
in the bank are of views drawn once more after the round, and images are kept as bytes on the device.
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

from .checks import at_least, one_of, positive, true_or_false, weight_or_auto, whole_at_least
from .ingredients import (
    BatchNormWeight,
    Best,
    Contrast,
    Disagreement,
    Objective,
    OneHot,
    TrunkNetwork,
    banked,
    batchnorm_term,
    built,
    cropped,
    descend,
    redraw,
    unfound,
)
from .state import State


@dataclass(frozen=True)
class CMI:
    """steps: of the generator and its latents in a round, >= 1. latent: length of the generator's input, >= 1. width:
    of its trunk, `small` or `large`. learning_rate: Adam's for the generator, its latents and the contrastive head,
    > 0. batch: images in a round, >= 2.
    batchnorm: weight of the distance to the teacher's stored statistics, >= 0, or `auto` for a weight scaled to the
    teacher: 1 is theirs, for CIFAR nets. one_hot: weight of the cross-entropy against the class drawn, >= 0.
    adversarial: weight of the disagreement with the student where both give the same class, >= 0. contrast: weight of
    telling an image's views from those of all others, >= 0. temperature: of that term, > 0. features: most images whose
    features it remembers, >= 0; of a wide ResNet-40-2 they take 22 kB each. negatives: how many of them a step draws,
    >= 0. projection: length of what its head gives, >= 1.
    warmup: rounds before the first draw, >= 1. every: draws from one round to the next, >= 1. capacity: most images
    kept, None keeps all. crop: black pixels around an image, of which a window is cut, shown to the teacher and to the
    student; 0 is off, None takes an eighth of the side. flip: whether half of them are mirrored; turn it off where a
    mirrored image means something else.
    """

    steps: int = 200
    latent: int = 256
    width: Width = "small"
    learning_rate: float = 1e-3
    batch: int = 256
    batchnorm: BatchNormWeight = 1.0
    one_hot: float = 1.0
    adversarial: float = 0.5
    contrast: float = 0.8
    temperature: float = 0.1
    features: int = 40_960
    negatives: int = 4096
    projection: int = 256
    warmup: int = 1
    every: int = 400
    capacity: int | None = None
    crop: int | None = None
    flip: bool = True
    name: ClassVar[str] = "cmi"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    preset: ClassVar[Preset] = Preset(
        objective={"kl": (1.0, KL(temperature=20.0))},
        optimiser={"learning_rate": 0.1, "weight_decay": 1e-4},
        batch=128,
        steps=80_000,
    )

    def __post_init__(self) -> None:
        true_or_false(self, "flip")
        whole_at_least(self, 1, "steps", "latent", "projection", "warmup", "every")
        whole_at_least(self, 2, "batch")
        whole_at_least(self, 0, "features", "negatives")
        one_of(self, get_args(Width), "width")
        positive(self, "learning_rate", "temperature")
        weight_or_auto(self, "batchnorm")
        at_least(self, 0.0, "one_hot", "adversarial", "contrast")
        if not self.objective.terms:
            raise ValueError("one_hot: expected at least one weight above 0, found none")
        _ = self.bank  # it checks what is left

    @property
    def uses_student(self) -> bool:
        return self.objective.uses_student

    @property
    def objective(self) -> Objective:
        contrast = Contrast(
            temperature=self.temperature,
            bank=self.features,
            negatives=self.negatives,
            projection=self.projection,
            learning_rate=self.learning_rate,
            flip=self.flip,
        )
        return Objective(
            (
                batchnorm_term(self.batchnorm),
                (self.one_hot, OneHot("target")),
                (self.adversarial, Disagreement("masked_kl")),
                (self.contrast, contrast),
            )
        )

    # -- rounds --------------------------------------------------------------------------------------------------

    def begin(self, problem: Problem, seed: int) -> State:
        terms = self.objective.init(problem, derive(seed, "terms"), who=self.name)
        network = TrunkNetwork(self.latent, self.width)
        generator = built(network.build, problem, derive(seed, "generator"), self.name)
        return State(terms=terms, generator=generator.train())

    def round(self, state: State, problem: Problem, rng: torch.Generator) -> Batch:
        spec, generator = problem.spec, state.generator
        redraw(generator, rng)  # all of it: what the rounds share is the head and the features it remembers
        z = torch.randn(self.batch, self.latent, generator=rng, device=problem.device).requires_grad_(True)
        target = torch.randint(spec.num_classes, (self.batch,), generator=rng, device=problem.device)
        best = Best(unfound(problem, self.batch))
        descend(
            problem,
            self.objective,
            state.terms,
            make=lambda: generator(z),
            optimiser=torch.optim.Adam(
                [*generator.parameters(), z], lr=self.learning_rate, betas=(0.5, 0.999), fused=True
            ),
            steps=self.steps,
            target=target,
            view=cropped(rng, spec, self.crop, self.flip),
            best=best,
        )
        return Batch(best.x, target=target, info={"loss": best.loss})

    # -- the sampler ---------------------------------------------------------------------------------------------

    @property
    def bank(self) -> Sampler:
        return banked(
            self,
            rows=self.batch,
            every=self.every,
            warmup=self.warmup,
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
