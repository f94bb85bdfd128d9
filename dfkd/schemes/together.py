"""Students that are trained together: several networks in one module, one objective, and one network kept at the end.

No paper: what mutual learning, on-the-fly ensembles, deep-to-shallow and averaged teachers have in common.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from dfkd.interfaces import Loss, StudentFactory
from dfkd.losses import Objective, combine
from dfkd.losses.parts import At
from dfkd.losses.peers import STUDENT, Peers
from dfkd.naming import unknown
from dfkd.problem import Probe
from dfkd.schemes.from_teacher import FromTeacher
from dfkd.types import InputSpec

__all__ = [
    "Scheme",
    "Together",
    "anchored",
    "counted",
    "noted",
    "output_shape",
    "pooled",
    "weighed",
    "with_peers",
]


@runtime_checkable
class Scheme(Protocol):
    """Who is trained with a student, and what they teach each other: a frozen dataclass of settings."""

    name: ClassVar[str]

    def build(self, fresh: Callable[[int], nn.Module], spec: InputSpec, seed: int) -> nn.Module:
        """The module that is trained. fresh(0) is the student as it starts alone, fresh(1) another start, and so on."""

    def objective(self, given: Objective) -> Objective:
        """What that module minimises, where a student alone would minimise what is given."""

    def keep(self, module: Any) -> nn.Module:
        """The student alone, a copy, after the module was trained."""


@dataclass(frozen=True)
class Together:
    """A student that a scheme trains: wherever a student is asked for.

    student: a name, a factory, a module, or one of them that starts `FromTeacher`.
    """

    student: "str | StudentFactory | nn.Module | FromTeacher"
    scheme: Scheme

    def __post_init__(self) -> None:
        if isinstance(self.student, Together):
            raise ValueError("student: expected one that no other scheme trains")
        if isinstance(self.scheme, type) or not isinstance(self.scheme, Scheme):
            raise ValueError(f"scheme: expected a scheme, such as Mutual(members=2), found {self.scheme!r}")


def anchored(
    given: Objective, networks: Iterable[tuple[str, float]], parts: Iterable[tuple[str, float]] = ()
) -> dict[str, tuple[float, Loss]]:
    """The objective on each of these nodes, times its share.

    networks: module paths of whole students. parts: nodes that give logits but are no student of their own (a branch, a
    classifier, `student`: the ensemble); they get the losses on logits alone.
    """
    terms: dict[str, tuple[float, Loss]] = {}
    on_logits = {label: term for label, term in given.terms.items() if _on_logits(term[1])}
    parts = tuple(parts)
    if parts and not on_logits:
        raise ValueError(f"objective: expected a loss on logits alone, such as kl, found {', '.join(given.terms)}")
    for nodes, inside in ((networks, given.terms), (parts, on_logits)):
        for node, share in nodes:
            for label, (weight, loss) in inside.items():
                there = loss if node == STUDENT else At(node, loss)
                terms[f"{label} at {node.replace('.', ' ')}"] = (share * weight, there)
    return terms


def _on_logits(loss: Loss) -> bool:
    return not loss.input_grad and not loss.needs.get("student")


def with_peers(terms: dict[str, tuple[float, Loss]], weight: float, peers: Peers) -> Objective:
    """The terms, and what the networks teach each other."""
    return combine({**terms, "peers between": (weight, peers)})


def weighed(weight: float, name: str = "weight") -> None:
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"{name}: expected a finite number >= 0, found {weight!r}")


def counted(number: int, least: int, name: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, found {number!r}")


def output_shape(module: nn.Module, spec: InputSpec, path: str, what: str) -> tuple[int, ...]:
    """The shape that the part at this path gives for one image; ValueError naming the nearest where there is none."""
    known = [inner for inner, _ in module.named_modules() if inner]
    if path not in known:
        raise unknown(f"{what}: module path of the student", path, known)
    try:
        shape = Probe(module, spec, name="student").feature_shapes(path)[path]
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if not shape:
        raise ValueError(f"{what}: expected {path!r} to give features, found one number for each image")
    return shape


@contextmanager
def noted(parts: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Inside, what these parts give is kept by their names; ValueError for one that is called twice."""
    seen: dict[str, Tensor] = {}

    def after(name: str, part: nn.Module, given: Any, output: Any) -> None:
        del part, given  # what a hook is told beside it
        if name in seen or not isinstance(output, Tensor):
            found = "another call" if name in seen else type(output).__name__
            raise ValueError(f"module path {name!r} of the student: expected it to give one tensor, found {found}")
        seen[name] = output.clone()  # as what comes next may change it in place

    handles = [part.register_forward_hook(partial(after, name)) for name, part in parts.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def pooled(features: Tensor) -> Tensor:
    """(n, c, ...) -> (n, c): the mean over positions."""
    return features if features.ndim == 2 else features.flatten(2).mean(dim=2)
