"""A generator of new images beside a network that remembers old ones, so that the student learns both.

Binici, Aggarwal, Pham, Leman, Mitra: Robust and Resource-Efficient Data-Free Knowledge Distillation by Generative
Pseudo Replay. 2022. arXiv:2201.03019. Changed: the step that recalls a latent vector gives the memory no gradient,
where theirs added it to the memory's own; images are recalled with its stored statistics also while it learns; images
it learns are made for it rather than taken from the draw, which may be of any size; the generator is drawn from with
its stored statistics, and learns with the student's stored ones and with a gradient through the teacher in the
disagreement too, where theirs leaves both in training mode and stops that gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import LogitL1
from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.types import Batch, BatchNormMode, whole
from generators.vae import uniform_kernels

from .checks import at_least, between, positive, some_rows, whole_at_least
from .ingredients import (
    Activation,
    Balance,
    Disagreement,
    Memory,
    Objective,
    OneHot,
    OnlineGenerator,
    TrunkNetwork,
)
from .state import State


@dataclass(frozen=True)
class PreDFKD:
    """remembered: share of a draw that is recalled from the memory, 0 to 1. latent: length of the generator's and of
    the memory's input, >= 1. mean: of the images of both before they are clipped, 0 to 1, and std: their deviation, >
    0, both in fractions of the box; those that the teacher's images are normalised by, where these are known.
    learning_rate: Adam's for the generator, > 0. batch: images in its step, >= 2. student_steps: draws from one step
    of it to the next, >= 1. one_hot: weight of the teacher's certainty of some class, >= 0. balance: weight of using
    all classes equally, >= 0 (theirs is 5 with logarithms of base 10). Both count in what is recalled too. activation:
    weight of strong penultimate features, >= 0. adversarial: weight of the disagreement with the student, >= 0, a
    clamped and swapped Jensen-Shannon form as theirs.
    memory_steps: after how many of the draws between two generator steps the memory learns, >= 0. memory_new: images
    of the generator that it learns at once, >= 2. memory_old: images that it recalls itself and learns with them, >= 0.
    What is recalled is moved towards all classes equally, which takes as many rows as classes: of fewer (a ninth of 64)
    it is as even as they allow.
    memory_rate: Adam's for it, > 0. recall_rate: Adam's for the one step of a recalled latent vector, > 0. labelling:
    the teacher's BatchNorm mode for the images, `eval` or `batch`.
    """

    remembered: float = 1 / 9
    latent: int = 1000
    mean: float = 0.5
    std: float = 0.25
    learning_rate: float = 0.02
    batch: int = 1024
    student_steps: int = 10
    one_hot: float = 1.0
    balance: float = 2.171
    activation: float = 0.1
    adversarial: float = 1.0
    memory_steps: int = 4
    memory_new: int = 512
    memory_old: int = 128
    memory_rate: float = 5e-4
    recall_rate: float = 0.02
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "pre_dfkd"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "penultimate")
    uses_student: ClassVar[bool] = True
    preset: ClassVar[Preset] = Preset(
        objective={"logit_l1": (1.0, LogitL1())},
        optimiser={"learning_rate": 0.1, "weight_decay": 5e-4},
        batch=1152,
        steps=144_000,
        per_class=True,
    )

    def __post_init__(self) -> None:
        between(self, 0.0, 1.0, "remembered")
        whole_at_least(self, 0, "memory_steps", "memory_old")
        whole_at_least(self, 2, "memory_new")
        at_least(self, 0.0, "one_hot", "balance", "activation", "adversarial")
        positive(self, "memory_rate", "recall_rate")
        if not self.objective.terms:
            raise ValueError("one_hot: expected at least one weight above 0, found none")
        _ = self._generator, self._memory  # they check what is left

    @property
    def objective(self) -> Objective:
        """What the generator descends."""
        clamped = Disagreement("js", 3.0, per_class=True, variant="swapped_clamped", ceiling=1.0)
        return Objective(
            (
                (self.one_hot, OneHot("argmax")),
                (self.balance, Balance()),
                (self.activation, Activation()),
                (self.adversarial, clamped),
            )
        )

    @property
    def _generator(self) -> OnlineGenerator:
        # their optimisers keep torch's betas
        return OnlineGenerator(
            self.objective,
            TrunkNetwork(
                self.latent, "small", "tanh_batchnorm", 0.8, self.mean, self.std, biases=True, spectral_norm=True
            ),
            batch=self.batch,
            learning_rate=self.learning_rate,
            betas=(0.9, 0.999),
            student_steps=self.student_steps,
            labelling=self.labelling,
        )

    @property
    def _memory(self) -> Memory:
        return Memory(
            self.latent, self.memory_rate, self.recall_rate, self.one_hot, self.balance, mean=self.mean, std=self.std
        )

    def init(self, problem: Problem, seed: int) -> State:
        generator = self._generator.init(problem, derive(seed, "generator"), self.name)
        uniform_kernels(generator.generator)
        return State(
            stream=Stream(seed, problem.device),
            generator=generator,
            memory=self._memory.init(problem, derive(seed, "memory")),
        )

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        """New images first; `source` is 0 for them and 1 for what is remembered."""
        some_rows(n)
        rng = state.stream.advance()
        old = self.rows(n, derive(state.stream.seed, "rows", state.stream.step) / 2**63)
        # asked for a row at least, so that the generator counts every draw
        new = self._generator.draw(state.generator, problem, max(1, n - old), learn)
        pieces, info = [new.x[: n - old]], dict(new.info)
        if old:
            pieces.append(self._memory.recall(state.memory, problem, old, rng))
        if learn:
            rounds, place = divmod(state.generator.draws - 1, self.student_steps)
            if place < self.memory_steps:
                info["memory_loss"] = self._remember(state, problem, rng, first=rounds == 0)
        source = (torch.arange(n, device=problem.device) >= n - old).long()
        return Batch(torch.cat(pieces), source=source, info=info, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss

    def rows(self, n: int, offset: float) -> int:
        """How many of n rows are remembered; offset in [0, 1) decides where the share is no whole number."""
        return int(round(n * self.remembered, 9) + offset)

    def _remember(self, state: State, problem: Problem, rng: torch.Generator, first: bool) -> Tensor:
        """One step of the memory; in the first round it knows nothing yet that would be worth keeping."""
        generator = self._generator
        x = generator.images(state.generator, generator.latents(problem, self.memory_new, rng))
        if self.memory_old and not first:
            x = torch.cat([x, self._memory.recall(state.memory, problem, self.memory_old, rng)])
        return self._memory.learn(state.memory, problem, x, rng)
