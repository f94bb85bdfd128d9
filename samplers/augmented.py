"""Another sampler's images, shifted, enlarged, mirrored or rolled, each row in its own way.

no paper. The teacher labels the changed image, so the pixels that are taught are those it was asked about.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfkd.augment import crop, flip, resized_crop, roll
from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import derive
from dfkd.types import Batch

from .checks import a_sampler, some_rows, true_or_false, whole_at_least
from .state import State, Stream


@dataclass(frozen=True)
class Augmented:
    """Rows of the base after a random crop, enlargement, flip and roll.

    base: where the images come from. crop: black pixels around the image, of which a window of its size is cut; 0 is
    off, None takes an eighth of the shorter side (4 at 32 pixels, 1 at 8). flip: whether half of the rows are mirrored
    left to right; off unless told, as a mirrored digit is no digit. roll: most pixels that a row is moved around its
    edges, 0 is off. area: the smallest share of the image that a crop scaled up to its size shows, in (0, 1]; 1 is off.
    """

    base: Sampler
    crop: int | None = None
    flip: bool = False
    roll: int = 0
    area: float = 1.0
    name: ClassVar[str] = "augmented"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        a_sampler("base", self.base)
        if self.crop is not None:
            whole_at_least(self, 0, "crop")
        whole_at_least(self, 0, "roll")
        true_or_false(self, "flip")
        if not 0.0 < self.area <= 1.0:
            raise ValueError(f"area: expected a number in (0, 1], found {self.area!r}")
        if self.crop == 0 and not self.flip and self.roll == 0 and self.area == 1.0:
            raise ValueError("crop: expected a change to the images, found crop 0, flip off, roll 0 and area 1")

    def init(self, problem: Problem, seed: int) -> State:
        stream = Stream(derive(seed, self.name), problem.device)
        return State(stream=stream, base=self.base.init(problem, derive(seed, "base")))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        batch, rng, spec = self.base.draw(state.base, problem, n, learn), state.stream.advance(), problem.spec
        x = batch.x
        pad = max(1, min(spec.height, spec.width) // 8) if self.crop is None else self.crop
        if pad:
            x = crop(x, rng, pad, spec.low)
        if self.area < 1.0:
            x = resized_crop(x, rng, (self.area, 1.0))
        if self.flip:
            x = flip(x, rng, 0.5)
        if self.roll:
            x = roll(x, rng, self.roll)
        return batch.with_x(x)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)
