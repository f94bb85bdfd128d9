"""How far the student's features are from the teacher's, through adapters that are trained with the student.

Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets. 2014. arXiv:1412.6550.
Changed: hints are matched while the student learns, not in a stage before; the regressor is a 1x1 convolution (linear
for vectors and sequences); of two maps the larger is average-pooled to the smaller. Published weight: 100.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from dfkd.losses.norms import direction
from dfkd.problem import Problem
from dfkd.rng import derive, initialised
from dfkd.types import Batch, Outputs

Pairs = tuple[tuple[str, str], ...]
Distance = Literal["mse", "l1", "cosine"]
Adapters = Literal["always", "where_needed"]
Shape = tuple[int, ...]  # of one row

_KINDS = {1: "vector", 2: "sequence", 3: "map"}
_FITS = "a map fits a map, a vector (or a map of 1x1) a vector, a sequence one of its length"


def alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Of two maps (n, c, h, w) the larger average-pooled to the smaller; a 1x1 map beside a vector as a vector."""
    if student.ndim == teacher.ndim == 4:
        size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
        return _pooled(student, size), _pooled(teacher, size)
    if {student.ndim, teacher.ndim} == {2, 4}:
        return student.flatten(1), teacher.flatten(1)
    return student, teacher


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else functional.adaptive_avg_pool2d(x, size)


def feature_distance(student: Tensor, teacher: Tensor, distance: Distance = "mse") -> Tensor:
    """Two (n, ...) of one shape -> (n,): means over elements, of squares or absolutes in the features' units.

    cosine: 1 - cosine, mean over positions. Channels are the last axis of a sequence, the second one otherwise.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"distance: expected one of {', '.join(get_args(Distance))}, found {distance!r}")
    if student.shape != teacher.shape:
        raise ValueError(f"teacher: expected features of shape {tuple(student.shape)}, found {tuple(teacher.shape)}")
    if distance == "cosine":
        channels = 2 if student.ndim == 3 else 1
        values = 1.0 - (direction(student, channels) * direction(teacher, channels)).sum(dim=channels, keepdim=True)
    else:
        values = (student - teacher).square() if distance == "mse" else (student - teacher).abs()
    return values.flatten(1).mean(dim=1)


def checked_pairs(pairs: Any, name: str = "pairs") -> Pairs:
    """The pairs as tuples; ValueError where they are none."""
    listed: list[Any] = list(pairs) if isinstance(pairs, (tuple, list)) else []
    for pair in listed or [None]:
        two = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not two or not all(isinstance(path, str) and path for path in pair):
            raise ValueError(f"{name}: expected [[student's module path, teacher's], ...], found {pairs!r}")
    return tuple((ours, theirs) for ours, theirs in listed)


def tapped(pairs: Pairs) -> dict[str, tuple[str, ...]]:
    """What a loss on these pairs needs."""
    ours, theirs = zip(*pairs, strict=True)
    return {"student": tuple(dict.fromkeys(ours)), "teacher": tuple(dict.fromkeys(theirs))}


def shapes_of(pairs: Pairs, problem: Problem, who: str) -> list[tuple[Shape, Shape]]:
    """(student's, teacher's) of one image, for each pair; ValueError for features that do not fit each other."""
    needs = tapped(pairs)
    ours = problem.student.feature_shapes(*needs["student"])
    theirs = problem.teacher.feature_shapes(*needs["teacher"])
    for mine, other in pairs:
        if not _fit(ours[mine], theirs[other]):
            found = f"{_said(ours[mine])} of the student's {mine!r} to the {_said(theirs[other])} of the teacher's"
            raise ValueError(f"{who}: cannot fit the {found} {other!r}; {_FITS}")
    return [(ours[mine], theirs[other]) for mine, other in pairs]


def _fit(ours: Shape, theirs: Shape) -> bool:
    if 0 in (*ours, *theirs) or not {len(ours), len(theirs)} <= set(_KINDS):
        return False
    if len(ours) != len(theirs):
        return all(len(shape) == 1 or shape[1:] == (1, 1) for shape in (ours, theirs))
    return len(ours) != 2 or ours[0] == theirs[0]


def _said(shape: Shape) -> str:
    kind = "empty features" if 0 in shape else _KINDS.get(len(shape), "features")
    return f"{kind} {shape}"


@dataclass(frozen=True)
class Features:
    """Distance of features through adapters, summed over pairs, in the features' own units. Published weight: 100.

    pairs: module paths [[student's, teacher's], ...]; `penultimate` is what the last linear layer is given. distance:
    `mse` or `l1`, means over elements, or `cosine`: 1 - cosine over channels, mean over positions. adapter: `always`
    (as published), or `where_needed`: only where the numbers of channels differ. Called by itself, as a metric, it has
    no adapters.
    """

    pairs: Pairs
    distance: Distance = "mse"
    adapter: Adapters = "always"
    name: ClassVar[str] = "features"
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", checked_pairs(self.pairs))
        for option, known in (("distance", get_args(Distance)), ("adapter", get_args(Adapters))):
            if getattr(self, option) not in known:
                raise ValueError(f"{option}: expected one of {', '.join(known)}, found {getattr(self, option)!r}")

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        return tapped(self.pairs)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """One adapter for each pair, shapes found by asking each model two images that are not counted."""
        adapters: list[nn.Module] = []
        for place, (ours, theirs) in enumerate(shapes_of(self.pairs, problem, self.name)):
            with initialised(derive(seed, place)):
                adapters.append(self._adapter(ours, theirs))
        return Adapted(self, adapters)

    def _adapter(self, ours: Shape, theirs: Shape) -> nn.Module:
        mine, other = (shape[-1] if len(shape) == 2 else shape[0] for shape in (ours, theirs))
        if self.adapter == "where_needed" and mine == other:
            return nn.Identity()
        return nn.Conv2d(mine, other, 1) if len(ours) == len(theirs) == 3 else nn.Linear(mine, other)

    def measured(self, student: Outputs, teacher: Outputs, adapters: Sequence[nn.Module]) -> Tensor:
        """(n,), each of the student's features through its adapter."""
        total: Tensor | None = None
        for (mine, other), adapter in zip(self.pairs, adapters, strict=True):
            ours, theirs = alike(student.features[mine], teacher.features[other])
            ours = adapter(ours)
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"{self.name}: expected {mine!r} of the student in the shape of {other!r} of the teacher, "
                    f"{tuple(theirs.shape)}, found {tuple(ours.shape)}; adapters are in what `init` returns"
                )
            values = feature_distance(ours, theirs, self.distance)
            total = values if total is None else total + values
        assert total is not None  # there is a pair
        return total

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        del batch
        return self.measured(student, teacher, [nn.Identity()] * len(self.pairs))


class Adapted(nn.Module):
    """The loss with its adapters, called in its place."""

    def __init__(self, loss: Features, adapters: Sequence[nn.Module]) -> None:
        super().__init__()
        self._loss = loss
        self.adapters = nn.ModuleList(adapters)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        del batch
        return self._loss.measured(student, teacher, list(self.adapters))
