"""A generator that learns, beside the student, to make images the teacher is sure of and the student is not.

Choi, Choi, El-Khamy, Lee: Data-Free Network Quantization With Adversarial Knowledge Distillation. 2020.
arXiv:2005.04136. Changed: one generator and one student, the BatchNorm term is scaled to the teacher, and the clock
of the generator is the number of draws.
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode
from generators.trunk import Width

from .checks import a_labelling, at_least, one_of, positive, weight_or_auto, whole_at_least
from .ingredients import (
    Balance,
    BatchNormWeight,
    Disagreement,
    Divergence,
    Objective,
    OneHot,
    OnlineGenerator,
    TrunkNetwork,
    batchnorm_term,
)
from .state import State


@dataclass(frozen=True)
class Generative:
    """latent: length of the generator's input, >= 1. width: of its trunk, `small` or `large`. learning_rate: Adam's,
    > 0. batch: images in a generator step, >= 2. generator_steps: its steps in a round, >= 0. student_steps: draws from
    one round to the next, >= 1. adversarial: weight of the disagreement of teacher and student, >= 0, and divergence:
    its kind, `kl`, `l1`, `js` or `masked_kl`. batchnorm: weight of the distance to the teacher's stored statistics,
    >= 0, or `auto` for a weight scaled to the teacher. one_hot: weight of the teacher's certainty of some class, >= 0.
    balance: weight of using all classes equally, >= 0. labelling: the teacher's BatchNorm mode for the images, `eval`
    or `batch`.
    """

    latent: int = 256
    width: Width = "large"
    learning_rate: float = 1e-3
    batch: int = 256
    generator_steps: int = 1
    student_steps: int = 10
    adversarial: float = 1.0
    divergence: Divergence = "kl"
    batchnorm: BatchNormWeight = "auto"
    one_hot: float = 1.0
    balance: float = 20.0
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "generative"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent", "student_steps")
        whole_at_least(self, 2, "batch")
        whole_at_least(self, 0, "generator_steps")
        one_of(self, get_args(Width), "width")
        positive(self, "learning_rate")
        at_least(self, 0.0, "adversarial", "one_hot", "balance")
        weight_or_auto(self, "batchnorm")
        one_of(self, get_args(Divergence), "divergence")
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
                (self.adversarial, Disagreement(self.divergence)),
                batchnorm_term(self.batchnorm),
                (self.one_hot, OneHot("argmax")),
                (self.balance, Balance()),
            )
        )

    @property
    def _online(self) -> OnlineGenerator:
        return OnlineGenerator(
            self.objective,
            TrunkNetwork(self.latent, self.width),
            batch=self.batch,
            learning_rate=self.learning_rate,
            generator_steps=self.generator_steps,
            student_steps=self.student_steps,
            labelling=self.labelling,
        )

    def init(self, problem: Problem, seed: int) -> State:
        return self._online.init(problem, seed, self.name)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self._online.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss
