"""Rows of several samplers that count the more, the worse the student still does on their part.

Sagawa, Koh, Hashimoto, Liang: Distributionally Robust Neural Networks for Group Shifts: On the Importance of
Regularization for Worst-Case Generalization. 2020. arXiv:1911.08731. Changed: samplers for their groups of one data
set, the loss of matching the teacher for that of the labels, and a share of the weight that is never taken away.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.types import Batch

from .checks import between, positive
from .mixture import Mixture
from .state import State

LEAST = -30.0
"""The least log-weight: too little to be seen in the guarantee, and enough that no row counts nothing at all."""


@dataclass(frozen=True)
class Robust:
    """Equal shares of rows from each part, whose `weight` is multiplied by exp(rate x the student's loss on the part)
    after every step, so that what is minimised moves to the largest of the parts' losses.

    samplers: two or more parts. rate: > 0, in 1 / the unit of the objective. floor: share of the weight that is spread
    evenly whatever the losses, 0 to 1; at 1 it is an even mixture. info `PLACE.share`: a part's weight, of 1 in all.

    Guarantee, for K parts, T steps and losses in [0, B]: the largest over the parts of a part's average loss in the run
    exceeds the average of the weighted loss by at most

        ln K / (rate T) + rate B^2 / 8 + floor B,    and without floor sqrt(ln K / 2T) B at rate = sqrt(8 ln K / T) / B

    whatever the student does (Hedge; in expectation, as rows are drawn by chance, and with B K / n for B where a draw
    has n < K rows). With losses convex in the student's weights, the average student's worst loss is therefore above
    that of the best student by at most as much, plus the average regret of the student's optimiser. For a network,
    only the first statement holds. It is about these parts and their mixtures, and no other distribution.

    Losses reach it through composites that pass them on; inside Pooled and Balanced, which do not, its weights stay
    even. Draws that are scored have the parts in equal shares.

    Rows that count differently rather than unequal numbers of rows: the weights stay on the device, every part's loss
    is known equally well at each step, and no part has too few rows for BatchNorm. The price is in the gradient, whose
    variance is up to K times (K sum_k share_k^2 times) that of shares of rows; and coupled losses refuse such rows.
    """

    samplers: tuple[Sampler, ...]
    rate: float = 0.01
    floor: float = 0.0
    name: ClassVar[str] = "robust"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True  # never asked, but the weights follow its losses

    def __post_init__(self) -> None:
        object.__setattr__(self, "samplers", self.even.samplers)
        positive(self, "rate")
        between(self, 0.0, 1.0, "floor")

    @property
    def even(self) -> Mixture:
        """The parts in equal shares, which draws the rows and tells the parts of theirs."""
        return Mixture(self.samplers)

    def init(self, problem: Problem, seed: int) -> State:
        """log_weights (K,): what the weights are before the floor, but for a constant."""
        log_weights = torch.zeros(len(self.samplers), device=problem.device)
        return State(even=self.even.init(problem, seed), log_weights=log_weights)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        batch = self.even.draw(state.even, problem, n, learn)
        assert batch.source is not None  # a mixture says where its rows are from
        shares = self.shares(state)
        weight = len(shares) * shares[batch.source]  # in expectation each part has n / K rows, so a mean row counts 1
        info = {f"{place}.share": share for place, share in enumerate(shares.unbind())}
        return replace(
            batch, weight=weight if batch.weight is None else weight * batch.weight, info={**batch.info, **info}
        )

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        """Raises the weights of the parts whose rows have a large loss, and tells the parts of their rows."""
        self.even.observe(state.even, batch, loss)
        # `source` may be that of a mixture around this one, so whose rows these are is taken from the last draw
        counts = torch.ones_like(loss) if batch.weight is None else batch.weight
        parts = zip((counts * loss).split(state.even.rows), counts.split(state.even.rows), strict=True)
        # within a part, its own weights decide; what this sampler and those around it multiplied by cancels
        means = [values.sum() / weights.sum() if len(weights) else loss.new_zeros(()) for values, weights in parts]
        # where there are fewer rows than parts a part is drawn now and then, and counts as often as it was not
        often = max(1.0, len(means) / len(loss))
        raised = state.log_weights + self.rate * often * torch.stack(means)
        state.log_weights = raised.log_softmax(dim=0).clamp_min(LEAST)

    def shares(self, state: State) -> Tensor:
        """(K,), of 1 in all: how much each part counts now."""
        weights: Tensor = state.log_weights.softmax(dim=0)
        return (1.0 - self.floor) * weights + self.floor / len(weights)
