"""A generator for images on which the logits of student and teacher differ most.

Fang et al.: Data-Free Adversarial Distillation. 2019. arXiv:1912.11006. Changed: pixels are clipped to the box, in
the generator's step too, which else finds its disagreement outside, where the student is shown nothing; that step comes
before the student's, not after them; the form for segmentation is left out.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import LogitL1
from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode

from .checks import a_labelling, one_of, positive, whole_at_least
from .ingredients import DcganNetwork, Disagreement, Network, Objective, OnlineGenerator, Rate, TrunkNetwork
from .state import State

Kind = Literal["trunk", "dcgan"]

MNIST_LATENT = 100
"""Longer ones are published for CIFAR."""


@dataclass(frozen=True)
class DFAD:
    """Nothing but the disagreement, so nothing bounds the generator. Defaults as published for MNIST; for CIFAR see the
    variant `cifar`, which a latent longer than MNIST's tells from it where the student's preset is asked for.

    latent: length of the generator's input, >= 1 (CIFAR: 256). network: `trunk`, or `dcgan`, published for images of
    128 pixels. mean: of the trunk's images before they are clipped, 0 to 1, and std: their deviation, > 0, both in
    fractions of the box; as its last layer is a normalised image, they are to be those that the teacher's images are
    normalised by (MNIST: 0.1307 and 0.3081), where these are known. learning_rate: Adam's, > 0. rate: what it does over
    the run: `constant`, `cosine` to 0, or `steps`, times 0.1 at each of the milestones. milestones: rising fractions of
    the run (CIFAR: 0.2, 0.4). batch: images in a generator step, >= 2 (CIFAR: 256). student_steps: draws from one
    generator step to the next, >= 1. labelling: the teacher's BatchNorm mode for the images, `eval` or `batch`.
    """

    latent: int = MNIST_LATENT
    network: Kind = "trunk"
    mean: float = 0.5
    std: float = 0.25
    learning_rate: float = 1e-3
    rate: Rate = "constant"
    milestones: tuple[float, ...] = ()
    batch: int = 512
    student_steps: int = 5
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "dfad"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad",)
    variants: ClassVar[tuple[str, ...]] = ("cifar",)

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent", "student_steps")
        whole_at_least(self, 2, "batch")
        one_of(self, get_args(Kind), "network")
        positive(self, "learning_rate")
        if self.network == "dcgan" and (self.mean, self.std) != (0.5, 0.25):
            raise ValueError(
                f"mean: expected 0.5 and std 0.25 with network dcgan, which fills the box, found {self.mean!r}"
            )
        a_labelling(self.labelling)
        _ = self._online  # which refuses a rate or milestones that cannot be

    @classmethod
    def cifar(cls) -> "DFAD":
        """As published for CIFAR."""
        return cls(latent=256, rate="steps", milestones=(0.2, 0.4), batch=256)

    @property
    def preset(self) -> Preset:
        """The authors' code: 50 rounds an epoch, 40 epochs for MNIST, 500 for CIFAR."""
        objective = {"logit_l1": (1.0, LogitL1())}
        if self.latent > MNIST_LATENT:
            optimiser: dict[str, Any] = {"learning_rate": 0.1, "schedule": "steps", "milestones": (0.2, 0.4)}
            optimiser |= {"weight_decay": 5e-4}
            return Preset(objective, optimiser, batch=256, steps=125_000, per_class=True, made=self.batch)
        optimiser = {"learning_rate": 0.01, "weight_decay": 1e-4, "schedule": "constant"}
        return Preset(objective, optimiser, batch=512, steps=10_000, per_class=True, made=self.batch)

    @property
    def uses_student(self) -> bool:
        return True

    @property
    def objective(self) -> Objective:
        # the student stands in training mode while the generator learns, as the authors leave it
        return Objective(((1.0, Disagreement("l1", student_mode="batch", per_class=True)),))

    @property
    def _online(self) -> OnlineGenerator:
        network: Network = DcganNetwork(self.latent)
        if self.network == "trunk":
            network = TrunkNetwork(self.latent, "small", "tanh_batchnorm", mean=self.mean, std=self.std, biases=True)
        return OnlineGenerator(
            self.objective,
            network,
            batch=self.batch,
            learning_rate=self.learning_rate,
            betas=(0.9, 0.999),
            student_steps=self.student_steps,
            sampled="batch",
            rate=self.rate,
            milestones=self.milestones,
            labelling=self.labelling,
        )

    def init(self, problem: Problem, seed: int) -> State:
        return self._online.init(problem, seed, self.name)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self._online.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss
