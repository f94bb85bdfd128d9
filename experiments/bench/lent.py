"""What the parts of the protocol for a GPU share: the device and the files, networks with known weights, and noise.

no paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dfkd.engine import Training, train
from dfkd.models import build
from dfkd.problem import Probe, Problem
from dfkd.rng import derive, initialised
from dfkd.types import Batch, InputSpec
from samplers.state import State

from .protocol import Unfinished

__all__ = ["LAUNCH_BOUND", "SEED", "Fixed", "Lent", "noise", "problem_of", "trained"]

SEED = 0
LAUNCH_BOUND = (("resnet56", "resnet20"), ("wrn-40-2", "wrn-16-1"))
"""Teacher, student."""


@dataclass(frozen=True)
class Lent:
    """device: `cuda`, `cuda:N` or `cpu`. folder: for checkpoints and for teachers that are trained here. data: an .npz
    of CIFAR-10. teacher: weights of resnet56. small: tiny sizes. run_seconds: of each run to an accuracy. stamp: a word
    for device, size and commit, which names of files begin with."""

    device: torch.device
    folder: Path
    data: str | None = None
    teacher: Path | None = None
    small: bool = False
    run_seconds: float = 90.0
    stamp: str = "any"

    @property
    def spec(self) -> InputSpec:
        return InputSpec((3, 8, 8) if self.small else (3, 32, 32), 10)

    @property
    def batch(self) -> int:
        return 8 if self.small else 256

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def names(self) -> list[str | None]:
        """Of the files that were given; their folders may be others the next time."""
        return [None if path is None else Path(path).name for path in (self.data, self.teacher)]

    def make_current(self) -> None:
        """From here on the device is the one that is meant where none is named."""
        if self.cuda:
            torch.cuda.set_device(self.device.index or 0)  # torch refuses a device without a number

    def net(self, name: str) -> str:
        """The smallest of its kind, where sizes are tiny."""
        return ("resnet8" if name.startswith("resnet") else "wrn-10-1") if self.small else name

    def as_plain(self) -> dict[str, Any]:
        """For another process."""
        return {
            "device": str(self.device),
            "folder": str(self.folder.resolve()),
            "data": None if self.data is None else str(Path(self.data).resolve()),
            "teacher": None if self.teacher is None else str(self.teacher.resolve()),
            "small": self.small,
            "run_seconds": self.run_seconds,
            "stamp": self.stamp,
        }

    def resolved(self) -> "Lent":
        """With paths that mean the same wherever it is read."""
        return Lent.of(self.as_plain())

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Lent":
        """What `as_plain` gave."""
        paths = {name: None if plain[name] is None else Path(plain[name]) for name in ("folder", "teacher")}
        return cls(**{**plain, **paths, "device": torch.device(plain["device"])})


@dataclass(frozen=True)
class Fixed:
    """The same images at every draw, here or there. x (n, c, h, w) lies on the CPU."""

    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    name: ClassVar[str] = "fixed"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        del seed
        return State(x=self.x.to(problem.device), y=self.y.to(problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del problem, learn
        return Batch(state.x[:n], y=state.y[:n])

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def trained(*given: Any, **options: Any) -> Training:
    """As dfkd.engine.train; Unfinished where it was told to end before its budget was spent."""
    result = train(*given, **options)
    if result.status == "interrupted":
        raise Unfinished("was told to end")
    return result


def noise(lent: Lent, n: int) -> Fixed:
    """n images of uniform noise, and classes in turn."""
    rng = torch.Generator().manual_seed(SEED)
    return Fixed(torch.rand(n, *lent.spec.shape, generator=rng), torch.arange(n) % lent.spec.num_classes)


def problem_of(lent: Lent, device: torch.device, teacher: str, student: str, precision: str = "float32") -> Problem:
    """Both networks with the same weights on any device; the teacher has seen a little noise."""
    spec = lent.spec
    with initialised(derive(SEED, teacher, student)):
        nets = [build(lent.net(name), spec) for name in (teacher, student)]
        with torch.no_grad():
            nets[0](torch.rand(16, *spec.shape))
    probes = [Probe(net, spec, device, name, precision) for net, name in zip(nets, ("teacher", "student"), strict=True)]
    return Problem(probes[0], probes[1], spec, device, seed=SEED)
