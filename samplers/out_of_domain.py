"""Images of another domain that the user names, labelled by the teacher.

For arbitrary images as such: Nayak, Mopuri, Chakraborty: Effectiveness of Arbitrary Transfer Sets for Data-free
Knowledge Distillation. 2021. arXiv:2011.09113. For the images the teacher is least sure of: Fang, Bao, Song, Wang, Xie,
Shen, Song: Mosaicking to Distill: Knowledge Distillation from Out-of-Domain Data. 2021. arXiv:2110.15094. Changed:
classes are balanced by wrapping it in `balanced`.
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, whole

from .checks import a_labelling, paths_as_text, some_rows, whole_at_least
from .real import Place
from .state import State

_CHUNK = 500


@dataclass(frozen=True)
class OutOfDomain:
    """Each image once per epoch in a new order, scaled to what the teacher takes, without its label.

    data: a folder of images, all of which are read, in class folders or not; an .npz file, or a data set by name, of
    which those to train on are (of a folder with `train` and `test`, too). A folder that `data:` splits to score on is
    read whole here, test images and all. keep: only so many of them, those of highest entropy under the teacher, which
    is asked about all of them whenever a run starts or goes on; None keeps all. limit: how many images are read, None
    reads all. labelling: BatchNorm statistics the teacher labels with, `eval` (stored) or `batch` (of the rows asked
    together). info `overlap`: how many of its classes bear a name of the teacher's.
    """

    data: str
    keep: int | None = None
    limit: int | None = None
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "out_of_domain"
    data_free: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        paths_as_text(self, "data")
        if not isinstance(self.data, str) or not self.data:
            raise ValueError(f"data: expected the name of a data set or a path, found {self.data!r}")
        for setting in ("keep", "limit"):
            if getattr(self, setting) is not None:
                whole_at_least(self, 1, setting)
        a_labelling(self.labelling)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.data,)

    def init(self, problem: Problem, seed: int) -> State:
        return self.begin(problem, seed, self.name)

    def begin(self, problem: Problem, seed: int, who: str) -> State:
        """who: the sampler that an error names."""
        from dfkd.data import read_unlabelled  # here, because a data-free run works where data cannot be read at all

        spec = problem.spec
        try:
            images, classes = read_unlabelled(self.data, spec.shape, self.limit)
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from error
        shared = overlap(classes, spec.class_names or ())
        if shared:
            warnings.warn(
                f"data: {len(shared)} of the {len(classes)} classes of {self.data!r} bear the name of a class of the "
                f"teacher, which is then not out of its domain: {', '.join(shared[:8])}{', ...' * (len(shared) > 8)}",
                UserWarning,
                stacklevel=2,
            )
        images = images.to(problem.device)
        if self.keep is not None:
            if self.keep > len(images):
                raise ValueError(
                    f"{who}: keep: expected at most the {len(images)} images of {self.data!r}, found {self.keep}"
                )
            images = type(images)(images.x[_least_sure(images, problem, self.labelling, self.keep)])
        place = Place(images, seed, problem.device)
        return State(place=place, overlap=torch.tensor(len(shared), device=problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        x = state.place.images.pixels(state.place.advance(n), problem.spec)
        return Batch(x, labelling=whole(n, self.labelling), info={"overlap": state.overlap})

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def overlap(classes: Iterable[str], others: Iterable[str]) -> list[str]:
    """The classes that are others too, whatever their capitals, spaces and signs."""
    known = {_plain(name) for name in others}
    return [name for name in classes if _plain(name) in known]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _least_sure(images: Any, problem: Problem, mode: BatchNormMode, keep: int) -> Tensor:
    """Places, in order, of the images whose classes the teacher is least sure of."""
    entropies = []
    with torch.no_grad(), problem.teacher.counting("synthesise"):
        for first in range(0, len(images), _CHUNK):
            x = images.pixels(slice(first, first + _CHUNK), problem.spec)
            log_p = problem.teacher(x, mode).logits.log_softmax(dim=1)
            entropies.append(-(log_p.exp() * log_p).sum(dim=1))
    return torch.cat(entropies).argsort(descending=True, stable=True)[:keep].sort().values
