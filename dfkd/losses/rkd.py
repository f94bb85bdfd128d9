"""Distances and angles among the rows of a batch, in the student and in the teacher.

Park, Kim, Lu, Cho: Relational Knowledge Distillation. CVPR 2019. arXiv:1904.05068. Changed: means are over pairs and
triples of distinct rows, where the authors' code counts those of equal rows too, which are 0; roots have a slope at 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfkd.losses.kernels import Family, relation
from dfkd.losses.relations import Related, Teachers

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
class RKDDistance(Related):
    """Distances of rows over their mean in the batch; Huber, mean over pairs. Published weight: 25.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts.
    """

    name: ClassVar[str] = "rkd_distance"

    @property
    def family(self) -> Family:
        return _DISTANCE


@dataclass(frozen=True)
class RKDAngle(Related):
    """Angles that rows make at a third row; Huber of their cosines, mean over triples. Published weight: 50.

    Time grows as the cube of the rows; memory too until it is max_bytes.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts. rows: >= 3; so many, spread evenly over the batch, take part, null for all.
    max_bytes: > 0; where all angles at once need more memory they are computed for some rows at a time, and again for
    their gradient; a batch that needs more for one row alone is refused.
    """

    rows: int | None = None
    max_bytes: int = 2**30
    name: ClassVar[str] = "rkd_angle"

    @property
    def family(self) -> Family:
        return angles(self.rows, self.max_bytes)
