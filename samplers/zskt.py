"""A generator for images on which the student is furthest from the teacher, each shown to the student ten times.

Micaelli, Storkey: Zero-shot Knowledge Transfer via Adversarial Belief Matching. 2019. arXiv:1905.09768. Changed: pixels
are clipped to the box; further latents are drawn where a draw asks for more than the generator's batch. The attention
transfer in the student's loss (worth about two points between nets of one family) is not in the preset, as it has to
know the layers: to train with it, write the preset's settings as one's own and add `attention`, weight 250, its pairs.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode

from .checks import a_labelling, positive, whole_at_least
from .ingredients import Disagreement, Objective, OnlineGenerator, TrunkNetwork
from .state import State


@dataclass(frozen=True)
class ZSKT:
    """Rounds on one set of latents: a generator step, then draws of what they give afterwards, labelled once.

    latent: length of the generator's input, >= 1. mean: of its images at first, before they are clipped, 0 to 1, and
    std: their deviation, > 0, both in fractions of the box; those that the teacher's images are normalised by, where
    these are known. learning_rate: Adam's at the start of the run, > 0; along a cosine to 0 at its end. clip: largest
    norm of the generator's gradient, > 0. batch: images in a generator step, >= 2. student_steps: draws that show the
    same images, >= 1. labelling: the teacher's BatchNorm mode for the images, `eval` or `batch`.
    """

    latent: int = 100
    mean: float = 0.5
    std: float = 0.25
    learning_rate: float = 1e-3
    clip: float = 5.0
    batch: int = 128
    student_steps: int = 10
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "zskt"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad",)

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent", "student_steps")
        whole_at_least(self, 2, "batch")
        positive(self, "learning_rate", "clip")
        a_labelling(self.labelling)
        _ = self._online.network  # it checks what is left

    @property
    def preset(self) -> Preset:
        """CIFAR-10, the authors' code: 80 000 batches, ten steps on each."""
        return Preset(
            objective={"kl": (1.0, KL(temperature=1.0))},
            optimiser={"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.0, "schedule": "cosine", "clip": 5.0},
            batch=128,
            steps=800_000,
            per_class=True,  # with a clipped gradient the factor matters
            made=self.batch,
            without="attention transfer, which is the loss `attention` of weight 250 on layers that the user names",
        )

    @property
    def uses_student(self) -> bool:
        return True

    @property
    def objective(self) -> Objective:
        # the authors leave the student in training mode throughout, and average over classes
        return Objective(((1.0, Disagreement("kl", student_mode="batch", per_class=True)),))

    @property
    def _online(self) -> OnlineGenerator:
        return OnlineGenerator(
            self.objective,
            TrunkNetwork(self.latent, "small", "batchnorm", mean=self.mean, std=self.std, biases=True),
            batch=self.batch,
            learning_rate=self.learning_rate,
            betas=(0.9, 0.999),
            student_steps=self.student_steps,
            reuse="latents",
            sampled="batch",
            rate="cosine",
            clip=self.clip,
            labelling=self.labelling,
        )

    def init(self, problem: Problem, seed: int) -> State:
        return self._online.init(problem, seed, self.name)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self._online.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss
