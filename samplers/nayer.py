"""Classes made into images through a layer of noise that is drawn anew for every round, and a bank of all of them.

Tran, Le, Le, Harandi, Tran, Phung: NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge
Distillation. 2024. arXiv:2310.00258. Changed: without a file of text embeddings of the classes their place is taken by
random orthogonal vectors, which may be learned; images are kept as bytes on the device; the preset's rate falls to 0,
theirs to 2e-4. Left out: their network and settings for images of 64 pixels and more.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from dfkd.interfaces import Preset, Sampler
from dfkd.losses import KL
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch, InputSpec
from generators.noisy_layer import LabelGenerator
from generators.trunk import Width

from .checks import at_least, between, one_of, paths_as_text, positive, true_or_false, weight_or_auto, whole_at_least
from .ingredients import (
    BatchNormWeight,
    Best,
    Disagreement,
    Objective,
    OneHot,
    banked,
    batchnorm_term,
    built,
    cropped,
    descend,
    due,
    renew,
    unfound,
)
from .state import State

WITHOUT_FILE = ("orthogonal", "learned")
SUFFIXES = (".npy", ".safetensors")
INSTEAD = f"; {' and '.join(WITHOUT_FILE)} need no file"


@dataclass(frozen=True)
class NAYER:
    """steps: of the generator in a round, >= 1; 30 are published for CIFAR-10, 40 for CIFAR-100, 60 for Tiny ImageNet.
    batch: images in a round, each class as often, at least one of each. embeddings: what stands for the classes, one
    row each: a .npy or .safetensors file of k rows of any length (theirs are of a text encoder), `orthogonal` for
    random vectors, `learned` for such that learn with the generator. length: of those vectors, >= 1. noise: length of
    what the noisy layers give, >= 1. width: of the generator's trunk, `small` or `large`. learning_rate: of an Adam
    that is new in each round, > 0.
    batchnorm: weight of the distance to the teacher's stored statistics, >= 0, or `auto` for a weight scaled to the
    teacher: 10 is theirs, for CIFAR nets. momentum: what earlier rounds' statistics count in it, in [0, 1). one_hot:
    weight of the cross-entropy against the class, >= 0. adversarial: weight of the disagreement with the student where
    both give the same class, >= 0.
    every: draws that make an epoch, >= 1. rounds: those of an epoch, before its draws, >= 1. warmup: epochs before the
    first draw, without draws and without the adversary, >= 0. warmup_rounds: those of each, >= 1. renew: epochs after
    which the whole generator begins anew, >= 1, or None. capacity: most images kept, None keeps all. crop: black pixels
    around an image, of which a window is cut, shown to the teacher and to the student; 0 is off, None takes an eighth
    of the side. flip: whether half of them are mirrored; turn it off where a mirrored image means something else.
    """

    steps: int = 40
    batch: int = 400
    embeddings: str = "orthogonal"
    length: int = 512
    noise: int = 1000
    width: Width = "small"
    learning_rate: float = 4e-3
    batchnorm: BatchNormWeight = 10.0
    momentum: float = 0.9
    one_hot: float = 0.5
    adversarial: float = 1.33
    every: int = 400
    rounds: int = 2
    warmup: int = 20
    warmup_rounds: int = 10
    renew: int | None = 10
    capacity: int | None = None
    crop: int | None = None
    flip: bool = True
    name: ClassVar[str] = "nayer"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad", "batchnorm")
    preset: ClassVar[Preset] = Preset(
        objective={"kl": (1.0, KL(temperature=20.0))},
        optimiser={"learning_rate": 0.2, "weight_decay": 1e-4},
        batch=512,
        steps=120_000,
    )

    def __post_init__(self) -> None:
        paths_as_text(self, "embeddings")
        true_or_false(self, "flip")
        whole_at_least(self, 1, "steps", "length", "noise", "every", "rounds", "warmup_rounds")
        whole_at_least(self, 2, "batch")
        whole_at_least(self, 0, "warmup")
        if self.renew is not None:
            whole_at_least(self, 1, "renew")
        one_of(self, get_args(Width), "width")
        positive(self, "learning_rate")
        weight_or_auto(self, "batchnorm")
        at_least(self, 0.0, "one_hot", "adversarial")
        between(self, 0.0, 0.999, "momentum")
        word = isinstance(self.embeddings, str)
        if not word or (self.embeddings not in WITHOUT_FILE and Path(self.embeddings).suffix not in SUFFIXES):
            raise ValueError(
                f"embeddings: expected {', '.join(WITHOUT_FILE)}, or a .npy or .safetensors file, "
                f"found {repr(self.embeddings) if word else f'a value of type {type(self.embeddings).__name__}'}"
            )
        if not self._objective(0).terms:
            raise ValueError("one_hot: expected it or batchnorm above 0, found nothing to look for in the first rounds")
        _ = self.bank  # it checks what is left

    @property
    def uses_student(self) -> bool:
        return self.adversarial > 0.0

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.embeddings in WITHOUT_FILE else (self.embeddings,)

    def _objective(self, epoch: int) -> Objective:
        """In this epoch; the adversary is last, so that what comes before it has the same states without it."""
        adversarial = self.adversarial if epoch >= self.warmup else 0.0
        return Objective(
            (
                batchnorm_term(self.batchnorm, momentum=self.momentum),
                (self.one_hot, OneHot("target")),
                (adversarial, Disagreement("masked_kl")),
            )
        )

    def _epoch(self, done: int) -> tuple[int, bool]:
        """After so many rounds: the next one's epoch, and whether it is the first of it."""
        before = self.warmup * self.warmup_rounds
        if done < before:
            return done // self.warmup_rounds, done % self.warmup_rounds == 0
        return self.warmup + (done - before) // self.rounds, (done - before) % self.rounds == 0

    # -- rounds --------------------------------------------------------------------------------------------------

    def begin(self, problem: Problem, seed: int) -> State:
        k = problem.spec.num_classes
        if self.batch < k:
            raise ValueError(
                f"{self.name}: batch: expected at least {k} rows to balance {k} classes, found {self.batch}; "
                "fast_dfkd, which draws its classes, takes fewer"
            )
        terms = self._objective(self.warmup).init(problem, derive(seed, "terms"), who=self.name)
        generator = built(self._network, problem, derive(seed, "generator"), self.name)
        return State(terms=terms, generator=generator.train(), rounds=0)

    def _network(self, spec: InputSpec) -> LabelGenerator:
        k = spec.num_classes
        return LabelGenerator(
            spec.shape,
            self._embeddings(k),
            blocks=math.ceil(self.batch / k),
            noise=self.noise,
            width=self.width,
            learned=self.embeddings == "learned",
            low=spec.low,
            high=spec.high,
        )

    def _embeddings(self, k: int) -> Tensor:
        try:
            return embeddings_of(self.embeddings, k, self.length)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}{INSTEAD}") from error

    def round(self, state: State, problem: Problem, rng: torch.Generator) -> Batch:
        spec, generator = problem.spec, state.generator
        epoch, first = self._epoch(state.rounds)
        # epochs are counted from the end of the warm-up on, as its length is no matter of the generator's age
        if first and due(epoch if epoch < self.warmup else epoch - self.warmup, self.renew):
            renew(generator, derive(rng.initial_seed(), "generator", state.rounds))
        generator.noisy.redraw(rng)
        target = _balanced(self.batch, spec.num_classes, rng, problem.device)
        objective, best = self._objective(epoch), Best(unfound(problem, self.batch))
        parameters = [parameter for parameter in generator.parameters() if parameter.requires_grad]
        descend(
            problem,
            objective,
            state.terms[: len(objective.terms)],
            make=lambda: generator(target),
            optimiser=torch.optim.Adam(parameters, lr=self.learning_rate, betas=(0.5, 0.999), fused=True),
            steps=self.steps,
            target=target,
            view=cropped(rng, spec, self.crop, self.flip),
            best=best,
        )
        state.rounds += 1
        return Batch(best.x, target=target, info={"loss": best.loss})

    # -- the sampler ---------------------------------------------------------------------------------------------

    @property
    def bank(self) -> Sampler:
        return banked(
            self,
            rows=self.rounds * self.batch,
            every=self.every,
            warmup=math.ceil(self.warmup * self.warmup_rounds / self.rounds) + 1,
            capacity=self.capacity,
            crop=self.crop,
            flip=self.flip,
        )

    def init(self, problem: Problem, seed: int) -> State:
        state: State = self.bank.init(problem, seed)
        return state

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        return self.bank.draw(state, problem, n, learn)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.bank.observe(state, batch, loss)


