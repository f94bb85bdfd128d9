"""A loss on a part of what there is: on one network inside a model, or on the rows of some parts of a mixture.

No paper: a sum of such terms gives each member of an ensemble, and each source of inputs, its own temperature and
weight.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfkd.interfaces import Loss, Sampler, parts
from dfkd.losses.relations import Related
from dfkd.losses.response import NO_TAPS
from dfkd.problem import Probe, Problem
from dfkd.types import Batch, Outputs

__all__ = ["At", "OfSources", "check_sources"]

Side = Literal["student", "teacher"]
Call = Callable[[Outputs, Outputs, Batch], Tensor]


class _Part(ABC):
    """What both are: a loss as it is but for what it sees."""

    loss: Loss

    @abstractmethod
    def through(self, call: Call, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        """What `call`, the loss or its adapters, makes of the part: (n,)."""

    @property
    def input_grad(self) -> bool:
        return self.loss.input_grad

    @property
    def scale(self) -> float:
        return self.loss.scale

    @property
    def coupled(self) -> bool:
        return self.loss.coupled

    @property
    def uses_teacher(self) -> bool:
        return getattr(self.loss, "uses_teacher", True)  # as an objective takes a loss that does not say so

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        return self.through(self.loss, student, teacher, batch)


class _WithAdapters(nn.Module):
    """Called in the place of such a loss, whose own loss has trained parts."""

    def __init__(self, part: _Part, adapters: nn.Module, seen: Problem, whole: Problem) -> None:
        super().__init__()
        self._part, self.adapters, self._seen, self._whole = part, adapters, seen, whole

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        self._seen.progress, self._seen.horizon = self._whole.progress, self._whole.horizon  # for what warms up
        return self._part.through(self.adapters, student, teacher, batch)


@dataclass(frozen=True)
class At(_Part):
    """A loss on one network inside a model, in place of that model as a whole.

    path: where it stands. side: in whose model, the `student`'s or the `teacher`'s. Taps of the loss are paths inside
    that network.
    """

    path: str
    loss: Loss
    side: Side = "student"

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        taps = {who: tuple(self.loss.needs.get(who, ())) for who in NO_TAPS}
        taps[self.side] = (self.path, *(f"{self.path}.{tap}" for tap in taps[self.side]))
        return taps

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """What the loss would train were that network the whole model. ValueError where there is none at the path."""
        ours = self.side == "student"
        whole = problem.student if ours else problem.teacher
        with whole.taps(self.path):
            network = whole.module.get_submodule(self.path)
        inside = Probe(network, whole.spec, whole.device, whole.name, whole.precision, whole.channels_last)
        seen = replace(problem, student=inside) if ours else replace(problem, teacher=inside)
        adapters = self.loss.init(seen, seed)
        return None if adapters is None else _WithAdapters(self, adapters, seen, problem)

    def seen(self, outputs: Outputs) -> Outputs:
        """The answers of the network at the path."""
        start = f"{self.path}."
        features = {tap.removeprefix(start): value for tap, value in outputs.features.items() if tap.startswith(start)}
        return replace(outputs, logits=outputs.features[self.path], features=features)

    def through(self, call: Call, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        """What `call`, the loss or its adapters, makes of that network's answers."""
        if self.side == "student":
            return call(self.seen(student), teacher, batch)
        return call(student, self.seen(teacher), batch)


@dataclass(frozen=True)
class OfSources(_Part):
    """A loss on the rows of some parts of a mixture: 0 on all others, so that its mean is over all rows.

    sources: the parts' places, from 0. A loss whose rows depend on one another sees those rows alone; where they are
    fewer than it needs (a part's share of a batch may come and go) it is 0 for all. A loss of labels needs those of
    these parts only.
    """

    loss: Loss
    sources: tuple[int, ...]

    def __post_init__(self) -> None:
        found: Any = self.sources
        listed = list(found) if isinstance(found, (tuple, list)) else []
        if not listed or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in listed):
            raise ValueError(f"sources: expected places of parts, from 0, found {found!r}")
        object.__setattr__(self, "sources", tuple(listed))

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return self.loss.needs

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        seen = replace(problem, batch=None)  # how many rows of it there will be is not known
        adapters = self.loss.init(seen, seed)
        return None if adapters is None else _WithAdapters(self, adapters, seen, problem)

    def through(self, call: Call, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        """What `call`, the loss or its adapters, makes of these rows: (n,), 0 elsewhere."""
        batch = batch.of_sources(self.sources)
        if batch.source is None:
            raise ValueError("sources: expected inputs from several parts, such as a mixture's, found no sources")
        here = torch.stack([batch.source == place for place in self.sources]).any(dim=0)  # no table to send to a device
        if not self.loss.coupled:
            return torch.where(here, call(student, teacher, batch), 0.0)
        # zeros with a gradient: there may be no other loss
        values = student.logits.new_zeros(len(batch)) + student.logits[:0].sum()
        index = here.nonzero().flatten()  # sync
        if len(index) < _least(self.loss):
            return values
        some = call(_rows(student, index), _rows(teacher, index), _some(batch, index))
        return values.index_put((index,), some.to(values.dtype))


def _rows(outputs: Outputs, index: Tensor) -> Outputs:
    features = {path: value[index] for path, value in outputs.features.items()}
    return replace(outputs, logits=outputs.logits[index], features=features)


def _least(loss: Loss) -> int:
    """Rows without which it has no value."""
    return next((part.family.least for part in _chain(loss) if isinstance(part, Related)), 1)


def _some(batch: Batch, index: Tensor) -> Batch:
    """These rows, which have been answered: in which mode is of no matter any more."""
    columns = {name: getattr(batch, name) for name in ("y", "target", "weight", "source")}
    columns = {name: None if value is None else value[index] for name, value in columns.items()}
    return Batch(batch.x[index], **columns)


def check_sources(losses: Mapping[str, tuple[float, Loss]], sampler: Sampler) -> None:
    """ValueError where the losses, by label, name parts that this sampler has not."""
    count = _count(sampler)
    for label, (_, loss) in losses.items():
        for part in _chain(loss):
            if isinstance(part, OfSources) and count is not None and max(part.sources) >= count:
                found = f"{list(part.sources)!r}, while {sampler.name} has {count} parts"
                raise ValueError(f"objective.{label}.sources: expected places from 0 to {count - 1}, found {found}")


def _count(sampler: Sampler) -> int | None:
    """How many parts it mixes; None where it is not made of several."""
    inner = [part for _, part in parts(sampler)]
    if len(inner) > 1:
        return len(inner)
    return _count(inner[0]) if inner else None


def _chain(loss: Any) -> Iterator[Any]:
    while loss is not None:
        yield loss
        loss = getattr(loss, "loss", None)
