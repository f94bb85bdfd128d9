"""Images of a generator that was trained on data before: as they come, or steered by what the teacher says of them.

Stanton, Izmailov, Kirichenko, Alemi, Wilson: Does Knowledge Distillation Really Work? 2021. arXiv:2106.05945, who draw
from a GAN as it is. Changed: a generator of classes is asked for them equally often; as options, images are chosen so
that the teacher sees its classes equally often, or latents are searched for what the teacher (and the student) says.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.types import Batch, BatchNormMode, whole
from generators.saved import describe
from generators.sn_gan_training import load

from .balanced import Balanced
from .checks import (
    a_labelling,
    at_least,
    paths_as_text,
    positive,
    some_rows,
    true_or_false,
    weight_or_auto,
    whole_at_least,
)
from .ingredients import BatchNormWeight, Best, Disagreement, Objective, OneHot, batchnorm_term, descend, equally
from .state import State


@dataclass(frozen=True)
class GAN:
    """file: what `dfkd train-generator` saved. labels: whether the class that a row was made as is its `target`, of the
    teacher's classes; false for a generator of other classes, whose images then have none. balance: whether those rows
    are taken that spread best over the classes that the teacher sees, as `balanced` does; info `shortfall` says what
    classes lack. multiple: of how many times as many rows they are taken, an integer >= 2.
    steps: of a search for better latents, each of which keeps its length, before rows are drawn, >= 0; 0 for none.
    batch: rows searched together, >= 1; a draw makes as many batches as it needs and cuts the last. learning_rate: its
    Adam's, > 0. one_hot: weight of the cross-entropy against the row's target, >= 0; a row that has none gets one,
    classes equally often. adversarial: weight of the disagreement with the student, >= 0; 0 never asks it. batchnorm:
    weight of the distance to the teacher's stored statistics, >= 0, or `auto` for a weight scaled to the teacher.
    labelling: the teacher's BatchNorm mode for the images, `eval` or `batch`.
    """

    file: str
    labels: bool = True
    balance: bool = False
    multiple: int = 4
    steps: int = 0
    batch: int = 256
    learning_rate: float = 0.05
    one_hot: float = 1.0
    adversarial: float = 0.0
    batchnorm: BatchNormWeight = 0.0
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "gan"
    data_free: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        paths_as_text(self, "file")
        if not isinstance(self.file, str) or not self.file:
            raise ValueError(f"file: expected a generator's file, found {self.file!r}")
        true_or_false(self, "labels", "balance")
        whole_at_least(self, 2, "multiple")
        whole_at_least(self, 0, "steps")
        whole_at_least(self, 1, "batch")
        positive(self, "learning_rate")
        at_least(self, 0.0, "one_hot", "adversarial")
        weight_or_auto(self, "batchnorm")
        a_labelling(self.labelling)
        if self.steps and not self.objective.terms:
            raise ValueError("one_hot: expected at least one weight above 0 to search for, found none")

    @property
    def uses_student(self) -> bool:
        return self.steps > 0 and self.objective.uses_student

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.file,)

    def trained_on(self) -> dict[str, Any]:
        """By file, the data that it was trained on: source, digest, size and limit."""
        return {self.file: describe(self.file)["trained_on"]}

    @property
    def objective(self) -> Objective:
        return Objective(
            (
                (self.one_hot, OneHot("target")),
                batchnorm_term(self.batchnorm),
                (self.adversarial, Disagreement("kl")),
            )
        )

    @property
    def _candidates(self) -> Balanced:
        return Balanced(replace(self, balance=False), self.multiple)

    def init(self, problem: Problem, seed: int) -> State:
        if self.balance:
            return self._candidates.init(problem, seed)
        maker = Maker(self.file, self.labels, problem)
        terms = self.objective.init(problem, derive(seed, "terms"), who=self.name) if self.steps else []
        return State(stream=Stream(seed, problem.device), terms=terms, maker=maker)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        if self.balance:
            return self._candidates.draw(state, problem, n, learn)
        some_rows(n)
        rng, maker = state.stream.advance(), state.maker
        if self.steps:
            rounds = [self._search(state, problem, rng) for _ in range(math.ceil(n / self.batch))]
            x, target = (torch.cat(part)[:n] for part in zip(*((x, y) for x, y, _ in rounds), strict=True))
            info = {"loss": torch.stack([loss for _, _, loss in rounds]).mean()}
            return Batch(x, target=target, info=info, labelling=whole(n, self.labelling))
        y = maker.asked(n, rng)
        with torch.no_grad():
            x = maker.images(maker.latents(n, rng), y)
        return Batch(x, target=y if self.labels else None, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss

    def _search(self, state: State, problem: Problem, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One batch: images (n, c, h, w), the classes aimed at (n,), the loss of the images kept."""
        maker, spec = state.maker, problem.spec
        z = maker.latents(self.batch, rng).requires_grad_(True)
        length = z.detach().norm(dim=1, keepdim=True)
        y = maker.asked(self.batch, rng)
        target = y if y is not None and self.labels else equally(spec.num_classes, self.batch, rng, problem.device)
        best = Best(torch.empty(self.batch, *spec.shape, device=problem.device))

        def keep_length() -> None:
            with torch.no_grad():
                z.mul_(length / z.norm(dim=1, keepdim=True).clamp_min(1e-12))

        descend(
            problem,
            self.objective,
            state.terms,
            make=lambda: maker.images(z, y),
            optimiser=torch.optim.Adam([z], lr=self.learning_rate),
            steps=self.steps,
            target=target,
            after=keep_length,
            best=best,
        )
        return best.x, target, best.loss