def _balanced(n: int, k: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """(n,): all classes in order, as often as they go into n, then classes drawn at random."""
    rest = torch.randint(k, (n % k,), generator=rng, device=device)
    return torch.cat([torch.arange(k, device=device).repeat(n // k), rest])


def embeddings_of(source: str, k: int, length: int) -> Tensor:
    """(k, d) float32: random rows of length 1, orthogonal as far as they can be, or what a file holds."""
    if source in WITHOUT_FILE:
        rows: Tensor = torch.linalg.qr(torch.randn(max(k, length), max(k, length))).Q[:k, :length]
        return torch.nn.functional.normalize(rows, dim=1)
    found = _only_array(source)
    if found.ndim != 2 or len(found) != k or not found.numel():
        raise ValueError(
            f"embeddings: expected a row of numbers for each of {k} classes, found an array of shape "
            f"{tuple(found.shape)} in {source!r}"
        )
    found = found.float()
    if not bool(torch.isfinite(found).all()):  # sync
        raise ValueError(
            f"embeddings: expected finite numbers, found NaN, infinity or one beyond single precision in {source!r}"
        )
    first: dict[tuple[float, ...], int] = {}
    for row, values in enumerate(found.tolist()):  # sync
        other = first.setdefault(tuple(values), row)
        if other < row:
            raise ValueError(
                f"embeddings: expected rows that tell the classes apart, found those of classes {other} and {row} "
                f"equal in {source!r}"
            )
    return found


def _only_array(path: str) -> Tensor:
    """The one array of a .npy or .safetensors file, of real numbers."""
    try:
        if path.endswith(".npy"):
            with open(path, "rb") as file:  # np.load takes what is no array for a pickle, and says how to allow it
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype.kind not in "fiub":
                raise ValueError(f"expected real numbers, found {array.dtype}")
            return torch.from_numpy(array.astype(np.float64))
        arrays = load_file(path)
    except (OSError, EOFError, ValueError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"embeddings: cannot read {path!r}: {reason}") from error
    if len(arrays) != 1:
        raise ValueError(f"embeddings: expected one array in {path!r}, found {len(arrays)}")
    found = next(iter(arrays.values()))
    if found.is_complex():
        raise ValueError(f"embeddings: cannot read {path!r}: expected real numbers, found {found.dtype}")
    return found
