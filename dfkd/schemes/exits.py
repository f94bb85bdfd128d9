"""A student that teaches its own earlier layers, through classifiers that are dropped at the end.

Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation. ICCV 2019. arXiv:1905.08094. The form on attention: Hou, Ma, Liu, Loy: Learning Lightweight Lane Detection
CNNs by Self Attention Distillation. ICCV 2019. arXiv:1908.00821. Changed: the objective over the frozen teacher in
place of labels; an exit, and what fits its features to the deepest ones, is a linear layer on features averaged over
positions; distances are means over elements.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dfkd.losses import Attention, Objective, attention_distance, feature_distance
from dfkd.losses.features import Pairs
from dfkd.losses.peers import Peers
from dfkd.losses.response import require_temperature
from dfkd.problem import PENULTIMATE, Probe, Problem
from dfkd.rng import derive, initialised
from dfkd.schemes.together import anchored, noted, output_shape, pooled, weighed, with_peers
from dfkd.types import Batch, InputSpec, Outputs

__all__ = ["DeepToShallow", "Deeper", "Exits"]


class Exits(nn.Module):
    """A network, `net`, which answers, and classifiers on some of its parts, `heads`, asked in training only.

    heads: by module path of the network, from (n, c) to logits (n, k). fits: for each of them, from (n, c) to the width
    of the deepest features, or none at all.
    """

    def __init__(self, net: nn.Module, heads: dict[str, nn.Module], fits: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.net, self.heads, self.fits = net, nn.ModuleList(heads.values()), nn.ModuleList(fits)
        self._paths = tuple(heads)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor
        if not self.training:
            answers = self.net(x)
            return answers
        with noted({path: self.net.get_submodule(path) for path in self._paths}) as seen:
            answers = self.net(x)
        for place, path in enumerate(self._paths):
            features = pooled(seen[path])
            for part in (self.heads[place], *self.fits[place : place + 1]):
                part(features)  # its answers are tapped
        return answers


@dataclass(frozen=True)
class Deeper:
    """Distances of features of the student from deeper ones of its own, which are fixed; summed over pairs.

    pairs: [[taught, teaches], ...], module paths of the student. distance: of two sets of features, (n,).
    """

    pairs: Pairs
    distance: Callable[[Tensor, Tensor], Tensor]
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    scale: ClassVar[float] = 1.0

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return {"student": tuple(dict.fromkeys(path for pair in self.pairs for path in pair)), "teacher": ()}

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del problem, seed  # what is trained beside the student is in it
        return None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del teacher, batch
        values = [self.distance(student.features[a], student.features[b].detach()) for a, b in self.pairs]
        return torch.stack(values).sum(dim=0)


@dataclass(frozen=True)
class DeepToShallow:
    """The student minimises the objective, each exit (1 - share) objective + share KL(student || exit).

    Of the objective, losses on more than logits are the student's alone.
    exits: module paths of the student in the order of its layers, each of which gets a classifier. share: in [0, 1];
    0.3 is a choice of ours. temperature: of what the student teaches its exits, > 0. features: >= 0, weight of the mean
    squared difference of an exit's features, fitted by a linear layer, from the penultimate ones. attention: >= 0,
    weight of the distance of an exit's attention map from the next exit's, whose features must be maps.
    """

    exits: tuple[str, ...]
    share: float = 0.3
    temperature: float = 1.0
    features: float = 0.0
    attention: float = 0.0
    name: ClassVar[str] = "deep_to_shallow"

    def __post_init__(self) -> None:
        exits: Any = self.exits
        if isinstance(exits, str) or not exits or len(set(exits)) != len(exits):
            raise ValueError(f"exits: expected different module paths of the student, found {exits!r}")
        object.__setattr__(self, "exits", tuple(exits))
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share: expected a number from 0 to 1, found {self.share!r}")
        require_temperature(self.temperature)
        weighed(self.features, "features")
        weighed(self.attention, "attention")
        if self.attention > 0.0 and len(self.exits) < 2:
            raise ValueError(f"attention: expected two exits or more, of which one teaches the other, found {exits!r}")

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"heads.{place}" for place in range(len(self.exits)))

    def build(self, fresh: Callable[[int], nn.Module], spec: InputSpec, seed: int) -> Exits:
        net = fresh(0)
        if self.attention > 0.0:
            self._require_maps(net, spec)
        heads, fits = dict[str, nn.Module](), list[nn.Module]()
        deepest = self._deepest(net, spec) if self.features > 0.0 else 0
        for place, path in enumerate(self.exits):
            features = output_shape(net, spec, path, "exits")[0]
            with initialised(derive(seed, "exits", place)):
                heads[path] = nn.Linear(features, spec.num_classes)
                if deepest:
                    fits.append(nn.Linear(features, deepest))
        return Exits(net, heads, fits)

    def _deepest(self, net: nn.Module, spec: InputSpec) -> int:
        """The width of the penultimate features."""
        try:
            return Probe(net, spec, name="student").feature_shapes(PENULTIMATE)[PENULTIMATE][-1]
        except ValueError as error:
            raise ValueError(f"features: {error}") from error

    def _require_maps(self, net: nn.Module, spec: InputSpec) -> None:
        """ValueError where the exits' features have no attention maps to compare."""
        for path in self.exits:
            output_shape(net, spec, path, "exits")
        probe = Probe(net, spec, name="student")
        Attention(tuple(pairwise(self.exits))).init(Problem(probe, probe, spec, probe.device), 0)

    def objective(self, given: Objective) -> Objective:
        terms = anchored(given, [("net", 1.0)], [(node, 1.0 - self.share) for node in self.nodes])
        peers = Peers(tuple(("net", node) for node in self.nodes), self.temperature)
        fits = tuple((f"fits.{place}", f"net.{PENULTIMATE}") for place in range(len(self.exits)))
        maps = tuple((f"net.{taught}", f"net.{teaches}") for taught, teaches in pairwise(self.exits))
        terms["features of exits"] = (self.features, Deeper(fits, feature_distance))
        terms["attention of exits"] = (self.attention, Deeper(maps, attention_distance))
        return with_peers(terms, self.share, peers)

    def keep(self, module: Any) -> nn.Module:
        kept: nn.Module = copy.deepcopy(module.net)
        return kept
