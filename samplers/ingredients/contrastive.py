"""A term that tells every image from all others, those of earlier rounds included, by what the teacher makes of it.

Fang, Song, Wang, Shen, Wang, Song: Contrastive Model Inversion for Data-Free Knowledge Distillation. 2021.
arXiv:2105.08584. Changed: what the bank keeps of a round's images are features of views drawn once more, not those of
the step they were made in; rows without a bank are not counted twice.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dfkd.problem import Problem
from dfkd.rng import derive, initialised

from ..checks import positive, whole_at_least
from ..state import State, Stream
from .views import Views, resized

__all__ = ["Contrast"]


class Head(nn.Module):
    """(n, d) -> (n, out) of length 1."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, out))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.layers(x), dim=1)


@dataclass(frozen=True)
class Contrast:
    """Cross-entropy of an image's local view against the global views of all: which of them is of the same image?

    A view's feature is the spatial mean of what every BatchNorm layer of the teacher is given, end to end; a head of
    two layers, which learns beside the images, projects it. Rows are the images and a sample of a bank of features of
    earlier rounds; the mean over the images and the mean over the bank's rows are added.
    temperature: of the cosines, > 0. bank: most images whose features are kept, the oldest go first, >= 0. negatives:
    rows drawn of it at each step, >= 0. projection: length of what the head gives, >= 1. learning_rate: Adam's for the
    head, > 0. least_area: the smallest share of the image that a local view shows, in (0, 1]. flip: whether local views
    are mirrored half of the time.
    """

    temperature: float = 0.1
    bank: int = 40_960
    negatives: int = 4096
    projection: int = 256
    learning_rate: float = 1e-3
    least_area: float = 0.25
    flip: bool = True
    needs: ClassVar[tuple[str, ...]] = ("batchnorm",)
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(self, "temperature", "learning_rate")
        whole_at_least(self, 0, "bank", "negatives")
        whole_at_least(self, 1, "projection")
        if not 0.0 < self.least_area <= 1.0:
            raise ValueError(f"least_area: expected a number in (0, 1], found {self.least_area!r}")

    def init(self, problem: Problem, seed: int) -> State:
        spec, device = problem.spec, problem.device
        with torch.no_grad(), problem.searching(), problem.teacher.batchnorm_inputs() as layers:
            problem.teacher(torch.full((1, *spec.shape), spec.middle, device=device))
            features = sum(len(layer.mean) for layer in layers)
        with initialised(derive(seed, "head")):
            head = Head(features, self.projection).to(device)
        return State(
            stream=Stream(derive(seed, "views"), device),
            head=head,
            optimiser=torch.optim.Adam(head.parameters(), lr=self.learning_rate, fused=True),
            bank=torch.empty(0, 2, features, device=device),  # of each image its local and its global view
        )

    def __call__(self, state: State, views: Views) -> Tensor:
        rng, bank = state.stream.advance(), state.bank
        local = views.again(resized(rng, self.least_area, self.flip)(views.images))
        queries, shown = state.head(_means(local)), _means(views)
        n = len(queries)
        with torch.no_grad():  # a local view moves towards the global one, not the other way round
            keys = state.head(shown)
        if len(bank) and self.negatives:
            drawn = torch.randperm(len(bank), generator=rng, device=bank.device)[: self.negatives]
            # on their own, as no gradient has to reach what is remembered: a fourth less to compute
            queries = torch.cat([queries, state.head(bank[drawn, 0])])
            with torch.no_grad():
                keys = torch.cat([keys, state.head(bank[drawn, 1])])
        which = torch.arange(len(keys), device=keys.device)
        rows = cross_entropy(queries @ keys.T / self.temperature, which, reduction="none")
        return rows[:n].mean() + rows[n:].mean() if len(rows) > n else rows.mean()

    def after_step(self, state: State) -> None:
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)

    def end_round(self, state: State, views: Views) -> None:
        if not self.bank:
            return
        local = resized(state.stream.advance(), self.least_area, self.flip)(views.images)
        with torch.enable_grad():  # only where there is a graph a layer's input is kept
            both = [_means(views.again(x.detach().requires_grad_(True))).detach() for x in (local, views.x)]
        state.bank = torch.cat([state.bank, torch.stack(both, dim=1)])[-self.bank :]


def _means(views: Views) -> Tensor:
    """(n, d): the spatial means of what each BatchNorm layer is given, end to end."""
    return torch.cat([layer.rows for layer in views.batchnorms], dim=1)
