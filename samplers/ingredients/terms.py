"""Terms: each judges a batch of candidate images by one number, and an objective is a weighted sum of them.

Who optimises an objective minimises it; adversarial terms carry their own minus sign. Natural logarithms; sums over
classes, means over rows.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from dfkd.problem import BatchNormInput, Problem
from dfkd.rng import derive

from ..checks import requires
from .views import Views

__all__ = ["Learner", "Look", "Objective", "Term"]


class Look(Protocol):
    """What the terms see of x (n, c, h, w), shown to the models, and the target; images: x before it was viewed."""

    def __call__(self, x: Tensor, target: Tensor | None, images: Tensor | None = None) -> Views: ...


class Term(Protocol):
    """A frozen dataclass of settings; what changes is in the state from `init`.

    needs: capabilities of the teacher, beside logits. uses_student: whether it asks the student. One that learns is a
    Learner too.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def uses_student(self) -> bool: ...

    def init(self, problem: Problem, seed: int) -> Any:
        """A samplers.state.State, a tensor, or None where there is nothing to remember."""

    def __call__(self, state: Any, views: Views) -> Tensor:
        """0-d, with the graph back to views.x."""


@runtime_checkable
class Learner(Protocol):
    """A term that changes as the search goes on: a head, a critic, moving statistics."""

    def after_step(self, state: Any) -> None:
        """Called after each step of the search; parameters of the state have the gradient of the whole objective."""

    def end_round(self, state: Any, views: Views) -> None:
        """Called once when a round is over, with the images that it keeps. The models are frozen still."""


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

    @property
    def learns(self) -> bool:
        return any(isinstance(term, Learner) for _, term in self.terms)

    def init(self, problem: Problem, seed: int, who: str) -> list[Any]:
        """The terms' states. UnsupportedProblem naming `who` where the teacher lacks what a term needs."""
        requires(problem, *self.needs, who=who)
        if self.uses_student:
            requires(problem, "input_grad", who=who, of_student=True)
        return [term.init(problem, derive(seed, position)) for position, (_, term) in enumerate(self.terms)]

    @contextmanager
    def watching(self, problem: Problem) -> Iterator[Look]:
        """Inside, both models are frozen, and of the teacher's layers those are hooked that a term reads."""
        with problem.searching(), ExitStack() as stack:
            watched: list[BatchNormInput] = []
            penultimate: list[Tensor] = []
            if "batchnorm" in self.needs:
                watched = stack.enter_context(problem.teacher.batchnorm_inputs())
            if "penultimate" in self.needs:
                penultimate = stack.enter_context(problem.teacher.penultimate())

            def look(x: Tensor, target: Tensor | None, images: Tensor | None = None) -> Views:
                return Views(problem, x, target, watched, penultimate, images)

            yield look

    def __call__(self, states: list[Any], views: Views) -> Tensor:
        total = views.x.new_zeros(())
        for (weight, term), state in zip(self.terms, states, strict=True):
            total = total + weight * term(state, views)
        return total

    def after_step(self, states: list[Any]) -> None:
        for (_, term), state in zip(self.terms, states, strict=True):
            if isinstance(term, Learner):
                term.after_step(state)

    def end_round(self, states: list[Any], views: Views) -> None:
        for (_, term), state in zip(self.terms, states, strict=True):
            if isinstance(term, Learner):
                term.end_round(state, views)
