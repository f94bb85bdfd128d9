"""A generator whose images are made of patches of another domain's images, beside these images themselves.

Fang, Bao, Song, Wang, Xie, Shen, Song: Mosaicking to Distill: Knowledge Distillation from Out-of-Domain Data. 2021.
arXiv:2110.15094. Changed: the generator is sampled with its stored BatchNorm statistics, where theirs uses those of the
batch, and learns with the student's stored ones, where theirs stays in training mode; draws of any size are half and
half on average; the clock of the learning rates is the run's progress.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.types import Batch, BatchNormMode, whole
from generators.trunk import Width

from .checks import at_least, between, one_of, paths_as_text, positive, some_rows, true_or_false, whole_at_least
from .ingredients import (
    Balance,
    Disagreement,
    Entropy,
    Objective,
    OnlineGenerator,
    Patches,
    TrunkNetwork,
    cropped,
)
from .out_of_domain import OutOfDomain
from .real import Place
from .state import State


@dataclass(frozen=True)
class MosaicKD:
    """data: the images of another domain: a folder with class folders or without, an .npz file, or a data set by name.
    keep: only so many of them, those of highest entropy under the teacher, which is asked about all of them once; None
    keeps all. limit: how many images are read, None reads all. share: of a draw that is these images, 0 to 1. crop:
    black pixels around such an image, of which a window is cut; 0 is off, None takes an eighth of the side. flip:
    whether half of them are mirrored.
    latent: length of the generator's input, >= 1. width: of its trunk, `small` or `large`. learning_rate: Adam's for
    generator and critic, > 0, falling to 0 over a cosine. batch: images in their steps, >= 2. student_steps: draws from
    one step of both to the next, >= 1. adversarial: weight of the disagreement of teacher and student, >= 0. entropy:
    weight of the teacher's doubt, >= 0. patches: weight of what the patches lack to pass for the other domain's, > 0.
    balance: weight of using all classes equally, >= 0 (theirs is 10 with logarithms of base 2). critic: maps of the
    critic's first layer, >= 1. labelling: the teacher's BatchNorm mode for the images, `eval` or `batch`.
    """

    data: str
    keep: int | None = None
    limit: int | None = None
    share: float = 0.5
    crop: int | None = None
    flip: bool = True
    latent: int = 100
    width: Width = "large"
    learning_rate: float = 1e-3
    batch: int = 256
    student_steps: int = 5
    adversarial: float = 1.0
    entropy: float = 1.0
    patches: float = 1.0
    balance: float = 14.43
    critic: int = 128
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "mosaic_kd"
    data_free: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("input_grad",)
    uses_student: ClassVar[bool] = True
    preset: ClassVar[Preset] = Preset(
        objective={"kl": (1.0, KL(temperature=1.0))},
        optimiser={"learning_rate": 0.1, "weight_decay": 1e-4},
        batch=512,
        steps=195_000,
    )

    def __post_init__(self) -> None:
        paths_as_text(self, "data")
        between(self, 0.0, 1.0, "share")
        if self.crop is not None:
            whole_at_least(self, 0, "crop")
        true_or_false(self, "flip")
        one_of(self, get_args(Width), "width")
        whole_at_least(self, 1, "critic")
        at_least(self, 0.0, "adversarial", "entropy", "balance")
        positive(self, "patches", "learning_rate")  # without patches it would be no mosaic
        _ = self._generator, self._elsewhere  # they check what is left

    @property
    def _elsewhere(self) -> OutOfDomain:
        return OutOfDomain(self.data, self.keep, self.limit, self.labelling)

    @property
    def _patches(self) -> Patches:
        return Patches(self.critic, self.learning_rate)

    @property
    def objective(self) -> Objective:
        """What the generator descends; the patches come first."""
        return Objective(
            (
                (self.patches, self._patches),
                (self.adversarial, Disagreement("kl")),
                (self.entropy, Entropy()),
                (self.balance, Balance()),
            )
        )

    @property
    def _generator(self) -> OnlineGenerator:
        return OnlineGenerator(
            self.objective,
            TrunkNetwork(self.latent, self.width),
            batch=self.batch,
            learning_rate=self.learning_rate,
            student_steps=self.student_steps,
            rate="cosine",
            labelling=self.labelling,
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.data,)

    def init(self, problem: Problem, seed: int) -> State:
        generator = self._generator.init(problem, derive(seed, "generator"), self.name)
        elsewhere = self._elsewhere.begin(problem, derive(seed, "elsewhere"), self.name)
        # the critic goes through the same images in an order of its own
        shown = Place(elsewhere.place.images, derive(seed, "shown"), problem.device)
        return State(stream=Stream(seed, problem.device), generator=generator, elsewhere=elsewhere, shown=shown)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        """Generated images first; `source` is 0 for them and 1 for those of the other domain."""
        some_rows(n)
        rng = state.stream.advance()
        taken = int(round(n * self.share, 9) + derive(state.stream.seed, "rows", state.stream.step) / 2**63)
        if learn and state.generator.draws % self.student_steps == 0:
            real = state.shown.images.pixels(state.shown.advance(self.batch), problem.spec)
            self._patches.show(state.generator.terms[0], real, self._generator.factor(problem.progress))
        # asked for a row at least, so that the generator counts every draw
        made = self._generator.draw(state.generator, problem, max(1, n - taken), learn)
        pieces, info = [made.x[: n - taken]], dict(made.info)
        if taken:
            other = self._elsewhere.draw(state.elsewhere, problem, taken, learn)
            pieces.append(cropped(rng, problem.spec, self.crop, self.flip)(other.x))
            info |= other.info
        source = (torch.arange(n, device=problem.device) >= n - taken).long()
        return replace(
            made, x=torch.cat(pieces), source=source, info=info, labelling=whole(n, self.labelling), teacher=None
        )

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss
