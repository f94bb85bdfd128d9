"""What crosses a border: the input's shape, a batch of inputs, a model's answers.

Letters for shapes: n rows, c channels, h height, w width, k classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

__all__ = [
    "BATCHNORM_MODES",
    "Batch",
    "BatchNormMode",
    "InputSpec",
    "Labelling",
    "Outputs",
    "UnlabelledBatch",
    "contents",
]

BatchNormMode = Literal["eval", "batch"]
"""eval: normalise with the stored statistics. batch: with those of the rows asked together."""

BATCHNORM_MODES: tuple[str, ...] = get_args(BatchNormMode)

Labelling = tuple[tuple[int, BatchNormMode], ...]
"""Runs of consecutive rows and the mode the teacher labels each run in, e.g. ((96, "eval"), (32, "batch"))."""


@dataclass(frozen=True)
class InputSpec:
    """What both models take and give: images (c, h, w) of pixels in [low, high], k classes."""

    shape: tuple[int, int, int]
    num_classes: int
    low: float = 0.0
    high: float = 1.0
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(int(side) < 1 for side in self.shape):
            raise ValueError(f"shape: expected (channels, height, width), each >= 1, found {self.shape!r}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes: expected an integer >= 2, found {self.num_classes!r}")
        if not self.low < self.high:
            raise ValueError(f"low: expected a number below high ({self.high!r}), found {self.low!r}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names: expected {self.num_classes} names, found {len(self.class_names)}")

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def height(self) -> int:
        return self.shape[1]

    @property
    def width(self) -> int:
        return self.shape[2]

    @property
    def span(self) -> float:
        """high - low: a step of one eighth of the box is span / 8."""
        return self.high - self.low

    @property
    def middle(self) -> float:
        return 0.5 * (self.low + self.high)


@dataclass(frozen=True)
class Outputs:
    """A model's answers to n rows, and the conditions under which it gave them.

    logits (n, k) float32; features by module path, each with n rows. labelling and precision tag the conditions, so
    that answers travel with a batch and are used only where the same conditions are asked for.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    labelling: Labelling = ()
    precision: str = "float32"

    def detach(self) -> "Outputs":
        features = {path: value.detach() for path, value in self.features.items()}
        return replace(self, logits=self.logits.detach(), features=features)


class UnlabelledBatch(ValueError):
    """Ground truth is asked of rows that have none."""


@dataclass(frozen=True)
class Batch:
    """Inputs to be labelled by the teacher: detached, on one device.

    x (n, c, h, w) float32 pixels. y: ground truth only, (n,) int64 or (n, k) float for mixed labels. target (n,): the
    class a sampler aimed at. weight (n,) float. source (n,) int64: which part of a mixture. known: where only some
    parts have ground truth, y of their rows, -1 or shares of 0 of others; labelled: the places of these parts and of
    those without rows; y is None then. info: 0-d tensors for people. labelling: the BatchNorm mode the teacher labels
    each run of rows in; () means all in `eval`. teacher: its outputs for exactly these rows, when they are known
    already.
    """

    x: Tensor
    y: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None
    source: Tensor | None = None
    known: Tensor | None = None
    labelled: tuple[int, ...] = ()
    info: Mapping[str, Tensor] = field(default_factory=dict)
    labelling: Labelling = ()
    teacher: Outputs | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 4:
            raise ValueError(f"x: expected (n, c, h, w), found {tuple(self.x.shape)}")
        n = self.x.shape[0]
        if not self.labelling:
            object.__setattr__(self, "labelling", ((n, "eval"),))
        if sum(rows for rows, _ in self.labelling) != n:
            raise ValueError(f"labelling: expected runs that add up to {n} rows, found {self.labelling!r}")
        for name in ("y", "target", "weight", "source", "known"):
            value = getattr(self, name)
            if value is not None and value.shape[0] != n:
                raise ValueError(f"{name}: expected {n} rows, found {tuple(value.shape)}")
        if self.teacher is not None and self.teacher.logits.shape[0] != n:
            raise ValueError(f"teacher: expected {n} rows, found {tuple(self.teacher.logits.shape)}")

    def __len__(self) -> int:
        return self.x.shape[0]

    def with_x(self, x: Tensor) -> "Batch":
        """The same rows with other pixels. The only way to change pixels: what the teacher said is dropped."""
        if x.shape[0] != len(self):
            raise ValueError(f"x: expected {len(self)} rows, found {x.shape[0]}")
        return replace(self, x=x, teacher=None)

    def of_sources(self, places: Iterable[int]) -> "Batch":
        """For who looks at the rows of these parts alone: with y where they have ground truth; other rows' is not."""
        if self.y is not None or self.known is None or not set(places) <= set(self.labelled):
            return self
        return replace(self, y=self.known.clamp(min=0))

    def require_y(self, who: str) -> Tensor:
        """The ground truth, for metrics that need it; never the class a sampler aimed at."""
        if self.y is None:
            raise UnlabelledBatch(f"{who}: needs ground-truth labels, found a batch without y")
        return self.y

    @property
    def mode(self) -> BatchNormMode:
        """The one labelling mode of all rows; ValueError where parts of a mixture differ."""
        modes = {mode for _, mode in self.labelling}
        if len(modes) != 1:
            raise ValueError(f"labelling: expected one BatchNorm mode for all rows, found {self.labelling!r}")
        return modes.pop()

    def rows(self, index: Tensor) -> "Batch":
        """These rows in this order, (m,) int64; carried answers go along where they do not depend on their company."""
        mode = self.mode  # rows of different modes have an order that must not be mixed up
        keep = self.teacher if mode == "eval" else None
        labelling: Labelling = ((index.shape[0], mode),)
        if keep is not None:
            features = {path: value[index] for path, value in keep.features.items()}
            keep = replace(keep, logits=keep.logits[index], features=features, labelling=labelling)

        def take(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return replace(
            self,
            x=self.x[index],
            y=take(self.y),
            target=take(self.target),
            weight=take(self.weight),
            source=take(self.source),
            known=take(self.known),
            labelling=labelling,
            teacher=keep,
        )


def whole(n: int, mode: BatchNormMode) -> Labelling:
    """n rows, all labelled in one mode."""
    if mode not in BATCHNORM_MODES:
        raise ValueError(f"labelling: expected one of {', '.join(BATCHNORM_MODES)}, found {mode!r}")
    return ((n, mode),)


def as_device(device: "str | torch.device | None") -> torch.device:
    """None: the GPU where there is one, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, found {str(device)!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: found {str(device)!r}, but this machine has {torch.cuda.device_count()} such devices"
        )
    return found


def contents(tensor: Tensor) -> bytes:
    """The bytes of what is in it, in the order of its rows, to be hashed. The host waits for them."""
    return tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()  # sync


def tensors_in(held: Any) -> Iterator[Tensor]:
    """The tensors of a state, or of whatever lies in mappings, lists and tuples."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping):
        for value in held.values():
            yield from tensors_in(value)
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from tensors_in(value)
