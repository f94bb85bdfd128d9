"""Another sampler's images, shifted, enlarged, turned, mirrored, rolled or recoloured, each row in its own way.

no paper. Rotation and colours are called as in torchvision's RandomRotation and ColorJitter. The teacher labels the
changed image, so the pixels that are taught are those it was asked about.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dfkd.augment import crop, flip, flip_vertical, jitter, resized_crop, roll, rotate
from dfkd.interfaces import Sampler
from dfkd.naming import known_as
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import derive
from dfkd.types import Batch

from .checks import a_sampler, at_least, between, some_rows, true_or_false, whole_at_least
from .state import State, Stream


def _off() -> float:
    # not written where it is off: folders that were begun before it was a setting go on
    return field(default=0.0, metadata={"unless": 0.0})


@dataclass(frozen=True)
class Augmented:
    """Rows of the base after a random crop, enlargement, rotation, flip, roll and change of colours, in this order.

    base: where the images come from. crop: black pixels around the image, of which a window of its size is cut; 0 is
    off, None takes an eighth of the shorter side (4 at 32 pixels, 1 at 8). flip: whether half of the rows are mirrored
    left to right; off unless told, as a mirrored digit is no digit. roll: most pixels that a row is moved around its
    edges, 0 is off. area: the smallest share of the image that a crop scaled up to its size shows, in (0, 1]; 1 is off.
    degrees: most that a row is rotated either way, black outside; 0 is off. flip_vertical: whether half of the rows are
    mirrored upside down. brightness: by which share a row's is changed at most, up or down; contrast: likewise, around
    the row's mean grey; saturation: likewise, from each pixel's grey; hue: most that it is turned either way, as a
    share of the circle, at most 0.5; 0 is off. Grey images have neither saturation nor hue: these leave them alone.
    """

    base: Sampler
    crop: int | None = None
    flip: bool = False
    roll: int = 0
    area: float = 1.0
    degrees: float = _off()
    flip_vertical: bool = field(default=False, metadata={"unless": False})
    brightness: float = _off()
    contrast: float = _off()
    saturation: float = _off()
    hue: float = _off()
    name: ClassVar[str] = "augmented"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        a_sampler("base", self.base)
        if self.crop is not None:
            whole_at_least(self, 0, "crop")
        whole_at_least(self, 0, "roll")
        true_or_false(self, "flip", "flip_vertical")
        at_least(self, 0.0, "degrees", "brightness", "contrast", "saturation")
        between(self, 0.0, 0.5, "hue")
        if not 0.0 < self.area <= 1.0:
            raise ValueError(f"area: expected a number in (0, 1], found {self.area!r}")
        moved = self.crop != 0 or self.flip or self.roll or self.area < 1.0 or self.degrees or self.flip_vertical
        if not moved and not any(self._colours):
            raise ValueError("crop: expected a change to the images, found crop 0 and all else off")

    def init(self, problem: Problem, seed: int) -> State:
        if (self.saturation or self.hue) and problem.spec.channels not in (1, 3):
            raise UnsupportedProblem(
                f"augmented: expected images of 1 or 3 channels for saturation and hue, found {problem.spec.channels}"
            )
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
        if self.degrees:
            x = rotate(x, rng, self.degrees, spec.low).clamp(spec.low, spec.high)  # interpolation rounds
        if self.flip:
            x = flip(x, rng, 0.5)
        if self.flip_vertical:
            x = flip_vertical(x, rng, 0.5)
        if self.roll:
            x = roll(x, rng, self.roll)
        if any(self._colours):
            x = jitter(x, rng, *self._colours, box=(spec.low, spec.high))
        return batch.with_x(x)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state.base, batch, loss)

    def __repr__(self) -> str:
        return known_as(self)

    @property
    def _colours(self) -> tuple[float, float, float, float]:
        return self.brightness, self.contrast, self.saturation, self.hue
