"""Two images of another sampler blended, each pair in its own proportion.

Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization. 2017. arXiv:1710.09412.
Changed: one proportion per row where they draw one per batch; the teacher labels the blended image, and their blended
labels are kept beside it as ground truth.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch, whole

from .checks import a_sampler, one_mode, some_rows
from .state import State, Stream


@dataclass(frozen=True)
class Mixup:
    """Row i becomes p times row i plus 1 - p times another row, p ~ Beta(alpha, alpha).

    base: where the images come from; labelled in one BatchNorm mode. alpha: > 0; 1 makes every proportion as likely,
    small values leave most rows nearly unmixed.
    """

    base: Sampler
    alpha: float = 1.0
    name: ClassVar[str] = "mixup"
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
        share = symmetric_beta(n, self.alpha, rng, device)
        partner = torch.randperm(n, generator=rng, device=device)
        own = share[:, None, None, None]
        x = own * batch.x + (1.0 - own) * batch.x[partner]
        return blended(batch, x.clamp_(spec.low, spec.high), partner, share, spec.num_classes)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)  # row i is still mainly, and by its place, the base's row i


def symmetric_beta(n: int, alpha: float, rng: torch.Generator, device: torch.device) -> Tensor:
    """(n,) values of Beta(alpha, alpha), exactly, from two random numbers each and without rejection.

    T = sqrt(2 alpha (U^(-1/alpha) - 1)) cos(2 pi V) has Student's t distribution with 2 alpha degrees of freedom
    (Bailey's polar form), and (1 + T / sqrt(2 alpha + T^2)) / 2 is then Beta(alpha, alpha). With -ln U exponential no
    power overflows.
    """
    height = torch.empty(n, dtype=torch.float64, device=device).exponential_(generator=rng)
    turn = torch.empty(n, dtype=torch.float64, device=device).uniform_(0.0, 2.0 * math.pi, generator=rng).cos_()
    return (0.5 + 0.5 * turn / (1.0 / torch.expm1(height / alpha) + turn**2).sqrt()).clamp_(0.0, 1.0).float()


def blended(batch: Batch, x: Tensor, partner: Tensor, share: Tensor, num_classes: int) -> Batch:
    """The batch of the blended pixels x, in which row i keeps `share[i]` of itself and has the rest of its partner.

    Labels and weights are blended alike. What a sampler aimed at and the part it came from are no longer one class
    and one part, so they are left out; so is what the teacher said about the unblended rows.
    """
    n, y, weight = len(batch), batch.y, batch.weight
    if y is not None:
        if y.ndim == 1:
            y = torch.zeros(n, num_classes, device=y.device).scatter_(1, y[:, None], 1.0)
        y = share[:, None] * y + (1.0 - share[:, None]) * y[partner]
    if weight is not None:
        weight = share * weight + (1.0 - share) * weight[partner]
    return Batch(x, y=y, weight=weight, info=batch.info, labelling=whole(n, batch.mode))
