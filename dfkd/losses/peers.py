"""Networks that are trained together and teach each other: a small graph of who teaches whom.

Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning. CVPR 2018. arXiv:1706.00384. Changed: any graph of edges in place of
all pairs, and a temperature, whose square is `scale` as for KL. The student is one module that holds them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dfkd.losses.response import kl_nats, require_temperature
from dfkd.problem import Problem
from dfkd.types import Batch, Outputs

__all__ = ["STUDENT", "TEACHER", "Peers"]

TEACHER, STUDENT = "teacher", "student"
"""Nodes that are no module paths: the frozen teacher's answers, and what the student as a whole answers."""

Edges = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Peers:
    """For each node that is taught, the mean over its sources of KL(source || node), summed over nodes; in nats.

    edges: [[who teaches, who is taught], ...]; a node is a module path of the student that gives logits (n, k),
    `student` (what it answers as a whole) or `teacher`, which is never taught. temperature: > 0, no unit. attached:
    whether a source learns from being a source too; else it is a fixed target. Edges may then form no cycle.
    """

    edges: Edges
    temperature: float = 1.0
    attached: bool = False
    name: ClassVar[str] = "peers"
    input_grad: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_temperature(self.temperature)
        object.__setattr__(self, "edges", _checked(self.edges))
        loop = _cycle(self.edges) if self.attached else None
        if loop is not None:
            raise ValueError(f"edges: a cycle without a detach, {' -> '.join(loop)}; leave attached false")

    @property
    def scale(self) -> float:
        return self.temperature**2

    @property
    def uses_teacher(self) -> bool:
        return any(source == TEACHER for source, _ in self.edges)

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        nodes = dict.fromkeys(node for edge in self.edges for node in edge)
        return {"student": tuple(node for node in nodes if node not in (TEACHER, STUDENT)), "teacher": ()}

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """Nothing to train beside the student. ValueError for a node that is not there or gives no logits."""
        del seed
        nodes, k = self.needs["student"], problem.spec.num_classes
        with problem.student.taps(*nodes):
            pass
        for node in nodes:
            try:
                found = problem.student.feature_shapes(node)[node]
            except ValueError:  # asked in training only, as most members of a scheme are
                continue
            if found != (k,):
                shape = ", ".join(map(str, ("n", *found)))
                raise ValueError(f"edges: expected logits of shape (n, {k}) of {node!r}, found ({shape})")
        return None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        n, k = len(batch), student.logits.shape[-1]
        answers = {TEACHER: teacher.logits.detach(), STUDENT: student.logits, **student.features}
        for node in self.needs["student"]:
            if answers[node].shape != (n, k):
                found = tuple(answers[node].shape)
                raise ValueError(f"edges: expected logits of shape ({n}, {k}) of {node!r}, found {found}")
        sources: dict[str, list[str]] = {}
        for source, node in self.edges:
            sources.setdefault(node, []).append(source)
        total: Tensor | None = None
        for node, those in sources.items():
            for source in those:
                target = answers[source] if self.attached else answers[source].detach()
                values = kl_nats(answers[node], target, self.temperature) / len(those)
                total = values if total is None else total + values
        assert total is not None  # there is an edge
        return total


def _checked(edges: Any) -> Edges:
    listed: list[Any] = list(edges) if isinstance(edges, (tuple, list)) else []
    for edge in listed or [None]:
        two = isinstance(edge, (tuple, list)) and len(edge) == 2
        if not two or not all(isinstance(node, str) and node for node in edge):
            raise ValueError(f"edges: expected [[who teaches, who is taught], ...], found {edges!r}")
    found = tuple((source, node) for source, node in listed)
    for source, node in found:
        if node == TEACHER:
            raise ValueError(f"edges: the teacher is frozen, {source!r} cannot teach it")
        if source == node:
            raise ValueError(f"edges: {node!r} cannot teach itself")
    if len(set(found)) != len(found):
        raise ValueError(f"edges: expected each edge once, found {edges!r}")
    return found


def _cycle(edges: Edges) -> list[str] | None:
    """Nodes along a cycle, the first one again at the end; None where there is none."""
    taught: dict[str, list[str]] = {}
    for source, node in edges:
        taught.setdefault(source, []).append(node)
    safe: set[str] = set()  # no cycle is reached from these

    def walk(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in safe:
            return None
        for following in taught.get(node, ()):
            found = walk(following, [*path, node])
            if found is not None:
                return found
        safe.add(node)
        return None

    return next((found for node in taught if (found := walk(node, [])) is not None), None)
