"""What a composite says of its parts: the published training of the one recipe that it wraps."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from dfkd.interfaces import Preset, Sampler, preset_of
from dfkd.losses import KL, LogitL1
from dfkd.problem import Problem
from dfkd.types import Batch

FIRST = Preset({"kl": (1.0, KL(temperature=1.0))}, {"learning_rate": 0.1}, 256, 80_000)
SECOND = Preset({"logit_l1": (1.0, LogitL1())}, {}, 64, None)


@dataclass(frozen=True)
class Plain:
    """A sampler with parts and without a preset."""

    parts: tuple[Sampler, ...] = ()
    name: ClassVar[str] = "plain"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> Any:
        raise NotImplementedError

    def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
        raise NotImplementedError

    def observe(self, state: Any, batch: Batch, loss: Tensor) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Fixed(Plain):
    """One whose class has a preset."""

    preset: ClassVar[Preset] = FIRST


@dataclass(frozen=True)
class Chosen(Plain):
    """One whose settings have it."""

    preset: Preset = field(default=SECOND)


def test_a_recipe_says_it_however_it_is_wrapped() -> None:
    assert preset_of(Plain()) is None
    assert preset_of(Plain((Plain(),))) is None
    assert preset_of(Fixed()) is FIRST
    assert preset_of(Plain((Plain((Chosen(),)),))) is SECOND
    assert preset_of(Plain((Fixed(), Plain()))) is None  # of two parts, neither says how all is trained
    assert preset_of(Chosen((Fixed(),))) is SECOND
