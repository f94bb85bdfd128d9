"""Terms: each judges a batch of candidate images by one number, and an objective is a weighted sum of them.

Who optimises an objective minimises it; adversarial terms carry their own minus sign. Natural logarithms; sums over
classes, means over rows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dfkd.problem import BatchNormInput, Problem
from dfkd.rng import derive

from .views import Views

__all__ = ["Look", "Objective", "Term"]

Look = Callable[[Tensor, Tensor | None], Views]
"""(x, target) -> what the terms see of them."""


class Term(Protocol):
    """A frozen dataclass of settings; what changes from round to round is in the state from `init`.

    needs: capabilities of the teacher, beside logits. uses_student: whether it asks the student.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def uses_student(self) -> bool: ...

    def init(self, problem: Problem, seed: int) -> Any:
        """A samplers.state.State, a tensor, or None where there is nothing to remember."""

    def __call__(self, state: Any, views: Views) -> Tensor:
        """0-d, with the graph back to views.x."""

    def end_round(self, state: Any) -> None:
        """Called once when a round of synthesis is over."""


@dataclass(frozen=True)
class Objective:
    """Pairs (weight, term); its state is the list of the terms' states. A term of weight 0 is left out altogether."""

    terms: tuple[tuple[float, Term], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple((weight, term) for weight, term in self.terms if weight != 0.0))

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("input_grad", *(need for _, term in self.terms for need in term.needs))))

    @property
    def uses_student(self) -> bool:
        return any(term.uses_student for _, term in self.terms)

    def init(self, problem: Problem, seed: int, who: str) -> list[Any]:
        """The terms' states. UnsupportedProblem naming `who` where the teacher lacks what a term needs."""
        problem.teacher.require(*self.needs, who=who)
        if self.uses_student:
            problem.student.require("input_grad", who=who)
        return [term.init(problem, derive(seed, position)) for position, (_, term) in enumerate(self.terms)]

    @contextmanager
    def watching(self, problem: Problem) -> Iterator[Look]:
        """Inside, both models are frozen, and the teacher's BatchNorm layers are hooked if a term reads them."""
        with problem.searching(), ExitStack() as stack:
            watched: list[BatchNormInput] = []
            if "batchnorm" in self.needs:
                watched = stack.enter_context(problem.teacher.batchnorm_inputs())
            yield lambda x, target: Views(problem, x, target, watched)

    def __call__(self, states: list[Any], views: Views) -> Tensor:
        total = views.x.new_zeros(())
        for (weight, term), state in zip(self.terms, states, strict=True):
            total = total + weight * term(state, views)
        return total

    def end_round(self, states: list[Any]) -> None:
        for (_, term), state in zip(self.terms, states, strict=True):
            term.end_round(state)
