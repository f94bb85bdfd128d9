"""How similar the rows of a batch are to one another, in the student and in the teacher.

no paper of its own: each class names one. Each is a member of the family in kernels.py, on the features of any module
(widths may differ), as a plain function `sp(student_features, teacher_features)` and as a loss. The value belongs to
the batch: every row gets it. Changed for all: roots and logarithms have a slope at zero, and features are brought to a
scale where squares do not overflow, which the relation does not see. A row without any features is like no other.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dfkd.losses.kernels import Diagonal, Distance, Family, Kernel, Normalise, relation, require_rows
from dfkd.problem import PENULTIMATE, Problem
from dfkd.types import Batch, Outputs

__all__ = [
    "CC",
    "CKA",
    "FKD",
    "PKT",
    "SP",
    "Relation",
    "cc",
    "cka",
    "fkd",
    "pkt",
    "sp",
]

Teachers = Tensor | Sequence[Tensor]
Paths = str | tuple[str, ...]

_SP = Family("gram", "row_l2", "keep", "square")
_PKT = Family("cosine", "row_sum", "keep", "kl")
_CKA = Family("centred_gram", "frobenius", "keep", "inner")
_FKD = Family("gram", "correlation", "zero", "square")


def _gaussian(gamma: float) -> Family:
    return Family("gaussian", "none", "keep", "square", gamma=gamma)


# -- as plain functions: features (n, ...) of the student and of one teacher or several -> 0-d -------------------------


def sp(student: Tensor, teacher: Teachers) -> Tensor:
    """Mean over all pairs of the squared difference of Gram matrices whose rows have norm 1."""
    return relation(student, teacher, _SP, "sp")


def pkt(student: Tensor, teacher: Teachers) -> Tensor:
    """Mean over rows of KL(teacher || student) of the distributions that (1 + cos) / 2 makes over the rows, in nats."""
    return relation(student, teacher, _PKT, "pkt")


def cc(student: Tensor, teacher: Teachers, gamma: float = 0.4) -> Tensor:
    """Mean over all pairs of the squared difference of Gaussian kernels of unit features."""
    return relation(student, teacher, _gaussian(gamma), "cc")


def cka(student: Tensor, teacher: Teachers) -> Tensor:
    """1 - linear CKA, in [0, 1]."""
    return relation(student, teacher, _CKA, "cka")


def fkd(student: Tensor, teacher: Teachers, regularise: float = 0.0) -> Tensor:
    """Mean over pairs i != j of the squared difference of correlations; + regularise x mean |h_i|^2 of the student."""
    value = relation(student, teacher, _FKD, "fkd")
    if regularise == 0.0:
        return value
    return value + regularise * student.reshape(student.shape[0], -1).square().sum(dim=1).mean()


# -- as losses ---------------------------------------------------------------------------------------------------------


def tapped(student: str, teacher: Paths) -> Mapping[str, tuple[str, ...]]:
    """What a loss on these module paths needs."""
    return {"student": (student,), "teacher": (teacher,) if isinstance(teacher, str) else tuple(teacher)}


def check_taps(needs: Mapping[str, tuple[str, ...]], problem: Problem) -> None:
    """ValueError with the nearest path for one that a model does not have."""
    for probe, paths in ((problem.student, needs["student"]), (problem.teacher, needs["teacher"])):
        with probe.taps(*paths):
            pass


def features_of(
    who: str, needs: Mapping[str, tuple[str, ...]], student: Outputs, teacher: Outputs
) -> tuple[Tensor, list[Tensor]]:
    """The student's features, and each teacher's."""
    for name, outputs in (("student", student), ("teacher", teacher)):
        for path in needs[name]:
            if path not in outputs.features:
                raise ValueError(f"{who}: needs the {name}'s features at {path!r}, found answers without them")
    return student.features[needs["student"][0]], [teacher.features[path] for path in needs["teacher"]]


def require_paths(student: str, teacher: Paths) -> None:
    if not student:
        raise ValueError(f"student: expected a module path, found {student!r}")
    if not teacher or (not isinstance(teacher, str) and not all(teacher)):
        raise ValueError(f"teacher: expected a module path or several, found {teacher!r}")


@dataclass(frozen=True)
class Related(ABC):
    """What all of them are: a member of the family on the features of one module each.

    student, teacher: the paths of these modules, several of the teacher's for the mean relation. A member says its
    name and its family.
    """

    student: str = PENULTIMATE
    teacher: Paths = PENULTIMATE
    name: ClassVar[str]
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        require_paths(self.student, self.teacher)
        _ = self.family  # refuses what is out of range or has no meaning together

    @property
    @abstractmethod
    def family(self) -> Family:
        """Which member."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return tapped(self.student, self.teacher)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """Nothing to train beside the student. ValueError for a path that a model does not have, and for a batch of too
        few rows, or of more than the memory for angles allows."""
        del seed
        check_taps(self.needs, problem)
        if problem.batch is not None:
            require_rows(problem.batch, self.family, self.name, self._widths(problem))
        return None

    def _widths(self, problem: Problem) -> list[int]:
        """Of the student's features and of each teacher's."""
        ours = problem.student.feature_shapes(*self.needs["student"])
        theirs = problem.teacher.feature_shapes(*self.needs["teacher"])
        return [math.prod(shape) for shape in (*ours.values(), *theirs.values())]

    def value(self, student: Tensor, teacher: Teachers) -> Tensor:
        """Features -> 0-d."""
        return relation(student, teacher, self.family, self.name)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        return self.value(*features_of(self.name, self.needs, student, teacher)).expand(len(batch))


@dataclass(frozen=True)
class SP(Related):
    """Which rows are similar: Gram matrices with rows of norm 1, mean squared difference. Published weight: 3000.

    Tung, Mori: Similarity-Preserving Knowledge Distillation. ICCV 2019. arXiv:1907.09682.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts. Theirs: maps of the last stage.
    """

    name: ClassVar[str] = "sp"

    @property
    def family(self) -> Family:
        return _SP


@dataclass(frozen=True)
class PKT(Related):
    """Whom a row would choose as its neighbour, the more the smaller their angle; KL in nats, mean over rows.

    RepDistiller's weight of 30 000, of a mean over pairs, is 469 here at 64 rows.

    Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018. arXiv:1803.10837.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts.
    """

    name: ClassVar[str] = "pkt"

    @property
    def family(self) -> Family:
        return _PKT


@dataclass(frozen=True)
class CC(Related):
    """Gaussian kernels of unit features, their series cut after the square; mean squared difference.

    Peng, Jin, Liu, Zhou, Wu, Liu, Zhang, Li: Correlation Congruence for Knowledge Distillation. ICCV 2019.
    arXiv:1904.01802.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts. gamma: of exp(-gamma |f_i - f_j|^2), > 0.
    """

    gamma: float = 0.4
    name: ClassVar[str] = "cc"

    @property
    def family(self) -> Family:
        return _gaussian(self.gamma)


@dataclass(frozen=True)
class CKA(Related):
    """1 - linear centred kernel alignment, in [0, 1]: blind to rotations and the scale of the features.

    Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited. ICML 2019.
    arXiv:1905.00414.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts.
    """

    name: ClassVar[str] = "cka"

    @property
    def family(self) -> Family:
        return _CKA


@dataclass(frozen=True)
class FKD(Related):
    """Correlations of the features of two rows, a row with itself left out; mean squared difference.

    He, Ozay: Feature Kernel Distillation. ICLR 2022. openreview:tBIQEvApZK5. Their total has a term on labels: without
    labels add one on responses, or the classifier learns nothing. A weight to start from: 300.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts. Theirs: penultimate features. regularise: >= 0, times the mean over rows of the
    student's squared feature norm; relative to the loss, so that 0.01 beside a weight of 300 is 0.01 / 300.
    """

    regularise: float = 0.01 / 300
    name: ClassVar[str] = "fkd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.regularise < math.inf:
            raise ValueError(f"regularise: expected a number >= 0, found {self.regularise!r}")

    @property
    def family(self) -> Family:
        return _FKD

    def value(self, student: Tensor, teacher: Teachers) -> Tensor:
        return fkd(student, teacher, self.regularise)


@dataclass(frozen=True)
class Relation(Related):
    """Any member of the family: kernel x normalisation x diagonal x distance. no paper of its own.

    student: the path of the module whose features are compared. teacher: likewise; of several paths (the members of an
    ensemble) the mean relation counts. kernel: gram, centred_gram, cosine, gaussian, distance or angle. normalise:
    none, row_l2, row_sum, frobenius, correlation or mean. diagonal: keep or zero. distance: square, kl, inner or huber.
    gamma: of the gaussian kernel. rows: so many, spread evenly over the batch, take part, null for all. max_bytes: of
    memory for angles, as of rkd_angle.
    """

    kernel: Kernel = "gram"
    normalise: Normalise = "correlation"
    diagonal: Diagonal = "zero"
    distance: Distance = "square"
    gamma: float = 0.4
    rows: int | None = None
    max_bytes: int = 2**30
    name: ClassVar[str] = "relation"

    @property
    def family(self) -> Family:
        return Family(self.kernel, self.normalise, self.diagonal, self.distance, self.gamma, self.rows, self.max_bytes)
