"""Branches on one stem, whose gated ensemble teaches each of them while all of it is trained.

Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble. NeurIPS 2018. arXiv:1806.04606. Changed: the
objective over the frozen teacher in place of labels; the gate is linear on the stem's features, averaged over
positions, without BatchNorm and ReLU, and begins with equal weights.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dfkd.losses import Objective
from dfkd.losses.peers import STUDENT, Peers
from dfkd.losses.response import require_temperature
from dfkd.schemes.together import anchored, counted, noted, output_shape, pooled, weighed, with_peers
from dfkd.types import InputSpec

__all__ = ["ONE", "Branches"]


class _Given(nn.Module):
    """Stands where a branch would have a part of the stem: gives what that part gave."""

    def __init__(self, path: str, outputs: dict[str, Tensor]) -> None:
        super().__init__()
        self._path, self._outputs = path, outputs

    def forward(self, *given: Any) -> Tensor:
        del given  # computed once, in the first branch
        return self._outputs[self._path].clone()


class Branches(nn.Module):
    """Networks that share a stem, which is the first one's. The answer is their mean, weighed by a gate on the stem.

    branches: networks of one kind; all but the first lose their own stem. stem: the path of its last part; it is that
    part and all that is defined before it. features: channels (or units) of what it gives.
    """

    def __init__(self, branches: list[nn.Module], stem: str, features: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.gate = nn.Linear(features, len(branches))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self._stem, self._outputs = stem, dict[str, Tensor]()
        self._shared = _up_to(branches[0], stem)
        for branch in branches[1:]:
            for path in self._shared:
                branch.set_submodule(path, _Given(path, self._outputs))

    def weights(self, features: Tensor) -> Tensor:
        """What the stem gave -> (n, branches), positive, of sum 1."""
        weights: Tensor = self.gate(pooled(features)).softmax(dim=1)
        return weights

    def forward(self, x: Tensor) -> Tensor:
        first = self.branches[0]
        with noted({path: first.get_submodule(path) for path in self._shared}) as seen:
            answers = [first(x)]
        self._outputs.update(seen)
        try:
            answers += [branch(x) for branch in self.branches[1:]]
            weights = self.weights(seen[self._stem])
        finally:
            self._outputs.clear()
        mixed: Tensor = (weights[:, :, None] * torch.stack(answers, dim=1)).sum(dim=1)
        return mixed


def _up_to(network: nn.Module, path: str) -> tuple[str, ...]:
    """The path and those of all that is defined before it, outermost parts only."""
    found, names, parent = [], path.split("."), ""
    for name in names:
        inside = network.get_submodule(parent) if parent else network
        for sibling, _ in inside.named_children():
            if sibling == name:
                break
            found.append(f"{parent}.{sibling}" if parent else sibling)
        parent = f"{parent}.{name}" if parent else name
    return (*found, path)


@dataclass(frozen=True)
class ONE:
    """The ensemble and each branch minimise the objective, each branch also KL(ensemble || it); the first is kept.

    Of the objective, losses on more than logits are the first branch's alone, which is a whole student.
    stem: module path of the student; it and all that is defined before it are shared. branches: >= 2; published 3.
    weight: of what the ensemble teaches, >= 0; published 1. temperature: of that, > 0; published 3.
    """

    stem: str
    branches: int = 3
    weight: float = 1.0
    temperature: float = 3.0
    name: ClassVar[str] = "one"

    def __post_init__(self) -> None:
        counted(self.branches, 2, "branches")
        weighed(self.weight)
        require_temperature(self.temperature)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"branches.{place}" for place in range(self.branches))

    def build(self, fresh: Callable[[int], nn.Module], spec: InputSpec, seed: int) -> Branches:
        del seed  # the gate begins equal
        branches = [fresh(place) for place in range(self.branches)]
        shape = output_shape(branches[0], spec, self.stem, "stem")
        module = Branches(branches, self.stem, shape[0])
        if not any(True for _ in branches[1].parameters()):
            raise ValueError(f"stem: expected something left for branches, found nothing to train after {self.stem!r}")
        return module

    def objective(self, given: Objective) -> Objective:
        terms = anchored(given, [(self.nodes[0], 1.0)], [(node, 1.0) for node in (STUDENT, *self.nodes[1:])])
        edges = tuple((STUDENT, node) for node in self.nodes)
        return with_peers(terms, self.weight, Peers(edges, self.temperature))

    def keep(self, module: Any) -> nn.Module:
        kept: nn.Module = copy.deepcopy(module.branches[0])
        return kept
