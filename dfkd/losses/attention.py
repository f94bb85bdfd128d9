"""How far the places that the student's maps attend to are from the teacher's.

Zagoruyko, Komodakis: Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via
Attention Transfer. 2016. arXiv:1612.03928. Changed: a mean over positions for their sum, and of two attention maps the
larger is average-pooled to the smaller. Published weight: 1000.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dfkd.losses.features import Pairs, alike, checked_pairs, shapes_of, tapped
from dfkd.losses.norms import TINY, direction, scaled
from dfkd.problem import Problem
from dfkd.types import Batch, Outputs


def attention_map(maps: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, 1, h, w): the mean square over channels, of each row's maps over their largest value.

    That factor leaves with the norm; without it squares of large maps would overflow.
    """
    if maps.ndim != 4:
        raise ValueError(f"maps: expected (n, c, h, w), found {tuple(maps.shape)}")
    return scaled(maps, TINY, (1, 2, 3)).square().mean(dim=1, keepdim=True)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Maps (n, c, h, w), any two c, h and w -> (n,): mean squared difference of the two unit vectors of positions."""
    ours, theirs = alike(attention_map(student), attention_map(teacher))
    return (direction(ours.flatten(1), 1) - direction(theirs.flatten(1), 1)).square().mean(dim=1)


@dataclass(frozen=True)
class Attention:
    """Mean squared difference of unit attention maps, summed over pairs, no unit. Published weight: 1000.

    pairs: module paths of maps [[student's, teacher's], ...]. Their channels may differ: there are no adapters.
    """

    pairs: Pairs
    name: ClassVar[str] = "attention"
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", checked_pairs(self.pairs))

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return tapped(self.pairs)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """Nothing to train; ValueError for features that are no maps of two positions or more."""
        del seed
        shapes = shapes_of(self.pairs, problem, self.name)
        for (mine, other), (ours, theirs) in zip(self.pairs, shapes, strict=True):
            if len(ours) != 3 or len(theirs) != 3 or min(ours[1], theirs[1]) * min(ours[2], theirs[2]) == 1:
                raise ValueError(
                    f"{self.name}: expected maps (c, h, w) that share two positions or more, found {ours} for {mine!r} "
                    f"of the student and {theirs} for {other!r} of the teacher; `features` fits what is no map"
                )
        return None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        values = [attention_distance(student.features[mine], teacher.features[other]) for mine, other in self.pairs]
        return sum(values[1:], start=values[0])
