"""A term that learns: a critic tells patches of candidates from those of real images, candidates should pass for real.

Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio: Generative Adversarial Networks. 2014.
arXiv:1406.2661, with the patches of Fang et al.: Mosaicking to Distill. 2021. arXiv:2110.15094.
The non-saturating form.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dfkd.problem import Problem
from dfkd.rng import initialised
from generators.patch_critic import PatchCritic

from ..state import State
from .views import Views

__all__ = ["Patches"]


@dataclass(frozen=True)
class Patches:
    """What the critic's patches lack to pass for real: softplus(-logit), summed over a row's patches, a mean over rows.

    The critic takes one Adam step each time candidates are judged, before it judges them: softplus(-logit) of the real
    images' patches and softplus(logit) of the candidates', summed and divided by twice the rows. Real images are handed
    over with `show`; the critic learns nothing of candidates that no new ones were shown for.

    width: maps of the critic's first layer, >= 1. learning_rate: of its Adam, > 0.
    """

    width: int = 128
    learning_rate: float = 1e-3
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: expected an integer >= 1, found {self.width!r}")
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate: expected a number > 0, found {self.learning_rate!r}")

    def init(self, problem: Problem, seed: int) -> State:
        """real: the images shown for the next step, or None. The critic asks for gradients in its own step alone."""
        spec = problem.spec
        with initialised(seed):
            critic = PatchCritic(spec.channels, self.width, low=spec.low, high=spec.high).to(problem.device)
        optimiser = torch.optim.Adam(critic.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))
        return State(critic=critic.requires_grad_(False), optimiser=optimiser, real=None)

    def show(self, state: State, real: Tensor, rate: float = 1.0) -> None:
        """Real images (n, c, h, w), as many as there will be candidates, and the learning rate's factor."""
        state.real = real
        for group in state.optimiser.param_groups:
            group["lr"] = rate * self.learning_rate

    def __call__(self, state: Any, views: Views) -> Tensor:
        """The candidates are judged as they are kept, before any view of them."""
        if state.real is not None:
            self._learn(state, views.images.detach())
        # a step of the critic normalises with the rows it has; what is only looked at leaves its statistics alone
        state.critic.train(torch.is_grad_enabled())
        return softplus(-state.critic(views.images)).sum() / len(views.images)

    def _learn(self, state: State, candidates: Tensor) -> None:
        critic, real = state.critic.train().requires_grad_(True), state.real
        if len(real) != len(candidates):
            raise ValueError(f"real: expected {len(candidates)} images, as many as candidates, found {len(real)}")
        loss = softplus(critic(candidates)).sum() + softplus(-critic(real)).sum()
        (loss / (2 * len(real))).backward()
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)
        critic.requires_grad_(False)
        state.real = None
