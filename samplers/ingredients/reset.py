"""Where a generator begins a round: drawn anew, in part or as a whole, or where earlier rounds have moved it to."""

import copy
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.rng import initialised

__all__ = ["Meta", "MetaStep", "due", "redraw", "redraw_first", "renew"]

MetaStep = Literal["fomaml", "reptile"]

PULL = 67.0
"""What Reptile multiplies the way from the start of a round to its end by, as published for it under Adam."""


def due(count: int, every: int | None) -> bool:
    """Whether something that happens at 0, every, 2 every, ... happens now; None: never."""
    return every is not None and count % every == 0


@torch.no_grad()
def redraw(module: nn.Module, rng: torch.Generator, std: float = 0.02, gain: float = 1.0) -> None:
    """Every layer as new: weights N(0, std^2), BatchNorm's N(gain, std^2) with empty statistics, biases 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            part.weight.normal_(0.0, std, generator=rng)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, _BatchNorm):
            part.reset_running_stats()
            if part.affine:
                part.weight.normal_(gain, std, generator=rng)
                part.bias.zero_()


def redraw_first(module: nn.Module, rng: torch.Generator, std: float = 0.02) -> None:
    """The first linear layer and the first BatchNorm anew, the weight of the latter N(0, std^2) too."""
    for kind in (nn.Linear, _BatchNorm):
        first = next((part for part in module.modules() if isinstance(part, kind)), None)
        if first is None:
            raise ValueError(f"module: expected a {kind.__name__.strip('_')} layer to draw anew, found none")
        redraw(first, rng, std, gain=0.0)


def renew(module: nn.Module, seed: int) -> None:
    """Every layer as torch itself begins it, in place."""
    with initialised(seed):
        for part in module.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, _BatchNorm)):
                part.reset_parameters()


class Meta:
    """A network that rounds begin at, moved after each one by an Adam step along what the round has found.

    step: `fomaml`, the sum of the gradients at all of the round's steps, taken as if they were the start's, or
    `reptile`, PULL times the way from the round's end back to its start. Saved with its optimiser.
    """

    def __init__(self, network: nn.Module, learning_rate: float, step: MetaStep = "fomaml") -> None:
        if step not in get_args(MetaStep):
            raise ValueError(f"step: expected one of {', '.join(get_args(MetaStep))}, found {step!r}")
        self.network, self.step = network, step
        self.optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.5, 0.999), fused=True)

    def begin(self) -> nn.Module:
        """A copy to be trained in this round, in training mode."""
        return copy.deepcopy(self.network).train()

    def collect(self, trained: nn.Module) -> None:
        """After each step of the round, while the copy's parameters still have that step's gradients."""
        if self.step == "reptile":
            return
        for start, now in zip(self.network.parameters(), trained.parameters(), strict=True):
            if now.grad is not None:
                start.grad = now.grad.clone() if start.grad is None else start.grad.add_(now.grad)

    def end(self, trained: nn.Module) -> None:
        """After the round: one step of the network that the next one begins at."""
        if self.step == "reptile":
            for start, now in zip(self.network.parameters(), trained.parameters(), strict=True):
                start.grad = PULL * (start.detach() - now.detach())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
