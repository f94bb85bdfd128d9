"""A small bank of images made where the student needs them, and drawn from where it is still wrong.

Liu, Wang, Liu, Sun, Yao: Small Scale Data-Free Knowledge Distillation. 2024. arXiv:2406.07876. Taken from it are a bank
of a tenth of the teacher's data, inversion losses modulated by how rare a row's class and how hard the row is, draws by
priority with an importance correction, and a reward for what the teacher accepts and the student does not. No code is
public, and the formulas here are not the paper's. Our reading: each of the four as its class says, rounds as in Fang et
al.: Up to 100x Faster Data-Free Knowledge Distillation, arXiv:2112.06253, the reward in place of its adversary, and its
preset.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Preset, Sampler
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch

from .augmented import Augmented
from .checks import at_least, between, positive, true_or_false, weight_or_auto, whole_at_least
from .ingredients import (
    BatchNormWeight,
    Best,
    Meta,
    Modulated,
    Objective,
    Reward,
    Rounds,
    TrunkNetwork,
    batchnorm_term,
    built,
    cropped,
    descend,
    unfound,
)
from .prioritised import Prioritised
from .state import State


@dataclass(frozen=True)
class SSDKD:
    """capacity: images in the bank, the newest, at least `batch`. exponent: how much likelier rows with a large loss
    are drawn, >= 0. offset: added to each loss for that, > 0. correction: how much of it their weights take away again,
    0 to 1. focus: how little an image counts in its making that the teacher is sure of, >= 0. reward: weight of what
    the teacher accepts and the student does not, >= 0.
    steps: of the generator and its latents in a round, >= 1. latent: length of the generator's input, >= 1.
    generator_rate: Adam's for it, > 0. latent_rate: Adam's for the latents, > 0. meta_rate: Adam's for the start that
    rounds share, > 0. batch: images in a round, >= 2. batchnorm: weight of the distance to the teacher's stored
    statistics, >= 0, or `auto` for a weight scaled to the teacher. momentum: what earlier rounds' statistics count in
    it, in [0, 1). one_hot: weight of the modulated cross-entropy against the class drawn, >= 0. warmup: rounds before
    the first draw, without the reward, >= 0. every: draws from one round to the next, >= 1. crop: black pixels around
    an image, of which a window is cut, shown to the teacher and to the student; 0 is off, None takes an eighth of the
    side. flip: whether half of them are mirrored; turn it off where a mirrored image means something else.
    """

    capacity: int = 5000
    exponent: float = 0.6
    offset: float = 0.01
    correction: float = 0.4
    focus: float = 2.0
    reward: float = 1.0
    steps: int = 5
    latent: int = 256
    generator_rate: float = 3e-3
    latent_rate: float = 0.01
    meta_rate: float = 0.015
    batch: int = 256
    batchnorm: BatchNormWeight = 10.0
    momentum: float = 0.9
    one_hot: float = 0.5
    warmup: int = 20
    every: int = 400
    crop: int | None = None
    flip: bool = True
    name: ClassVar[str] = "ssd_kd"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    uses_student: ClassVar[bool] = True
    preset: ClassVar[Preset] = Preset(
        objective={"kl": (1.0, KL(temperature=20.0))},
        optimiser={"learning_rate": 0.2, "weight_decay": 1e-4},
        batch=256,
        steps=None,
    )

    def __post_init__(self) -> None:
        true_or_false(self, "flip")
        whole_at_least(self, 1, "steps", "latent", "every")
        whole_at_least(self, 2, "batch")
        whole_at_least(self, 0, "warmup")
        positive(self, "generator_rate", "latent_rate", "meta_rate")
        weight_or_auto(self, "batchnorm")
        at_least(self, 0.0, "one_hot", "reward", "focus")
        between(self, 0.0, 0.999, "momentum")
        if not self._objective(0).terms:
            raise ValueError("one_hot: expected it or batchnorm above 0, found nothing to look for in the first rounds")
        _ = self.bank  # it checks what is left

    def _objective(self, rounds: int) -> Objective:
        """After so many rounds; the reward is last, so that what comes before it has the same states without it."""
        return Objective(
            (
                batchnorm_term(self.batchnorm, momentum=self.momentum),
                (self.one_hot, Modulated(self.capacity, self.focus)),
                (self.reward if rounds >= self.warmup else 0.0, Reward()),
            )
        )

    # -- rounds --------------------------------------------------------------------------------------------------

    def begin(self, problem: Problem, seed: int) -> State:
        terms = self._objective(self.warmup).init(problem, derive(seed, "terms"), who=self.name)
        network = TrunkNetwork(self.latent, "small")
        start = built(network.build, problem, derive(seed, "generator"), self.name)
        return State(terms=terms, start=Meta(start, self.meta_rate), rounds=0)

    def round(self, state: State, problem: Problem, rng: torch.Generator) -> Batch:
        z = torch.randn(self.batch, self.latent, generator=rng, device=problem.device).requires_grad_(True)
        target = torch.randint(problem.spec.num_classes, (self.batch,), generator=rng, device=problem.device)
        objective, best, generator = (
            self._objective(state.rounds),
            Best(unfound(problem, self.batch)),
            state.start.begin(),
        )
        groups = [
            {"params": generator.parameters(), "lr": self.generator_rate},
            {"params": [z], "lr": self.latent_rate},
        ]
        descend(
            problem,
            objective,
            state.terms[: len(objective.terms)],
            make=lambda: generator(z),
            optimiser=torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True),
            steps=self.steps,
            target=target,
            view=cropped(rng, problem.spec, self.crop, self.flip),
            after=lambda: state.start.collect(generator),
            best=best,
        )
        state.start.end(generator)
        state.rounds += 1
        return Batch(best.x, target=target, info={"loss": best.loss})

    # -- the sampler ---------------------------------------------------------------------------------------------

    @property
    def bank(self) -> Sampler:
        rounds = Prioritised(
            Rounds(self),
            round=self.batch,
            every=self.every,
            warmup=self.warmup + 1,  # those of the warm-up, and the one that the first draws are for
            capacity=self.capacity,
            exponent=self.exponent,
            offset=self.offset,
            correction=self.correction,
        )
        return rounds if self.crop == 0 and not self.flip else Augmented(rounds, crop=self.crop, flip=self.flip)

    def init(self, problem: Problem, seed: int) -> State:
        state: State = self.bank.init(problem, seed)
        return state

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self.bank.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.bank.observe(state, batch, loss)
