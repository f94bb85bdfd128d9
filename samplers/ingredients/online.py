"""A generator that learns while the student does: what it descends, how often, and what the student sees of it.

The recipes over it differ in settings alone. One round is `generator_steps` steps of the generator, then draws until
the next one is due; nothing is ever set back: weights and the optimiser's state live as long as the run.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.types import BATCHNORM_MODES, Batch, BatchNormMode, Outputs, whole

from ..checks import a_labelling, between, one_of, positive, some_rows, whole_at_least
from ..state import State
from .classes import Balance
from .descend import descend
from .networks import Network, built
from .terms import Objective
from .views import Views

__all__ = ["OnlineGenerator", "Rate", "Reuse", "enough_rows", "sampling"]

Reuse = Literal["fresh", "latents", "shared"]
"""fresh: new latents at each draw. latents: a round's draws show what its latents give after the generator's steps.
shared: they show the very images that the generator's last step has judged."""

Rate = Literal["constant", "cosine", "steps"]


@dataclass(frozen=True)
class OnlineGenerator:
    """objective: what the generator descends. network: what it is. batch: images in one of its steps, >= 2.
    learning_rate, betas: Adam's. generator_steps: its steps in a round, >= 0. student_steps: draws from one round to
    the next, >= 1. reuse: what a round's draws show. sampled: how its BatchNorm normalises when it is drawn from,
    `eval` (stored statistics) or `batch`; stored statistics move in its own steps alone. rate: what the learning rate
    does over the run: `constant`, `cosine` to 0, or `steps`, times 0.1 at each of the milestones, fractions of the run.
    clip: largest norm of its gradient, > 0. decay: of a moving average of the generator, in [0, 1), from which half of
    every draw then comes; None for none. labelling: the teacher's BatchNorm mode for the images.
    """

    objective: Objective
    network: Network
    batch: int = 256
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    generator_steps: int = 1
    student_steps: int = 1
    reuse: Reuse = "fresh"
    sampled: BatchNormMode = "eval"
    rate: Rate = "constant"
    milestones: tuple[float, ...] = ()
    clip: float | None = None
    decay: float | None = None
    labelling: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        whole_at_least(self, 2, "batch")
        whole_at_least(self, 1, "student_steps")
        whole_at_least(self, 0 if self.reuse == "fresh" else 1, "generator_steps")
        positive(self, "learning_rate")
        one_of(self, get_args(Reuse), "reuse")
        one_of(self, BATCHNORM_MODES, "sampled")
        one_of(self, get_args(Rate), "rate")
        a_labelling(self.labelling)
        if self.clip is not None:
            positive(self, "clip")
        if self.decay is not None:
            between(self, 0.0, 1.0, "decay")
            if self.reuse == "shared":
                raise ValueError(f"decay: expected None where images are shared, found {self.decay!r}")
        _fractions(self.rate, self.milestones)
        if not self.objective.terms:
            raise ValueError("objective: expected at least one term whose weight is not 0, found none")

    # -- the three that a sampler hands on to --------------------------------------------------------------------

    def init(self, problem: Problem, seed: int, who: str) -> State:
        """UnsupportedProblem naming `who` where the teacher lacks what a term needs or has images of another size than
        the network makes; ValueError where all classes do not go into a batch that is to hold them equally."""
        enough_rows(self.objective, self.batch, problem, who)
        terms = self.objective.init(problem, derive(seed, "terms"), who=who)
        generator = built(self.network.build, problem, derive(seed, "generator"), who).eval()
        return State(
            stream=Stream(seed, problem.device),
            terms=terms,
            generator=generator,
            average=None if self.decay is None else copy.deepcopy(generator),
            optimiser=torch.optim.Adam(generator.parameters(), lr=self.learning_rate, betas=self.betas, fused=True),
            draws=0,
            images=torch.empty(0, *problem.spec.shape, device=problem.device),
            logits=torch.empty(0, problem.spec.num_classes, device=problem.device),
            shown=0,
        )

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        """n rows; with learn=False fresh ones always."""
        some_rows(n)
        rng = state.stream.advance()
        info = {}
        if learn:
            if state.draws % self.student_steps == 0 and self.generator_steps:
                info["generator_loss"] = self._learn(state, problem, rng)
            state.draws += 1
        if not learn or self.reuse == "fresh":
            x = self.images(state, self.latents(problem, n, rng))
            return Batch(x, info=info, labelling=whole(n, self.labelling))
        return self._shown(state, problem, n, rng, info)

    # -- what it is made of --------------------------------------------------------------------------------------

    def latents(self, problem: Problem, n: int, rng: torch.Generator) -> Tensor:
        """z (n, latent) ~ N(0, 1)."""
        return torch.randn(n, self.network.latent, generator=rng, device=problem.device)

    def images(self, state: State, z: Tensor) -> Tensor:
        """z (n, latent) -> (n, c, h, w) as they leave the sampler. The last half are the average's."""
        own = len(z) if state.average is None else len(z) - len(z) // 2
        with torch.no_grad(), sampling(state.generator, self.sampled):
            x: Tensor = state.generator(z[:own])
        if own < len(z):
            with torch.no_grad(), sampling(state.average, self.sampled):
                x = torch.cat([x, state.average(z[own:])])
        return x

    def factor(self, progress: float) -> float:
        """Of the learning rate, at this progress in [0, 1]."""
        if self.rate == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return float(0.1 ** sum(progress >= milestone for milestone in self.milestones))

    def _learn(self, state: State, problem: Problem, rng: torch.Generator) -> Tensor:
        """One round for the generator; its last loss. Latents are new at each step, but for `latents` of the round."""
        generator, factor = state.generator.train(), self.factor(problem.progress)
        kept = self.latents(problem, self.batch, rng) if self.reuse == "latents" else None
        judged: list[Views] = []

        def make() -> Tensor:
            z = self.latents(problem, self.batch, rng) if kept is None else kept
            return generator(z)  # type: ignore[no-any-return]

        def seen(views: Views) -> None:
            judged[:] = [views]

        try:
            loss = descend(
                problem,
                self.objective,
                state.terms,
                make=make,
                optimiser=state.optimiser,
                steps=self.generator_steps,
                rate=lambda step: factor,
                after=(lambda: _follow(state.average, generator, self.decay)) if self.decay is not None else None,
                clip=self.clip,
                seen=seen if self.reuse == "shared" else None,
            )
        finally:
            generator.eval()
        if kept is not None:
            self._show(state, problem, self.images(state, kept))
        elif judged:
            (views,) = judged
            same = problem.teacher.precision == "float32"  # in another precision answers differ
            self._show(state, problem, views.images.detach(), views.teacher.logits.detach() if same else None)
        return loss

    # -- what a round shows --------------------------------------------------------------------------------------

    def _show(self, state: State, problem: Problem, x: Tensor, logits: Tensor | None = None) -> None:
        """From now on these rows; the teacher is asked about them once, here, unless its answers are there."""
        state.images, state.shown = x, 0
        state.logits = self._labelled(problem, x) if logits is None else logits

    def _shown(self, state: State, problem: Problem, n: int, rng: torch.Generator, info: dict[str, Any]) -> Batch:
        """The next n rows of the round, from the start again after the last; as many more as n needs are made."""
        missing = n - len(state.images)
        if missing > 0:
            x = self.images(state, self.latents(problem, missing, rng))
            state.images = torch.cat([state.images, x])
            state.logits = torch.cat([state.logits, self._labelled(problem, x)])
        size = len(state.images)
        index = torch.arange(state.shown, state.shown + n, device=problem.device) % size
        state.shown = (state.shown + n) % size
        labelling, teacher = whole(n, self.labelling), None
        if self.labelling == "eval":  # else a row's answers depend on its company
            teacher = Outputs(state.logits[index], {}, labelling, problem.teacher.precision)
        return Batch(state.images[index], info=info, labelling=labelling, teacher=teacher)

    def _labelled(self, problem: Problem, x: Tensor) -> Tensor:
        """(n, k) of the teacher, or no more than as many rows where answers are not carried."""
        if self.labelling != "eval":
            return x.new_zeros(len(x), problem.spec.num_classes)
        return problem.label(Batch(x)).logits


