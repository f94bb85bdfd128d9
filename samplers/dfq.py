"""A generator for images with the teacher's BatchNorm statistics, sure of evenly used classes, new to the student.

Choi, Choi, El-Khamy, Lee: Data-Free Network Quantization With Adversarial Knowledge Distillation. 2020.
arXiv:2005.04136. There is no code of the authors: network, weights and loop are those of a later comparison of methods
(Fang et al. 2021, arXiv:2105.08584). Changed against the paper: one generator, one student, no warm-up; its distance of
BatchNorm statistics, a KL of Gaussians, is `gauss`, off as in that code.
"""

from dataclasses import dataclass, field
from typing import ClassVar, get_args

from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import KL
from dfkd.naming import known_as
from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode
from generators.trunk import Width

from .checks import a_labelling, at_least, one_of, positive, weight_or_auto, whole_at_least
from .ingredients import (
    Balance,
    BatchNormGauss,
    BatchNormWeight,
    Disagreement,
    Objective,
    OneHot,
    OnlineGenerator,
    TrunkNetwork,
    batchnorm_term,
)
from .state import State


@dataclass(frozen=True)
class DFQ:
    """adversarial: weight of KL(teacher || student), >= 0. batchnorm: weight of the distance to the teacher's stored
    statistics, >= 0, or `auto` for one scaled to the teacher, since the published one fits some teachers only. one_hot:
    weight of the teacher's certainty of some class, >= 0. balance: weight of using all classes equally, >= 0. latent:
    length of the generator's input, >= 1. width: of its trunk, `small` or `large`. learning_rate: Adam's, > 0. batch:
    images in a generator step, >= 2. student_steps: draws from one generator step to the next, >= 1. labelling: the
    teacher's BatchNorm mode for the images, `eval` or `batch`. gauss: weight of the KL, in nats, of the stored
    statistics from those of the batch, as Gaussians, >= 0.
    """

    adversarial: float = 1.0
    batchnorm: BatchNormWeight = 1.0
    one_hot: float = 1.0
    balance: float = 20.0
    latent: int = 256
    width: Width = "large"
    learning_rate: float = 1e-3
    batch: int = 256
    student_steps: int = 10
    labelling: BatchNormMode = "eval"
    # not written where it is as it was before it was a setting: folders that were begun go on
    gauss: float = field(default=0.0, metadata={"unless": 0.0})
    name: ClassVar[str] = "dfq"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    preset: ClassVar[Preset] = Preset(
        # CIFAR, the comparison's code: 200 epochs of 40 rounds; it passes temperature 20 and then works at 1
        objective={"kl": (1.0, KL(temperature=1.0))},
        optimiser={"learning_rate": 0.1, "weight_decay": 1e-4, "schedule": "cosine"},
        batch=256,
        steps=80_000,
    )

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent", "student_steps")
        whole_at_least(self, 2, "batch")
        one_of(self, get_args(Width), "width")
        positive(self, "learning_rate")
        at_least(self, 0.0, "adversarial", "one_hot", "balance", "gauss")
        weight_or_auto(self, "batchnorm")
        a_labelling(self.labelling)
        if not self.objective.terms:
            raise ValueError("one_hot: expected at least one weight above 0, found none")

    @property
    def uses_student(self) -> bool:
        return True  # even without the adversary: what it has learned depends on how often it was drawn from

    @property
    def objective(self) -> Objective:
        return Objective(
            (
                (self.adversarial, Disagreement("kl")),
                batchnorm_term(self.batchnorm),
                (self.one_hot, OneHot("argmax")),
                (self.balance, Balance()),
                (self.gauss, BatchNormGauss()),
            )
        )

    def __repr__(self) -> str:
        return known_as(self)

    @property
    def _online(self) -> OnlineGenerator:
        return OnlineGenerator(
            self.objective,
            TrunkNetwork(self.latent, self.width),
            batch=self.batch,
            learning_rate=self.learning_rate,
            student_steps=self.student_steps,
            labelling=self.labelling,
        )

    def init(self, problem: Problem, seed: int) -> State:
        return self._online.init(problem, seed, self.name)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self._online.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss
