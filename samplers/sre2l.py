"""A fixed set of images recovered from the teacher first, then taught from as crops pasted into one another.

Yin, Xing, Shen: Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective. 2023.
arXiv:2306.13092. Changed: pixels of the box are the unit (their standard deviation is a quarter of it), each image has
a crop and a roll of its own, rolls go both ways, and the teacher labels each training image when it is made, where
theirs stores its answers for as many epochs; they are the same answers. Steps and roll are those published for
CIFAR-100, crops and mirroring those for ImageNet, whose 4000 steps and roll of a seventh are settings.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.augment import roll
from dfkd.interfaces import Preset, Sampler
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch

from .checks import at_least, between, positive, true_or_false, weight_or_auto, whole_at_least
from .cutmix import CutMix
from .ingredients import BatchNormWeight, Objective, OneHot, banked, batchnorm_term, descend, noise_start, resized
from .state import State


@dataclass(frozen=True)
class SRe2L:
    """rounds: in which the set is made, all before the first draw, >= 1; with as many classes as a batch has images,
    images of each class. batch: images in a round, >= 1; classes follow one another through the rounds. steps: of the
    optimiser in each, >= 1; 1000 are published for CIFAR-100, 4000 for ImageNet. learning_rate: Adam's, in fractions of
    the box, > 0, falling to 0 over a cosine. batchnorm: weight of the distance to the teacher's stored statistics,
    >= 0, or `auto` for a weight scaled to the teacher: theirs is for an ImageNet ResNet-18. first_layer: what the first
    BatchNorm layer counts in it, >= 0. one_hot: weight of the cross-entropy against the class aimed at, >= 0. area: the
    smallest share of an image that is shown, as a crop scaled up to its size, to the teacher during the search and to
    the student, in (0, 1]. roll: the largest shift of what is shown in the search, in fractions of the side, 0 to 0.5.
    flip: whether half of what is shown is mirrored; turn it off where a mirrored image means something else. cutmix:
    alpha of the boxes that training images exchange, > 0, or None for none.
    """

    rounds: int = 50
    batch: int = 100
    steps: int = 1000
    learning_rate: float = 0.0625  # 0.25 standard deviations, of a quarter of the box each
    batchnorm: BatchNormWeight = 0.01
    first_layer: float = 10.0
    one_hot: float = 1.0
    area: float = 0.08
    roll: float = 0.0625  # as many places as a shift by 0 to an eighth has
    flip: bool = True
    cutmix: float | None = 1.0
    name: ClassVar[str] = "sre2l"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    preset: ClassVar[Preset] = Preset(
        objective={"kl": (1.0, KL(temperature=20.0))},
        optimiser={"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01},
        batch=1024,
        steps=None,
    )

    def __post_init__(self) -> None:
        true_or_false(self, "flip")
        whole_at_least(self, 1, "rounds", "batch", "steps")
        positive(self, "learning_rate")
        weight_or_auto(self, "batchnorm")
        at_least(self, 0.0, "first_layer", "one_hot")
        between(self, 0.0, 0.5, "roll")
        between(self, 0.001, 1.0, "area")
        if self.cutmix is not None:
            positive(self, "cutmix")
        if not self.objective.terms:
            raise ValueError("one_hot: expected at least one weight above 0, found none")
        _ = self.bank  # it checks what is left

    @property
    def uses_student(self) -> bool:
        return False

    @property
    def objective(self) -> Objective:
        return Objective(((self.one_hot, OneHot("target")), batchnorm_term(self.batchnorm, self.first_layer)))

    # -- rounds --------------------------------------------------------------------------------------------------

    def begin(self, problem: Problem, seed: int) -> State:
        return State(terms=self.objective.init(problem, derive(seed, "terms"), who=self.name), rounds=0)

    def round(self, state: State, problem: Problem, rng: torch.Generator) -> Batch:
        spec = problem.spec
        x = noise_start(problem, self.batch, rng).requires_grad_(True)
        first = state.rounds * self.batch
        target = torch.arange(first, first + self.batch, device=problem.device) % spec.num_classes
        crop, most = resized(rng, self.area, self.flip), int(self.roll * min(spec.height, spec.width))

        def clip() -> None:
            with torch.no_grad():
                x.clamp_(spec.low, spec.high)

        loss = descend(
            problem,
            self.objective,
            state.terms,
            make=lambda: x,
            optimiser=torch.optim.Adam([x], lr=self.learning_rate * spec.span, betas=(0.5, 0.9)),
            steps=self.steps,
            target=target,
            view=lambda images: roll(crop(images), rng, most),
            rate=lambda step: 0.5 * (1.0 + math.cos(math.pi * step / self.steps)),
            after=clip,
        )
        state.rounds += 1
        return Batch(x.detach(), target=target, info={"loss": loss})  # the last images, whatever their loss

    # -- the sampler ---------------------------------------------------------------------------------------------

    @property
    def bank(self) -> Sampler:
        pool = banked(self, rows=self.batch, every=None, warmup=self.rounds, crop=0, flip=self.flip, area=self.area)
        return pool if self.cutmix is None else CutMix(pool, alpha=self.cutmix)

    def init(self, problem: Problem, seed: int) -> State:
        state: State = self.bank.init(problem, seed)
        return state

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self.bank.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.bank.observe(state, batch, loss)
