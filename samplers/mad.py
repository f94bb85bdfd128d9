"""A generator that learns against the student, and beside it a slow copy from which half of the images come.

Do et al.: Momentum Adversarial Distillation: Handling Large Distribution Shifts in Data-Free Knowledge Distillation.
2022. arXiv:2209.10359. There is no code: network, rates and loop are our reading, those of DFQ, and so are the losses
and the copy's decay. Left out, as published for ImageNet only: class-conditional generators, their pre-training, and a
bound on the losses.
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode
from generators.trunk import Width

from .checks import a_labelling, at_least, one_of, positive, weight_or_auto, whole_at_least
from .ingredients import (
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
class MAD:
    """The student does not forget what the generator has left behind: the copy still makes it.

    decay: of the copy, a moving average over generator steps, in [0, 1); 0 is the generator itself. adversarial: weight
    of KL(teacher || student), >= 0. batchnorm: weight of the distance to the teacher's stored statistics, >= 0, or
    `auto` for one scaled to the teacher. one_hot: weight of the teacher's certainty of some class, >= 0. latent: length
    of the generator's input, >= 1. width: of its trunk, `small` or `large`. learning_rate: Adam's, > 0. batch: images
    in a generator step, >= 2. student_steps: draws from one generator step to the next, >= 1. labelling: the teacher's
    BatchNorm mode for the images, `eval` or `batch`.
    """

    decay: float = 0.95
    adversarial: float = 1.0
    batchnorm: BatchNormWeight = 1.0
    one_hot: float = 1.0
    latent: int = 256
    width: Width = "large"
    learning_rate: float = 1e-3
    batch: int = 256
    student_steps: int = 10
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "mad"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    preset: ClassVar[Preset] = Preset(
        # our reading, as for DFQ: the paper's own schedule is not public
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
        at_least(self, 0.0, "decay", "adversarial", "one_hot")
        if not self.decay < 1.0:
            raise ValueError(f"decay: expected a number in [0, 1), found {self.decay!r}")
        weight_or_auto(self, "batchnorm")
        a_labelling(self.labelling)
        if not self.objective.terms:
            raise ValueError("one_hot: expected at least one weight above 0, found none")

    @property
    def uses_student(self) -> bool:
        return True

    @property
    def objective(self) -> Objective:
        return Objective(
            (
                (self.adversarial, Disagreement("kl")),
                batchnorm_term(self.batchnorm),
                (self.one_hot, OneHot("argmax")),
            )
        )

    @property
    def _online(self) -> OnlineGenerator:
        return OnlineGenerator(
            self.objective,
            TrunkNetwork(self.latent, self.width),
            batch=self.batch,
            learning_rate=self.learning_rate,
            student_steps=self.student_steps,
            decay=self.decay,
            labelling=self.labelling,
        )

    def init(self, problem: Problem, seed: int) -> State:
        return self._online.init(problem, seed, self.name)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self._online.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss
