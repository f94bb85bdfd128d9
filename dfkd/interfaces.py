"""The protocols: what a sampler, a loss and a term must offer. Nothing inherits from them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from dfkd.problem import Problem
from dfkd.types import Batch, Outputs

__all__ = [
    "HasPreset",
    "Loss",
    "Preset",
    "Reads",
    "Sampler",
    "State",
    "StudentFactory",
    "Trained",
    "default_label",
    "is_data_free",
    "labelled",
    "parts",
    "preset_of",
    "sources",
    "walk",
]

StudentFactory = Callable[[], nn.Module]


class State(Protocol):
    """Everything of a sampler that changes."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@runtime_checkable
class Sampler(Protocol):
    """A distribution over inputs: a frozen dataclass of settings; what changes is in the state from `init`.

    name: the registry's word for it. data_free: whether it reads no data of its own (a composite says True and its
    parts decide). needs: capabilities of the teacher (`logits`, `input_grad`, `batchnorm`, `features`).
    uses_student: whether its draws depend on the student or on the clock.
    """

    name: ClassVar[str]
    data_free: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]]

    @property
    def uses_student(self) -> bool: ...

    def init(self, problem: Problem, seed: int) -> Any:
        """The state before the first draw. UnsupportedProblem where the teacher lacks a capability."""

    def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
        """n >= 1 rows. learn=False: nothing but the random stream moves."""

    def observe(self, state: Any, batch: Batch, loss: Tensor) -> None:
        """The student's loss per row (n,), detached, after the step on this batch."""


@dataclass(frozen=True)
class Preset:
    """How a recipe's authors train the student: what belongs to the method beside the inputs.

    objective: weights and losses, as for dfkd.losses.combine. optimiser: the fields of dfkd.schedule.Optimiser that
    differ from its defaults. batch: rows per step. steps: student updates, None where none are published. per_class:
    whether the weights are of losses averaged over the classes, where ours are sums over them. made: images in a step
    of the sampler's generator as it is set, where the authors have one number for both; None elsewhere. without: what
    else they train the student with, which is not in it.
    """

    objective: Mapping[str, "tuple[float, Loss]"]
    optimiser: Mapping[str, Any]
    batch: int
    steps: int | None
    per_class: bool = False
    made: int | None = None
    without: str = ""

    def terms(self, num_classes: int) -> "dict[str, tuple[float, Loss]]":
        """The objective for so many classes, as dfkd.losses.combine takes it."""
        over = num_classes if self.per_class else 1
        return {name: (weight / over, loss) for name, (weight, loss) in self.objective.items()}


@runtime_checkable
class HasPreset(Protocol):
    """A recipe that says how its student is trained where the user does not; None where its settings are of a form of
    it whose authors do not say."""

    @property
    def preset(self) -> Preset | None: ...


@runtime_checkable
class Reads(Protocol):
    """A sampler that reads something from outside: data sets, files, pictures, as its settings name them."""

    @property
    def reads(self) -> tuple[str, ...]: ...


@runtime_checkable
class Trained(Protocol):
    """A sampler that reads what was itself trained on data before, and says on which."""

    def trained_on(self) -> Mapping[str, Mapping[str, Any]]:
        """By what it reads: `source` as its trainer named it, `digest` of the images, `size` and `limit`."""


class Loss(Protocol):
    """How far the student's answers are from the teacher's, per row.

    needs: module paths to tap, as {"student": (...), "teacher": (...)}. input_grad: whether both models' gradients in
    x are used. scale: what `combine` multiplies by (temperature squared where one softens, else 1). coupled: whether a
    row's value depends on the other rows; its mean is then the definition.
    """

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def input_grad(self) -> bool: ...

    @property
    def scale(self) -> float: ...

    @property
    def coupled(self) -> bool: ...

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """Adapters that are trained with the student, or None."""

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        """(n,) in nats unless the docstring names another unit."""


def parts(sampler: Sampler) -> Iterator[tuple[str, Sampler]]:
    """The samplers a composite is made of, with the path of each in it."""
    for field in dataclasses.fields(sampler):  # type: ignore[arg-type]  # samplers are dataclasses
        value = getattr(sampler, field.name)
        if isinstance(value, Sampler):
            yield field.name, value
        elif isinstance(value, (tuple, list)):
            for position, part in enumerate(value):
                if isinstance(part, Sampler):
                    yield f"{field.name}.{position}", part


def walk(sampler: Sampler) -> Iterator[Sampler]:
    """The sampler itself and all its parts, parts of parts included."""
    yield sampler
    for _, part in parts(sampler):
        yield from walk(part)


def preset_of(sampler: Sampler) -> Preset | None:
    """The published training of a recipe, as it is or wrapped; None where there is none, and of several parts."""
    if isinstance(sampler, HasPreset):
        return sampler.preset
    inner = [part for _, part in parts(sampler)]
    return preset_of(inner[0]) if len(inner) == 1 else None


def default_label(sampler: Sampler) -> str:
    """Its name and the names of its parts: adversarial-pooled-deep_inversion."""
    return "-".join(part.name for part in walk(sampler))


def labelled(samplers: "Sequence[Sampler] | Mapping[str, Sampler]") -> dict[str, Sampler]:
    """Samplers by label; a list gets the names, which must differ."""
    for sampler in samplers.values() if isinstance(samplers, Mapping) else samplers:
        if isinstance(sampler, type) or not isinstance(sampler, Sampler):
            raise ValueError(f"samplers: expected samplers, such as Uniform(), found {sampler!r}")
    if isinstance(samplers, Mapping):
        return dict(samplers)
    found = {default_label(sampler): sampler for sampler in samplers}
    if len(found) != len(samplers):
        raise ValueError("samplers: two of them have the same label; give a mapping from labels of your own")
    return found


def is_data_free(sampler: Sampler) -> bool:
    """Whether no part of it reads data."""
    return all(part.data_free for part in walk(sampler))


def sources(sampler: Sampler) -> list[str]:
    """What its parts read, for the manifest, and what that was trained on.

    A part that reads data but does not say what gives its own name.
    """
    named: list[str] = []
    for part in walk(sampler):
        if isinstance(part, Reads):
            named += part.reads
        elif not part.data_free:
            named.append(part.name)
        if isinstance(part, Trained):
            named += [str(data["source"]) for data in part.trained_on().values()]
    return named
