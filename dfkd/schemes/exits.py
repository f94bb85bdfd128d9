"""A student that teaches its own earlier layers, through classifiers that are dropped at the end.

Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation. ICCV 2019. arXiv:1905.08094. Changed: the objective over the frozen teacher in place of labels; an exit is
a linear layer on features averaged over positions; their distance between features is left out.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dfkd.losses import Objective
from dfkd.losses.peers import Peers
from dfkd.losses.response import require_temperature
from dfkd.rng import derive, initialised
from dfkd.schemes.together import anchored, noted, output_shape, pooled, with_peers
from dfkd.types import InputSpec

__all__ = ["DeepToShallow", "Exits"]


class Exits(nn.Module):
    """A network, `net`, which answers, and classifiers on some of its parts, `heads`, asked in training only.

    heads: by module path of the network, from (n, c) to logits (n, k).
    """

    def __init__(self, net: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.net, self.heads = net, nn.ModuleList(heads.values())
        self._paths = tuple(heads)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor
        if not self.training:
            answers = self.net(x)
            return answers
        with noted({path: self.net.get_submodule(path) for path in self._paths}) as seen:
            answers = self.net(x)
        for path, head in zip(self._paths, self.heads, strict=True):
            head(pooled(seen[path]))  # its answers are tapped
        return answers


@dataclass(frozen=True)
class DeepToShallow:
    """The student minimises the objective, each exit (1 - share) objective + share KL(student || exit).

    Of the objective, losses on more than logits are the student's alone.
    exits: module paths of the student, each of which gets a classifier. share: in [0, 1]; 0.3 is a choice of ours.
    temperature: of what the student teaches its exits, > 0.
    """

    exits: tuple[str, ...]
    share: float = 0.3
    temperature: float = 1.0
    name: ClassVar[str] = "deep_to_shallow"

    def __post_init__(self) -> None:
        exits: Any = self.exits
        if isinstance(exits, str) or not exits or len(set(exits)) != len(exits):
            raise ValueError(f"exits: expected different module paths of the student, found {exits!r}")
        object.__setattr__(self, "exits", tuple(exits))
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share: expected a number from 0 to 1, found {self.share!r}")
        require_temperature(self.temperature)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"heads.{place}" for place in range(len(self.exits)))

    def build(self, fresh: Callable[[int], nn.Module], spec: InputSpec, seed: int) -> Exits:
        net = fresh(0)
        heads: dict[str, nn.Module] = {}
        for place, path in enumerate(self.exits):
            features = output_shape(net, spec, path, "exits")[0]
            with initialised(derive(seed, "exits", place)):
                heads[path] = nn.Linear(features, spec.num_classes)
        return Exits(net, heads)

    def objective(self, given: Objective) -> Objective:
        terms = anchored(given, [("net", 1.0)], [(node, 1.0 - self.share) for node in self.nodes])
        peers = Peers(tuple(("net", node) for node in self.nodes), self.temperature)
        return with_peers(terms, self.share, peers)

    def keep(self, module: Any) -> nn.Module:
        kept: nn.Module = copy.deepcopy(module.net)
        return kept
