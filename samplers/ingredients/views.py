"""What the terms of an objective see: candidate images, the class aimed at, and both models' answers, asked once."""

import random
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from dfkd.augment import crop, flip, resized_crop
from dfkd.problem import BatchNormInput, Problem
from dfkd.types import BatchNormMode, InputSpec, Outputs

__all__ = ["View", "Views", "cropped", "identity", "jitter", "resized"]

View = Callable[[Tensor], Tensor]
"""x (n, c, h, w) -> the same images as the models are shown them, differentiable."""


class Views:
    """One batch of candidates as all terms share it. A model is asked when a term first needs it, and only once.

    x (n, c, h, w): what the models are shown, with its graph. target (n,) int64: the classes aimed at, or None. images:
    the candidates before the view, those that are kept; x itself where there is no view.
    """

    def __init__(
        self,
        problem: Problem,
        x: Tensor,
        target: Tensor | None,
        watched: Sequence[BatchNormInput] = (),
        penultimate: Sequence[Tensor] = (),
        images: Tensor | None = None,
    ) -> None:
        self.x, self.target, self.images = x, target, x if images is None else images
        self._problem, self._watched, self._penultimate = problem, watched, penultimate
        self._student: dict[str, Outputs] = {}

    @property
    def spec(self) -> InputSpec:
        return self._problem.spec

    @cached_property
    def _asked(self) -> tuple[Outputs, tuple[BatchNormInput, ...], tuple[Tensor, ...]]:
        answers = self._problem.teacher(self.x)
        return answers, tuple(self._watched), tuple(self._penultimate)  # copied: the next call empties the lists

    @property
    def teacher(self) -> Outputs:
        return self._asked[0]

    @property
    def batchnorms(self) -> tuple[BatchNormInput, ...]:
        """What each BatchNorm layer of the teacher was given, in call order; empty where no term needs it."""
        return self._asked[1]

    @property
    def penultimate(self) -> Tensor:
        """(n, d): what the teacher's last linear layer was given, where a term needs it."""
        return self._asked[2][0]

    @property
    def student(self) -> Outputs:
        return self.student_as("eval")

    def student_as(self, mode: BatchNormMode) -> Outputs:
        """The student's answers, its BatchNorm layers normalising as `mode` says."""
        if mode not in self._student:
            self._student[mode] = self._problem.student(self.x, mode)
        return self._student[mode]

    def again(self, x: Tensor) -> "Views":
        """Another view of the same candidates, asked on its own."""
        return Views(self._problem, x, self.target, self._watched, self._penultimate, self.images)


def identity(x: Tensor) -> Tensor:
    """The images as they are."""
    return x


def jitter(coins: random.Random, roll: float, flip: float) -> View:
    """A view that moves the whole batch by one random shift and mirrors it with probability `flip`.

    roll: the largest shift as a fraction of the side. The coins are the host's, so no shift is read back from a GPU;
    gradients come back through the view, so the images themselves stay where they are.
    """

    def view(x: Tensor) -> Tensor:
        most_down, most_right = int(roll * x.shape[2]), int(roll * x.shape[3])
        if most_down or most_right:
            shift = coins.randint(-most_down, most_down), coins.randint(-most_right, most_right)
            x = torch.roll(x, shift, dims=(2, 3))
        if flip and coins.random() < flip:
            x = x.flip(3)
        return x

    return view


def cropped(rng: torch.Generator, spec: InputSpec, pad: int | None, mirror: bool) -> View:
    """A view of each image on its own: a window of its size out of it with a black border, mirrored half of the time.

    pad: width of the border in pixels; None takes an eighth of the shorter side, as Augmented does.
    """
    border = max(1, min(spec.height, spec.width) // 8) if pad is None else pad

    def view(x: Tensor) -> Tensor:
        x = crop(x, rng, border, spec.low)
        return flip(x, rng) if mirror else x

    return view


def resized(rng: torch.Generator, least_area: float, mirror: bool) -> View:
    """A view of each image on its own: a rectangle of at least this share of it at full size, mirrored likewise.

    A least area of 1 shows all of it.
    """

    def view(x: Tensor) -> Tensor:
        if least_area < 1.0:
            x = resized_crop(x, rng, (least_area, 1.0))
        return flip(x, rng) if mirror else x

    return view
