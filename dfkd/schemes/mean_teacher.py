"""A student beside the moving average of its own weights, which teaches it and is kept.

Tarvainen, Valpola: Mean Teachers Are Better Role Models: Weight-Averaged Consistency Targets Improve Semi-Supervised
Deep Learning Results. NIPS 2017. arXiv:1703.01780. Changed: the objective over the frozen teacher in place of labels,
KL in place of squared differences of probabilities, no ramps; both see the same images, so only what differs in the
weights (and dropout) is to be made consistent.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dfkd.losses import Objective
from dfkd.losses.peers import Peers
from dfkd.losses.response import require_temperature
from dfkd.schemes.together import anchored, weighed, with_peers
from dfkd.types import InputSpec

__all__ = ["Averaged", "MeanTeacher"]

Kept = Literal["average", "online"]
KEPT: tuple[str, ...] = get_args(Kept)


class Averaged(nn.Module):
    """A network, `online`, and `average`: m average + (1 - m) online after each step, buffers copied.

    The average follows at the start of the next forward pass in training, before which nobody asks it. In evaluation
    mode the one that is kept answers (the average as of the step before the last), else both, and `online` is given.
    """

    def __init__(self, online: nn.Module, momentum: float, keep: Kept = "average", teaches: bool = True) -> None:
        super().__init__()
        self.online, self.average = online, copy.deepcopy(online).requires_grad_(False)
        self.momentum, self.keep, self.teaches = momentum, keep, teaches

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the average. Equal weights stay equal, so that the first call, before any step, does nothing."""
        for ours, theirs in zip(self.average.parameters(), self.online.parameters(), strict=True):
            ours.lerp_(theirs, 1.0 - self.momentum)
        for copied, buffer in zip(self.average.buffers(), self.online.buffers(), strict=True):
            copied.copy_(buffer)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor
        if not self.training:
            answers = self.average(x) if self.keep == "average" else self.online(x)
            return answers
        self.follow()
        answers = self.online(x)
        if self.teaches:
            with torch.no_grad():
                self.average(x)  # its answers are tapped
        return answers


@dataclass(frozen=True)
class MeanTeacher:
    """The student minimises the objective and KL(average || student).

    momentum: m of the average, in [0, 1), per step. weight: of what the average teaches, >= 0; 0 leaves an average that
    is only kept. temperature: of that, > 0. keeps: `average` or `online`.
    """

    momentum: float = 0.999
    weight: float = 1.0
    temperature: float = 1.0
    keeps: Kept = "average"
    name: ClassVar[str] = "mean_teacher"

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum: expected a number >= 0 and < 1, found {self.momentum!r}")
        weighed(self.weight)
        require_temperature(self.temperature)
        if self.keeps not in KEPT:
            raise ValueError(f"keeps: expected one of {', '.join(KEPT)}, found {self.keeps!r}")

    def build(self, fresh: Callable[[int], nn.Module], spec: InputSpec, seed: int) -> Averaged:
        del spec, seed  # the student is built with them already
        return Averaged(fresh(0), self.momentum, self.keeps, self.weight > 0.0)

    def objective(self, given: Objective) -> Objective:
        terms = anchored(given, [("online", 1.0)])
        return with_peers(terms, self.weight, Peers((("average", "online"),), self.temperature))

    def keep(self, module: Any) -> nn.Module:
        last = copy.deepcopy(module)
        last.follow()  # the last step's
        kept: nn.Module = last.online if self.keeps == "online" else last.average.requires_grad_(True)
        return kept
