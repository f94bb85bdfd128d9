"""Several students of one kind with different starts, each of which learns from the teacher and from all others.

Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning. CVPR 2018. arXiv:1706.00384. Changed: the objective over the frozen
teacher is the anchor that true labels are in the paper; all members take one step together, not in turns.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dfkd.losses import Objective
from dfkd.losses.peers import Peers
from dfkd.losses.response import require_temperature
from dfkd.schemes.together import anchored, counted, weighed, with_peers
from dfkd.types import InputSpec

__all__ = ["Cohort", "Mutual"]


class Cohort(nn.Module):
    """Networks that see the same images. It answers with its first member, which alone is asked in evaluation mode."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.members[0](x)
        if self.training:
            for member in self.members[1:]:
                member(x)  # its answers are tapped
        return first


@dataclass(frozen=True)
class Mutual:
    """Each member minimises the objective and the mean over the others of KL(other || it); the first is kept.

    members: >= 2. weight: of what they teach each other, >= 0; published 1. temperature: of that, > 0; published 1.
    """

    members: int = 2
    weight: float = 1.0
    temperature: float = 1.0
    name: ClassVar[str] = "mutual"

    def __post_init__(self) -> None:
        counted(self.members, 2, "members")
        weighed(self.weight)
        require_temperature(self.temperature)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"members.{place}" for place in range(self.members))

    def build(self, fresh: Callable[[int], nn.Module], spec: InputSpec, seed: int) -> Cohort:
        del spec, seed  # members are built with them already
        members = [fresh(place) for place in range(self.members)]
        first, second = members[0].state_dict(), members[1].state_dict()
        if all(torch.equal(value, second[key]) for key, value in first.items() if isinstance(value, Tensor)):
            raise ValueError("mutual: members that start from the same weights stay the same; expected a fresh student")
        return Cohort(members)

    def objective(self, given: Objective) -> Objective:
        terms = anchored(given, [(node, 1.0) for node in self.nodes])
        return with_peers(terms, self.weight, Peers(tuple(permutations(self.nodes, 2)), self.temperature))

    def keep(self, module: Any) -> nn.Module:
        kept: nn.Module = copy.deepcopy(module.members[0])
        return kept
