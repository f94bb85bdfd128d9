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

    x (n, c, h, w): what such images look like. They are NaN until a loss was offered, and from the first on that is not
    finite: a search that diverged has found nothing, so that no start is taken for a result.
    """

    def __init__(self, x: Tensor) -> None:
        self._x = torch.full_like(x, torch.nan, requires_grad=False)
        self._loss = torch.full((), torch.inf, device=x.device)
        self._spoilt = torch.zeros((), device=x.device)

    @property
    def x(self) -> Tensor:
        return self._x + self._spoilt

    @property
    def loss(self) -> Tensor:
        """Of these images, 0-d: infinite before there was one, NaN with them."""
        return self._loss + self._spoilt

    def offer(self, x: Tensor, loss: Tensor) -> None:
        loss = loss.detach()
        better = loss < self._loss
        self._x = torch.where(better, x.detach(), self._x)
        self._loss = torch.where(better, loss, self._loss)
        self._spoilt = self._spoilt + 0.0 * loss  # NaN where it is not finite


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
            kept = kept if best is None else best.x
            with torch.no_grad():
                objective.end_round(states, look(view(kept), target, kept))
    for group, lr in zip(optimiser.param_groups, base, strict=True):
        group["lr"] = lr
    return loss.detach()
