"""Another sampler's rows, chosen so that the teacher sees its classes equally often.

After the filter of Nayak, Mopuri, Chakraborty: Effectiveness of Arbitrary Transfer Sets for Data-free Knowledge
Distillation. 2021. arXiv:2011.09113. Changed: a fixed number of candidates per draw and a choice by sorting on the
device, where theirs draws until every class is full; a class with too few candidates stays short, and `info` says so.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch

from .checks import a_sampler, one_mode, some_rows, whole_at_least
from .state import State, Stream


@dataclass(frozen=True)
class Balanced:
    """Of multiple times as many rows, those that spread best over the teacher's predicted classes.

    base: where the candidates come from; labelled in one BatchNorm mode. multiple: candidates per row, an integer >= 2;
    the teacher is asked about all of them. info `shortfall`: rows that classes lack of n // k each. Of fewer rows than
    classes no class is seen twice, as far as the candidates go.
    """

    base: Sampler
    multiple: int = 4
    name: ClassVar[str] = "balanced"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        a_sampler("base", self.base)
        whole_at_least(self, 2, "multiple")

    def init(self, problem: Problem, seed: int) -> State:
        stream = Stream(derive(seed, self.name), problem.device)
        return State(stream=stream, base=self.base.init(problem, derive(seed, "base")))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        batch = self.base.draw(state.base, problem, self.multiple * n, learn)
        one_mode(batch, self.name)
        rng, k = state.stream.advance(), problem.spec.num_classes
        outputs = problem.label(batch)
        predicted = outputs.logits.argmax(dim=1)
        # candidates in random order first: who is taken of a class must not depend on the place in the base's batch
        order = torch.randperm(len(batch), generator=rng, device=problem.device)
        rank = rank_in_class(predicted[order], k)
        chosen = order[rank.argsort(stable=True)[:n]]
        got = _histogram(predicted[chosen], k)
        info = {**batch.info, "shortfall": (n // k - got).clamp_min(0).sum()}
        # in `eval` a row's answer does not depend on the company it was given in, so it stays good; `rows` knows
        return replace(batch, teacher=outputs, info=info).rows(chosen)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss  # the base drew other rows as well, of which no loss is known


def rank_in_class(classes: Tensor, k: int) -> Tensor:
    """(m,) classes -> (m,): how many rows of the same class stand before each row."""
    order = classes.argsort(stable=True)
    first = _histogram(classes, k).cumsum(dim=0).roll(1)  # where each class begins in that order
    first[0] = 0
    place = torch.arange(len(classes), device=classes.device) - first[classes[order]]
    return torch.empty_like(place).scatter_(0, order, place)


def _histogram(classes: Tensor, k: int) -> Tensor:
    """(k,) counts; `bincount` would wait for the device."""
    zeros = torch.zeros(k, dtype=torch.int64, device=classes.device)
    return zeros.scatter_add_(0, classes, torch.ones_like(classes))
