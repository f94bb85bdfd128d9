"""A box of one image pasted into another, each pair with a box of its own.

Yun, Han, Oh, Chun, Choe, Yoo: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features.
2019. arXiv:1905.04899. Changed: one box per row where they cut one per batch; the box lies wholly inside the image,
where theirs is cut off at the border; the teacher labels the pasted image.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch

from .checks import a_sampler, one_mode, some_rows
from .mixup import blended, symmetric_beta
from .state import State, Stream


@dataclass(frozen=True)
class CutMix:
    """In row i a box with the share 1 - p of the area comes from another row, p ~ Beta(alpha, alpha).

    base: where the images come from; labelled in one BatchNorm mode. alpha: > 0; 1 makes every area as likely, small
    values paste nearly nothing or nearly all.
    """

    base: Sampler
    alpha: float = 1.0
    name: ClassVar[str] = "cutmix"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        a_sampler("base", self.base)
        if not 0.0 < self.alpha < float("inf"):
            raise ValueError(f"alpha: expected a number > 0, found {self.alpha!r}")

    def init(self, problem: Problem, seed: int) -> State:
        stream = Stream(derive(seed, self.name), problem.device)
        return State(stream=stream, base=self.base.init(problem, derive(seed, "base")))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        spec, device = problem.spec, problem.device
        batch = self.base.draw(state.base, problem, n, learn)
        one_mode(batch, self.name)
        rng = state.stream.advance()
        side = (1.0 - symmetric_beta(n, self.alpha, rng, device)).sqrt()
        rows, columns = (interval(length, side, rng) for length in (spec.height, spec.width))
        partner = torch.randperm(n, generator=rng, device=device)
        box = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, h, w)
        x = torch.where(box, batch.x[partner], batch.x)
        kept = 1.0 - box.float().mean(dim=(1, 2, 3))  # the area in whole pixels, not the one that was asked for
        return blended(batch, x, partner, kept, spec.num_classes)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)


def interval(length: int, side: Tensor, rng: torch.Generator) -> Tensor:
    """(n, length) bool: in row i about the fraction side[i] of the places, contiguous, anywhere that fits."""
    size = (side * length).round()
    room = length - size + 1.0  # how many first places there are
    start = (torch.rand(side.shape, generator=rng, device=side.device) * room).floor().minimum(room - 1.0)[:, None]
    at = torch.arange(length, device=side.device)
    return (at >= start) & (at < start + size[:, None])
