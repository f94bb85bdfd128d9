"""A network that remembers what a generator used to make, so that a student does not forget what it learned of it.

Binici, Aggarwal, Pham, Leman, Mitra: Robust and Resource-Efficient Data-Free Knowledge Distillation by Generative
Pseudo Replay. 2022. arXiv:2201.03019.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.rng import initialised
from generators.vae import VAE

from ..checks import at_least, positive, whole_at_least
from ..state import State
from .classes import Balance, OneHot
from .terms import Objective

__all__ = ["Memory"]


@dataclass(frozen=True)
class Memory:
    """latent: length of a latent vector, >= 1. learning_rate: Adam's for the network, > 0. recall_rate: Adam's for the
    one step of a latent vector, > 0. one_hot, balance: what the teacher's certainty and the even use of classes count
    in that step, beside the latents' own mean and variance, >= 0. divergence: weight of the latents' distance from
    N(0, 1) while the network learns, >= 0. mean, std: of what it recalls, in fractions of the box, as for TrunkNetwork.
    """

    latent: int = 1000
    learning_rate: float = 5e-4
    recall_rate: float = 0.02
    one_hot: float = 1.0
    balance: float = 2.171
    divergence: float = 1e-5
    mean: float = 0.5
    std: float = 0.25

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent")
        positive(self, "learning_rate", "recall_rate")
        at_least(self, 0.0, "one_hot", "balance", "divergence")

    @property
    def objective(self) -> Objective:
        """What a recalled image should be to the teacher."""
        return Objective(((self.one_hot, OneHot("argmax")), (self.balance, Balance())))

    def init(self, problem: Problem, seed: int) -> State:
        spec = problem.spec
        with initialised(seed):
            network = VAE(spec.shape, self.latent, low=spec.low, high=spec.high, mean=self.mean, std=self.std).to(
                problem.device
            )
        return State(network=network.eval(), optimiser=torch.optim.Adam(network.parameters(), lr=self.learning_rate))

    def recall(self, state: State, problem: Problem, n: int, rng: torch.Generator) -> Tensor:
        """n images from memory, of latents that were moved by one step; no gradient reaches the network."""
        # the latents' variance is one of a batch: a single row is the first of two
        z = torch.randn(max(n, 2), self.latent, generator=rng, device=problem.device).requires_grad_(True)
        decoder, objective = state.network.decoder, self.objective
        optimiser = torch.optim.Adam([z], lr=self.recall_rate)
        with objective.watching(problem) as look:
            loss = normality(z)
            if objective.terms:
                loss = loss + objective([None] * len(objective.terms), look(decoder(z), None))
            (z.grad,) = torch.autograd.grad(loss, [z])
        optimiser.step()
        with torch.no_grad():
            return decoder(z)[:n]  # type: ignore[no-any-return]

    def learn(self, state: State, problem: Problem, x: Tensor, rng: torch.Generator) -> Tensor:
        """One step on images (n, c, h, w), n >= 2, which should come back alike to the eye and to the teacher."""
        noise = torch.randn(len(x), self.latent, generator=rng, device=problem.device)
        network = state.network.train()
        with problem.searching():
            with torch.no_grad():
                wanted = problem.teacher(x).logits
            again, divergences = network(x, noise)
            # as published both errors are means over all elements, of images whose unit is a quarter of the box
            seen = (again - x).abs().mean() / (0.25 * problem.spec.span)
            said = (problem.teacher(again).logits - wanted).abs().mean()
            loss = seen + said + self.divergence * divergences.mean()
            loss.backward()
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)
        network.eval()
        done: Tensor = loss.detach()
        return done


def normality(z: Tensor) -> Tensor:
    """z (n, latent), n >= 2 -> how far the entries' variances are from 1 and their means from 0: mean squares."""
    var, mean = torch.var_mean(z, dim=0)
    return (var - 1.0).square().mean() + mean.square().mean()
