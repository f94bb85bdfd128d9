"""The one loop of synthesis: make images, judge them, step. Recipes differ in what they hand to it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfkd.problem import Problem

from .terms import Objective
from .views import View, Views, identity

__all__ = ["Best", "descend"]


class Best:
    """The images of the least loss offered so far: a copy, chosen on the device. One per resolution stage.

    x (n, c, h, w): what such images look like. Until a finite loss was offered they are NaN: what a search that never
    had one has found, so that no start is taken for a result.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = torch.full_like(x, torch.nan, requires_grad=False)
        self.loss = torch.full((), torch.inf, device=x.device)

    def offer(self, x: Tensor, loss: Tensor) -> None:
        better = loss.detach() < self.loss  # never for NaN
        self.x = torch.where(better, x.detach(), self.x)
        self.loss = torch.where(better, loss.detach(), self.loss)


def descend(
    problem: Problem,
    objective: Objective,
    states: list[Any],
    make: Callable[[], Tensor],
    optimiser: torch.optim.Optimizer,
    steps: int,
    *,
    target: Tensor | None = None,
    view: View = identity,
    rate: Callable[[int], float] | None = None,
    after: Callable[[], None] | None = None,
    best: Best | None = None,
    clip: float | None = None,
    seen: Callable[[Views], None] | None = None,
) -> Tensor:
    """`steps` steps of the optimiser down the objective; the last loss, 0-d. One round.

    make: the candidates with their graph to what is optimised (pixels, a generator, its latents). view: how the models
    see them. rate: the learning rate's factor at a step. after: called after each step (a clip to the box). best: is
    offered each step's images with their loss, before the step. clip: the largest norm of the gradient of all that the
    optimiser moves. seen: is given each step's views when they have been judged, to keep answers that are there anyway.
    """
    loss, kept = torch.zeros((), device=problem.device), None
    base = [group["lr"] for group in optimiser.param_groups]
    with objective.watching(problem) as look:
        for step in range(steps):
            if rate is not None:
                for group, lr in zip(optimiser.param_groups, base, strict=True):
                    group["lr"] = lr * rate(step)
            x = make()
            views = look(view(x), target, x)
            loss = objective(states, views)
            kept = x.detach()
            if best is not None:
                best.offer(x, loss)
                kept = best.x
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if seen is not None:
                seen(views)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
            optimiser.step()
            objective.after_step(states)
            if after is not None:
                after()
        if objective.learns and kept is not None:
            with torch.no_grad():
                objective.end_round(states, look(view(kept), target, kept))
    for group, lr in zip(optimiser.param_groups, base, strict=True):
        group["lr"] = lr
    return loss.detach()
