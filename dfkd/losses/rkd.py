"""Distances and angles among the rows of a batch, in the student and in the teacher.

Park, Kim, Lu, Cho: Relational Knowledge Distillation. CVPR 2019. arXiv:1904.05068. Changed: means are over pairs and
triples of distinct rows, where the authors' code counts those of equal rows too, which are 0; roots have a slope at 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dfkd.losses.kernels import Family, relation
from dfkd.losses.relations import Paths, Teachers, check_taps, features_of, require_paths, tapped
from dfkd.problem import PENULTIMATE, Problem
from dfkd.types import Batch, Outputs

__all__ = ["RKDAngle", "RKDDistance", "rkd_angle", "rkd_distance"]

_DISTANCE = Family("distance", "mean", "zero", "huber")


def angles(rows: int | None, max_bytes: int) -> Family:
    return Family("angle", "none", "zero", "huber", rows=rows, max_bytes=max_bytes)


def rkd_distance(student: Tensor, teacher: Teachers) -> Tensor:
    """Mean over pairs i != j of Huber's function of the difference of distances, each over the batch's mean."""
    return relation(student, teacher, _DISTANCE, "rkd_distance")


def rkd_angle(student: Tensor, teacher: Teachers, rows: int | None = None, max_bytes: int = 2**30) -> Tensor:
    """Mean over triples of distinct rows of Huber's function of the difference of the cosines of their angles."""
    return relation(student, teacher, angles(rows, max_bytes), "rkd_angle")


@dataclass(frozen=True)
class RKDDistance:
    """Distances of rows over their mean in the batch; Huber, mean over pairs. Published weight: 25.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts.
    """

    student: str = PENULTIMATE
    teacher: Paths = PENULTIMATE
    name: ClassVar[str] = "rkd_distance"
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        require_paths(self.student, self.teacher)

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return tapped(self.student, self.teacher)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del seed  # nothing to train beside the student
        check_taps(self.needs, problem)
        return None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        ours, theirs = features_of(self.name, self.needs, student, teacher)
        return rkd_distance(ours, theirs).expand(len(batch))


@dataclass(frozen=True)
class RKDAngle:
    """Angles that rows make at a third row; Huber of their cosines, mean over triples. Published weight: 50.

    Memory grows as the cube of the rows.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts. rows: >= 3; so many, spread evenly over the batch, take part, null for all.
    max_bytes: a batch whose angles need more memory is refused.
    """

    student: str = PENULTIMATE
    teacher: Paths = PENULTIMATE
    rows: int | None = None
    max_bytes: int = 2**30
    name: ClassVar[str] = "rkd_angle"
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        require_paths(self.student, self.teacher)
        angles(self.rows, self.max_bytes)  # refuses what is out of range

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return tapped(self.student, self.teacher)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        del seed  # nothing to train beside the student
        check_taps(self.needs, problem)
        return None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        ours, theirs = features_of(self.name, self.needs, student, teacher)
        return rkd_angle(ours, theirs, self.rows, self.max_bytes).expand(len(batch))
