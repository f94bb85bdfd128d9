"""Another sampler's images, part of them moved a bounded way to where student and teacher disagree most.

Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial Attacks. 2018.
arXiv:1706.06083. Changed: the signed steps climb the disagreement of two models instead of one model's loss, and only
a fraction of the rows is searched, so that the student keeps seeing the base sampler's own images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.types import Batch, BatchNormMode

from .checks import a_sampler, between, one_of, positive, requires, whole_at_least
from .ingredients import Divergence, disagreement
from .state import State


@dataclass(frozen=True)
class Adversarial:
    """base: the sampler to start from. steps: signed gradient steps, >= 0. epsilon: how far a pixel may move, in
    fractions of the box, 0 to 1. step_size: how far it moves in one step, > 0, or None for a quarter of epsilon.
    divergence: what is raised, `kl`, `l1`, `js` or `masked_kl`. fraction: share of the rows that is searched, 0 to 1.
    random_start: whether a search begins at a random place of the ball instead of its middle.
    """

    base: Sampler
    steps: int = 5
    epsilon: float = 16 / 255
    step_size: float | None = None
    divergence: Divergence = "kl"
    fraction: float = 0.5
    random_start: bool = False
    name: ClassVar[str] = "adversarial"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad",)
    uses_student: ClassVar[bool] = True

    def __post_init__(self) -> None:
        a_sampler("base", self.base)
        whole_at_least(self, 0, "steps")
        between(self, 0.0, 1.0, "epsilon", "fraction")
        if self.step_size is not None:
            positive(self, "step_size")
        one_of(self, get_args(Divergence), "divergence")

    def init(self, problem: Problem, seed: int) -> State:
        requires(problem, "input_grad", who=self.name)
        requires(problem, "input_grad", who=self.name, of_student=True)
        return State(stream=Stream(seed, problem.device), base=self.base.init(problem, derive(seed, "base")))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        batch = self.base.draw(state.base, problem, n, learn)
        rng = state.stream.advance()
        x, searched = batch.x.clone(), 0
        with problem.searching():
            start = 0
            for rows, mode in batch.labelling:
                # the same share of each run, and the nearest whole number of rows of all
                count = round_half_up(self.fraction * (start + rows)) - round_half_up(self.fraction * start)
                if count:
                    run = slice(start, start + rows)
                    x[run] = self._search(problem, x[run], mode, count, rng)
                start, searched = start + rows, searched + count
        share = torch.full((), searched / n, device=x.device)
        return replace(batch.with_x(x), info={**batch.info, "searched": share})

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)

    def _search(self, problem: Problem, x: Tensor, mode: BatchNormMode, count: int, rng: torch.Generator) -> Tensor:
        """One run of rows that are labelled together, `count` of them moved."""
        spec, rows = problem.spec, torch.randperm(len(x), generator=rng, device=x.device)[:count]
        reach = self.epsilon * spec.span
        step = (self.epsilon / 4 if self.step_size is None else self.step_size) * spec.span
        origin = x[rows]
        low, high = (origin - reach).clamp(min=spec.low), (origin + reach).clamp(max=spec.high)
        moved = origin
        if self.random_start:
            moved = torch.lerp(low, high, torch.rand(origin.shape, generator=rng, device=x.device))
        ask = _asker(problem, x, rows, mode)
        for _ in range(self.steps):
            moved = moved.detach().requires_grad_(True)
            gap = disagreement(problem.student(moved).logits, ask(moved), self.divergence).sum()
            (slope,) = torch.autograd.grad(gap, moved)
            moved = (moved + step * slope.sign()).clamp(low, high)
        return x.index_copy(0, rows, moved.detach())


def round_half_up(value: float) -> int:
    """The nearest integer; halves go up, so that one row at fraction 0.5 is searched."""
    return int(value + 0.5)


def _asker(problem: Problem, x: Tensor, rows: Tensor, mode: BatchNormMode) -> Callable[[Tensor], Tensor]:
    """The teacher's logits for moved rows; in batch mode their company counts, so the whole run is asked."""
    if mode == "eval":
        return lambda moved: problem.teacher(moved).logits
    return lambda moved: problem.teacher(x.index_copy(0, rows, moved), mode).logits[rows]
