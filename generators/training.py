"""What can be trained on images to make such images: settings by kind, what is being trained, and its moving average.

no paper. A kind of generator is a frozen dataclass of settings (Settings); `init` gives what is trained (Trainee):
it is handed real batches and random numbers step by step and knows nothing of data sets, budgets or checkpoints.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage", "Settings", "Trainee", "seeded"]

Shape = tuple[int, int, int]
Box = tuple[float, float]
"""The least and the greatest that a pixel can be."""


class Trainee(Protocol):
    """A generator in training. Everything that changes is in its state, so that a run that was ended goes on exactly.

    batches: real batches that each step is given.
    """

    @property
    def batches(self) -> int: ...

    def step(self, batches: Sequence[tuple[Tensor, Tensor | None]], rng: torch.Generator) -> dict[str, Tensor]:
        """One step on real images (n, c, h, w) with their classes (n,) int64, None where it is not told any.

        Its losses by name, 0-d and detached. All random numbers come from rng; nothing waits for the device.
        """

    def sample(self, n: int, y: Tensor | None, rng: torch.Generator) -> Tensor:
        """(n, c, h, w) pixels in [low, high] from the averaged weights, detached; y (n,) where it is told classes."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and containers of them: what goes on changing, not copies of it."""

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...

    def save(self, out: Path, description: Mapping[str, Any]) -> Path:
        """Writes the averaged generator below the folder `out`, whole or not at all; where it is. See saved.check."""


class Settings(Protocol):
    """The settings of one kind, a frozen dataclass: its options, which the description of a saved one repeats.

    name: the registry's word for the kind.
    """

    name: ClassVar[str]

    def usual(self, shape: Shape) -> tuple[int, int]:
        """Steps and rows of a batch where the user names none, for images (c, h, w)."""

    def init(self, shape: Shape, classes: int | None, box: Box, steps: int, device: torch.device, seed: int) -> Trainee:
        """Before the first of `steps` steps. classes: how many it is told apart, None where it is told none.

        ValueError `shape: ...` for images that it cannot make. The global random generators are left as they were.
        """


class MovingAverage:
    """A copy of a network that follows it: of weights and float buffers, `decay` of the old and the rest of the new.

    In its first updates it forgets quicker, so that the beginning does not linger: after t of them at most
    (1 + t) / (10 + t) is kept. decay: in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema: expected a number in [0, 1), found {decay!r}")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1.0 - keep)
            else:
                mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.updates = int(state["updates"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, weights are drawn from the seed; the global random generators are put back afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