def enough_rows(objective: Objective, batch: int, problem: Problem, who: str) -> None:
    """ValueError where a batch that is to hold all classes equally has fewer rows than there are classes."""
    k = problem.spec.num_classes
    if batch < k and any(isinstance(term, Balance) for _, term in objective.terms):
        raise ValueError(
            f"{who}: batch: expected at least {k} rows to balance {k} classes, found {batch}; or balance 0"
        )


@contextmanager
def sampling(generator: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """Inside, a network that stands in evaluation mode normalises as `mode` says; no stored statistic moves."""
    norms = [part for part in generator.modules() if isinstance(part, _BatchNorm)] if mode == "batch" else []
    for part in norms:
        # without `track_running_stats` torch passes no running buffers: nothing is read and nothing is written
        part.training, part.track_running_stats = True, False
    try:
        yield
    finally:
        for part in norms:
            part.training, part.track_running_stats = False, True


@torch.no_grad()
def _follow(average: nn.Module, generator: nn.Module, decay: float | None) -> None:
    """average <- decay * average + (1 - decay) * generator for parameters; buffers are copied."""
    assert decay is not None
    for mean, now in zip(average.parameters(), generator.parameters(), strict=True):
        mean.lerp_(now, 1.0 - decay)
    for kept, buffer in zip(average.buffers(), generator.buffers(), strict=True):
        kept.copy_(buffer)


def _fractions(rate: str, milestones: tuple[float, ...]) -> None:
    """Milestones go with `steps` and rise within the run."""
    rising = all(a < b for a, b in zip((0.0, *milestones), (*milestones, 1.0), strict=True))
    if (rate == "steps") != bool(milestones) or not rising:
        wanted = "rising fractions of the run in (0, 1)" if rate == "steps" else f"none with rate {rate}"
        raise ValueError(f"milestones: expected {wanted}, found {milestones!r}")