class Maker:
    """A frozen generator that makes the problem's images. Nothing of it changes, so nothing but its name is saved."""

    def __init__(self, file: str, labels: bool, problem: Problem) -> None:
        network, about = load(file)
        spec = problem.spec
        if about["shape"] != spec.shape:
            raise ValueError(
                f"file: expected a generator of images {spec.shape}, as the teacher takes, "
                f"found one of {about['shape']} in {file!r}"
            )
        self.classes: int | None = about["classes"]
        if labels and self.classes is not None:
            _same_classes(about, problem, file)
        self.network, self.device = network.to(problem.device), problem.device
        self.made, self.box = (about["low"], about["high"]), (spec.low, spec.high)
        self.name = f"{about['kind']} {about['trained_on']['digest']} {about['steps']} {about['seed']}"

    def latents(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(n, self.network.latent, generator=rng, device=self.device)

    def asked(self, n: int, rng: torch.Generator) -> Tensor | None:
        """(n,) its classes, equally often; None where it has none."""
        return None if self.classes is None else equally(self.classes, n, rng, self.device)

    def images(self, z: Tensor, y: Tensor | None) -> Tensor:
        """(n, c, h, w) in the problem's box, with their graph to z."""
        x: Tensor = self.network(z, y)
        if self.made == self.box:
            return x
        (low, high), (least, most) = self.made, self.box
        x = least + (x - low) * ((most - least) / (high - low))
        return x.clamp(least, most)

    def state_dict(self) -> dict[str, str]:
        return {"name": self.name}

    def load_state_dict(self, state: dict[str, str]) -> None:
        if state["name"] != self.name:
            raise ValueError(f"state: expected the generator {self.name!r}, found {state['name']!r}")


def _same_classes(about: dict[str, Any], problem: Problem, file: str) -> None:
    """ValueError where a generator's classes are not the teacher's, as far as both are known."""
    spec, k, names = problem.spec, about["classes"], about["class_names"]
    otherwise = "labels=false draws its images without classes"
    if k != spec.num_classes:
        raise ValueError(
            f"file: expected a generator of {spec.num_classes} classes, as the teacher names, "
            f"found one of {k} in {file!r}; {otherwise}"
        )
    if names is None or spec.class_names is None:
        return
    for number, (made, named) in enumerate(zip(names, spec.class_names, strict=True)):
        if made != named:
            raise ValueError(
                f"file: expected a generator of the teacher's classes, found class {number} to be {made!r} "
                f"in {file!r} and {named!r} for the teacher; {otherwise}"
            )
