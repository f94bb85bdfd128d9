"""The images of a data set, each once per epoch in a new order: what data-free samplers are compared with.

no paper. The order of an epoch depends on the seed and the epoch's number alone, so a run stands at one integer. The
teacher is asked of an image each time that it is drawn; `pooled` around it, with the number of images as `round` and
`every` none, asks once and keeps the answers.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch, whole

from .checks import paths_as_text, some_rows, whole_at_least

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Real:
    """Rows of a named data set with their true classes.

    data: `digits`, an .npz file, a folder of class folders, or a torchvision data set. split: `train` or `test`.
    size: side to which images are resized, None leaves them. limit: how many images are read, None reads all.
    """

    data: str = "digits"
    split: Split = "train"
    size: int | None = None
    limit: int | None = None
    name: ClassVar[str] = "real"
    data_free: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        paths_as_text(self, "data")
        if not isinstance(self.data, str) or not self.data:
            raise ValueError(f"data: expected the name of a data set or a path, found {self.data!r}")
        if self.split not in get_args(Split):
            raise ValueError(f"split: expected one of {', '.join(get_args(Split))}, found {self.split!r}")
        for setting in ("size", "limit"):
            if getattr(self, setting) is not None:
                whole_at_least(self, 1, setting)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.data,)

    def init(self, problem: Problem, seed: int) -> "Place":
        from dfkd.data import load  # here, because a data-free run works where data cannot be read at all

        dataset, spec = load(self.data, size=self.size, limit=self.limit), problem.spec
        given, taken = (dataset.spec.shape, dataset.spec.num_classes), (spec.shape, spec.num_classes)
        if given != taken:
            raise ValueError(
                f"data: expected images {taken[0]} of {taken[1]} classes, as the teacher takes, "
                f"found {given[0]} of {given[1]} classes in {self.data!r}"
            )
        images = (dataset.train if self.split == "train" else dataset.test).to(problem.device)
        if len(images.x) == 0:
            raise ValueError(f"split: expected images in {self.split!r} of {self.data!r}, found none")
        return Place(images, seed, problem.device)

    def draw(self, state: "Place", problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        index = state.advance(n)
        y = state.images.y
        x = state.images.pixels(index, problem.spec)
        return Batch(x, y=None if y is None else y[index], labelling=whole(n, "eval"))

    def observe(self, state: "Place", batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


class Place:
    """The images on the device, and how many rows have been drawn; only the number is saved."""

    def __init__(self, images: Any, seed: int, device: torch.device) -> None:
        self.images, self.seed, self.drawn = images, int(seed), 0
        self._device, self._generator = device, torch.Generator(device=device)
        self._epoch, self._order = -1, torch.empty(0)

    def advance(self, n: int) -> Tensor:
        """The next n rows' places in the set, across as many epochs as that takes."""
        size, pieces = len(self.images.x), []
        while n > 0:
            epoch, first = divmod(self.drawn, size)
            piece = self._permutation(epoch, size)[first : first + n]
            pieces.append(piece)
            self.drawn += len(piece)
            n -= len(piece)
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _permutation(self, epoch: int, size: int) -> Tensor:
        if epoch != self._epoch:
            rng = self._generator.manual_seed(derive(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, torch.randperm(size, generator=rng, device=self._device)
        return self._order

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "drawn": self.drawn, "size": len(self.images.x)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["size"] != len(self.images.x):
            raise ValueError(f"state: expected a set of {len(self.images.x)} images, found one of {state['size']}")
        self.seed, self.drawn, self._epoch = state["seed"], state["drawn"], -1
