"""A generator for images of which the teacher is sure, that excite it, and that use all its classes equally.

Chen et al.: Data-Free Learning of Student Networks. 2019. arXiv:1904.01186. Changed: entropies in nats; features are
those that the teacher's last linear layer is given; pixels are clipped to the box; further rows are made where a draw
asks for more than the generator's batch.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode

from .checks import a_labelling, at_least, positive, whole_at_least
from .ingredients import Activation, Balance, Objective, OneHot, OnlineGenerator, TrunkNetwork
from .state import State

LOG10 = 1.0 / math.log(10.0)
"""The published entropy is in decimal logarithms: what its weights are multiplied by for nats."""

MNIST_LATENT = 100
"""Longer ones are published for CIFAR."""


@dataclass(frozen=True)
class DAFL:
    """One generator step for each of the student's, which is shown the images of that step. Defaults as published for
    MNIST; for CIFAR see the variants `cifar10` and `cifar100`, which a latent longer than MNIST's tells from it where
    the student's preset is asked for:

        data        one_hot  balance       activation  latent  learning_rate  batch
        MNIST       1        2.17 (= 5)    0.1         100     0.2            512
        CIFAR-10    0.05     2.17 (= 5)    0.01        1000    0.02           1024
        CIFAR-100   0.5      8.69 (= 20)   0.1         1000    0.02           1024

    one_hot: weight of the teacher's certainty of some class, >= 0. balance: weight of using all classes equally, in
    nats, >= 0; brackets above: in decimal logarithms. activation: weight of the mean absolute feature, >= 0. latent:
    length of the generator's input, >= 1. batchnorm_eps: what its inner BatchNorm layers add to the variance, > 0.
    mean: of its images before they are clipped, 0 to 1, and std: their deviation, > 0, both in fractions of the box; as
    its last layer is a normalised image, they are to be those that the teacher's images are normalised by (MNIST:
    0.1307 and 0.3081), where these are known. learning_rate: Adam's, > 0. batch: images in a generator step, >= 2;
    small ones fail. student_steps: draws that show the images of one generator step, >= 1. labelling: the teacher's
    BatchNorm mode for the images, `eval` or `batch`.
    """

    one_hot: float = 1.0
    balance: float = 5.0 * LOG10
    activation: float = 0.1
    latent: int = MNIST_LATENT
    batchnorm_eps: float = 0.8
    mean: float = 0.5
    std: float = 0.25
    learning_rate: float = 0.2
    batch: int = 512
    student_steps: int = 1
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "dafl"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "penultimate")
    variants: ClassVar[tuple[str, ...]] = ("cifar10", "cifar100")

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent", "student_steps")
        whole_at_least(self, 2, "batch")
        positive(self, "learning_rate")
        at_least(self, 0.0, "one_hot", "balance", "activation")
        a_labelling(self.labelling)
        if not self.objective.terms:
            raise ValueError("one_hot: expected at least one weight above 0, found none")
        _ = self._online.network  # it checks what is left

    @classmethod
    def cifar10(cls) -> "DAFL":
        """As published for CIFAR-10."""
        return cls(one_hot=0.05, balance=5.0 * LOG10, activation=0.01, latent=1000, learning_rate=0.02, batch=1024)

    @classmethod
    def cifar100(cls) -> "DAFL":
        """As published for CIFAR-100."""
        return cls(one_hot=0.5, balance=20.0 * LOG10, activation=0.1, latent=1000, learning_rate=0.02, batch=1024)

    @property
    def preset(self) -> Preset:
        """The authors' code: for MNIST Adam, 200 epochs of 120 steps; for both CIFARs SGD, 2000 of them."""
        objective = {"kl": (1.0, KL(temperature=1.0))}
        if self.latent > MNIST_LATENT:
            fall: dict[str, Any] = {"schedule": "steps", "milestones": (0.4, 0.8)}
            optimiser = {"learning_rate": 0.1, "weight_decay": 5e-4} | fall
            return Preset(objective, optimiser, batch=1024, steps=240_000, made=self.batch)
        optimiser = {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.0, "schedule": "constant"}
        return Preset(objective, optimiser, batch=512, steps=24_000, made=self.batch)

    @property
    def uses_student(self) -> bool:
        return True  # what the generator has learned depends on how often it was drawn from

    @property
    def objective(self) -> Objective:
        return Objective(((self.one_hot, OneHot("argmax")), (self.balance, Balance()), (self.activation, Activation())))

    @property
    def _online(self) -> OnlineGenerator:
        return OnlineGenerator(
            self.objective,
            TrunkNetwork(self.latent, "small", "tanh_batchnorm", self.batchnorm_eps, self.mean, self.std, biases=True),
            batch=self.batch,
            learning_rate=self.learning_rate,
            betas=(0.9, 0.999),
            student_steps=self.student_steps,
            reuse="shared",
            sampled="batch",
            labelling=self.labelling,
        )

    def init(self, problem: Problem, seed: int) -> State:
        return self._online.init(problem, seed, self.name)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self._online.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss
