"""New images of a generator's old inner maps, whose channels are exchanged between images before the last layers.

Yu, Chen, Han, Jiang: Data-Free Knowledge Distillation via Feature Exchange and Activation Region Constraint. 2023.
doi:10.1109/CVPR52729.2023.02324. Changed: no constraint on activation regions (class maps and Grad-CAM maps of the
student), which is a loss on features, neither here nor in the preset; maps are kept in half precision; a teacher's size
may be any that the trunk makes; torch's initialisation of convolutions for theirs, which differs in scale alone.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Preset
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.types import Batch, BatchNormMode, whole
from generators.depths import DEPTHS, image_from, maps_of

from .checks import a_labelling, at_least, between, positive, some_rows, true_or_false, weight_or_auto, whole_at_least
from .ingredients import (
    BatchNormWeight,
    Best,
    Objective,
    OneHot,
    TrunkNetwork,
    batchnorm_term,
    built,
    cropped,
    descend,
    equally,
    unfound,
)
from .pooled import places
from .state import State


@dataclass(frozen=True)
class SpaceshipNet:
    """latent: length of the generator's input, >= 1. learning_rate: Adam's, > 0, begun anew each round. steps: of the
    generator in a round, on one set of latents, >= 1. batch: images in a round, >= 2. every: draws from one round to
    the next, >= 1. batchnorm: weight of the distance to the teacher's stored statistics, >= 0, or `auto` for a weight
    scaled to the teacher. one_hot: weight of the cross-entropy against the class aimed at, >= 0. exchange: how likely
    the channels of a draw are exchanged, 0 to 1. capacity: most rows whose maps are kept, the newest; None keeps all.
    crop: black pixels around an image, of which a window is cut, shown to the teacher and to the student; 0 is off,
    None takes an eighth of the side. flip: whether half of them are mirrored; turn it off where a mirrored image means
    something else. labelling: the teacher's BatchNorm mode for the images, `eval` or `batch`.

    `target` is the class a row was made for, -1 where channels were exchanged. A row's maps take 208 bytes per pixel of
    the image in half precision, 213 kB at 32x32, 11 GB for the 51 200 rows of the published run. Latents with each
    round's weights would take a tenth of it, but the maps of a draw would have to be made anew by as many networks as
    there were rounds.
    """

    latent: int = 256
    learning_rate: float = 1e-3
    steps: int = 200
    batch: int = 256
    every: int = 2000
    batchnorm: BatchNormWeight = 1.0
    one_hot: float = 0.5
    exchange: float = 0.7
    capacity: int | None = None
    crop: int | None = None
    flip: bool = True
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "spaceshipnet"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    uses_student: ClassVar[bool] = True  # never asked, but what is learned depends on how often it was drawn from
    preset: ClassVar[Preset] = Preset(
        objective={"kl": (1.0, KL(temperature=30.0))},
        optimiser={"learning_rate": 0.1, "weight_decay": 1e-4},
        batch=256,
        steps=400_000,
        per_class=True,
        without="the constraint on activation regions, for which there is no loss here",
    )

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent", "steps", "every")
        whole_at_least(self, 2, "batch")
        positive(self, "learning_rate")
        weight_or_auto(self, "batchnorm")
        at_least(self, 0.0, "one_hot")
        between(self, 0.0, 1.0, "exchange")
        if self.capacity is not None:
            whole_at_least(self, self.batch, "capacity")
        if self.crop is not None:
            whole_at_least(self, 0, "crop")
        true_or_false(self, "flip")
        a_labelling(self.labelling)
        if not self.objective.terms:
            raise ValueError("one_hot: expected it or batchnorm above 0, found nothing to look for")

    @property
    def objective(self) -> Objective:
        return Objective((batchnorm_term(self.batchnorm), (self.one_hot, OneHot("target"))))

    def init(self, problem: Problem, seed: int) -> State:
        """maps, one for each depth, and classes: of the rows kept, the newest last."""
        terms = self.objective.init(problem, derive(seed, "terms"), who=self.name)
        if self.batch < problem.spec.num_classes:
            raise ValueError(
                f"{self.name}: batch: expected at least {problem.spec.num_classes} rows, one for each class, "
                f"found {self.batch}; fast_dfkd, which draws its classes, takes fewer"
            )
        device = problem.device
        network = TrunkNetwork(self.latent, "small")
        generator = built(network.build, problem, derive(seed, "generator"), self.name)
        return State(
            stream=Stream(seed, device),
            terms=terms,
            generator=generator.eval(),
            rounds=0,
            draws=0,
            maps=[torch.empty(0, dtype=torch.float16, device=device) for _ in range(DEPTHS)],
            classes=torch.empty(0, dtype=torch.int64, device=device),
        )

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        """Rows of the bank; where nothing is learnt from them, rows whose latents no round has had."""
        some_rows(n)
        rng, info = state.stream.advance(), {}
        coins = random.Random(derive(state.stream.seed, "coins", state.stream.step))
        depth, exchange = coins.randrange(DEPTHS), coins.random() < self.exchange
        if learn:
            if state.draws >= self.every * state.rounds:
                info["loss"] = self._round(state, problem, rng)
            state.draws += 1
            index = places(len(state.classes), n, rng, problem.device)
            maps, target = state.maps[depth][index].float(), state.classes[index]
        else:
            z = torch.randn(n, self.latent, generator=rng, device=problem.device)
            with torch.no_grad():
                maps = maps_of(state.generator, z)[0][depth]
            target = torch.full((n,), -1, device=problem.device)
        if exchange:
            maps, target = exchanged(maps, rng), torch.full_like(target, -1)
        with torch.no_grad():
            x = image_from(state.generator, maps, depth)
        x = cropped(rng, problem.spec, self.crop, self.flip)(x)
        return Batch(x, target=target, info=info, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss

    def _round(self, state: State, problem: Problem, rng: torch.Generator) -> Tensor:
        """Steps of the generator on one set of latents; keeps the maps of the step of least loss, which it gives."""
        z = torch.randn(self.batch, self.latent, generator=rng, device=problem.device)
        target = equally(problem.spec.num_classes, self.batch, rng, problem.device)
        generator, best = state.generator.train(), Best(unfound(problem, self.batch))
        now: list[Tensor] = []
        kept: list[Tensor] = []
        least = best.loss

        def make() -> Tensor:
            now[:], x = maps_of(generator, z)
            return x

        def keep() -> None:
            nonlocal least
            found = [maps.detach().half() for maps in now]
            kept[:] = [torch.where(best.loss < least, a, b) for a, b in zip(found, kept or found, strict=True)]
            least = best.loss

        descend(
            problem,
            self.objective,
            state.terms,
            make=make,
            optimiser=torch.optim.Adam(generator.parameters(), lr=self.learning_rate, betas=(0.5, 0.999), fused=True),
            steps=self.steps,
            target=target,
            view=cropped(rng, problem.spec, self.crop, self.flip),
            after=keep,
            best=best,
        )
        generator.eval().zero_grad(set_to_none=True)
        finite = torch.stack([best.loss.isfinite(), *(maps.isfinite().all() for maps in kept)]).all()
        kept = [torch.where(finite, maps, torch.nan) for maps in kept]  # what is drawn of them is no result either
        first = 0 if self.capacity is None else max(0, len(state.classes) + self.batch - self.capacity)
        pairs = zip(state.maps, kept, strict=True)
        state.maps = [torch.cat([old[first:], new]) if len(old) else new for old, new in pairs]
        state.classes = torch.cat([state.classes[first:], target])
        state.rounds += 1
        return best.loss


def exchanged(maps: Tensor, rng: torch.Generator) -> Tensor:
    """maps (n, c, h, w): row i with a random half of its own channels and the others of row n - 1 - i."""
    n, channels = maps.shape[:2]
    rank = torch.rand(n, channels, generator=rng, device=maps.device).argsort(dim=1).argsort(dim=1)
    own = (rank < channels // 2)[:, :, None, None]
    return torch.where(own, maps, maps.flip(0))
