"""Crops of one image that the user names, turned, sheared and recoloured: all views of it are the training set.

Asano, Saeed: The Augmented Image Prior: Distilling 1000 Classes by Extrapolating from a Single Image. 2023.
arXiv:2112.00725. Changed: crops without end where theirs are fixed beforehand; crop, turn and shear are one map, so
what a turned crop has beyond its edges is the image around it (at its border, the border) where theirs is black;
colours change in one fixed order and are clipped once. Their CutMix is the composite `cutmix`, their temperature is 8.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, InputSpec, whole

from .checks import a_labelling, at_least, between, paths_as_text, range_within, some_rows, true_or_false
from .state import State, Stream

_RATIO = (3 / 4, 4 / 3)
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class OneImage:
    """Of a random part of the image, a rectangle in it, scaled to the teacher's size.

    image: a file, or `china` or `flower`, photographs that scikit-learn brings. part: sides of the part as a share of
    the image's, in (0, 1]. area: least and most share of the part that the rectangle has, in (0, 1], uniform; it is
    3/4 to 4/3 as wide as high. rotate: most degrees either way, below 90. shear: likewise. brightness: most change
    either way, in [0, 1]. contrast: likewise. saturation: likewise. hue: most change either way in turns, in [0, 0.5].
    jitter: share of the rows whose colours are changed. flip: whether half of them are mirrored. labelling: BatchNorm
    statistics the teacher labels with, `eval` (stored) or `batch` (of the rows asked together).
    """

    image: str = "china"
    part: float = 0.5
    area: tuple[float, float] = (1 / 500, 1.0)
    rotate: float = 30.0
    shear: float = 30.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.5
    flip: bool = True
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "one_image"
    data_free: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        paths_as_text(self, "image")
        if not isinstance(self.image, str) or not self.image:
            raise ValueError(f"image: expected an image file, china or flower, found {self.image!r}")
        if not 0.0 < self.part <= 1.0:
            raise ValueError(f"part: expected a share of the image's sides in (0, 1], found {self.part!r}")
        range_within(self, 1e-6, 1.0, "area")
        at_least(self, 0.0, "rotate", "shear")
        for setting in ("rotate", "shear"):
            if getattr(self, setting) >= 90.0:
                raise ValueError(f"{setting}: expected degrees below 90, found {getattr(self, setting)!r}")
        between(self, 0.0, 1.0, "brightness", "contrast", "saturation", "jitter")
        true_or_false(self, "flip")
        between(self, 0.0, 0.5, "hue")
        a_labelling(self.labelling)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.image,)

    def init(self, problem: Problem, seed: int) -> State:
        from dfkd.data import read_picture  # here, because a data-free run works where data cannot be read at all

        spec = problem.spec
        picture = read_picture(self.image, spec.channels)
        h, w = picture.shape[1:]
        least = math.ceil(spec.height / self.part), math.ceil(spec.width / self.part)
        if h < least[0] or w < least[1]:
            raise ValueError(
                f"image: expected at least {least[0]}x{least[1]} pixels, of which a part of {self.part:g} is as large "
                f"as the teacher's {spec.height}x{spec.width}, found {h}x{w} in {self.image!r}"
            )
        return State(stream=Stream(seed, problem.device), views=Views(picture.to(problem.device)))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        spec, rng = problem.spec, state.stream.advance()
        boxes = rectangles(n, state.views.size, self.part, self.area, rng)
        x = state.views.look(*self._places(boxes, spec, rng))
        x = (spec.low + spec.span * self._recoloured(x, rng)).clamp_(spec.low, spec.high)
        return Batch(x, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss

    def _places(self, boxes: Tensor, spec: InputSpec, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Where in the image, x and y (n, h, w), each pixel looks, and how many of its pixels (n,) one of ours is."""
        n, h, w = len(boxes), spec.height, spec.width
        u = torch.rand(3, n, 1, 1, generator=rng, device=boxes.device)
        turn = (2 * u[0] - 1) * math.radians(self.rotate)
        slant = ((2 * u[1] - 1) * math.radians(self.shear)).tan()
        mirror = torch.where(u[2] < 0.5 * self.flip, -1.0, 1.0)
        across = (torch.arange(w, device=boxes.device) + 0.5 - w / 2) * mirror  # in our pixels, from the middle
        down = (torch.arange(h, device=boxes.device) + 0.5 - h / 2)[:, None]
        x, y = across * turn.cos() - down * turn.sin(), across * turn.sin() + down * turn.cos()
        x = x + slant * y
        left, top, wide, high = boxes[:, :, None, None].unbind(dim=1)
        # the rectangle fills a square whose diagonal is twice ours, so that a turned square of ours lies in it
        step_x, step_y = wide / (math.sqrt(2) * w), high / (math.sqrt(2) * h)
        scale = (step_x * step_y).sqrt().flatten()
        return left + wide / 2 + x * step_x, top + high / 2 + y * step_y, scale

    def _recoloured(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """x (n, c, h, w) in [0, 1]: some rows brighter, of more contrast, more colourful and of another hue."""
        n, c, h, w = x.shape
        u = 2 * torch.rand(5, n, 1, 1, generator=rng, device=x.device) - 1
        u = torch.where(u[4] < 2 * self.jitter - 1, u[:4], 0.0)
        bright, strong = 1 + self.brightness * u[0], 1 + self.contrast * u[1]
        grey = _weights(x) @ x.flatten(2)  # (n, 1, h w)
        base = bright * (1 - strong) * grey.mean(dim=2, keepdim=True)
        matrix = bright * strong * torch.eye(c, device=x.device)
        if c == 3:
            vivid, angle = 1 + self.saturation * u[2], 2 * math.pi * self.hue * u[3]
            matrix = _hue(angle) @ (vivid * torch.eye(c, device=x.device) + (1 - vivid) * _weights(x)) @ matrix
        return (base + matrix @ x.flatten(2)).view(n, c, h, w)


def _weights(x: Tensor) -> Tensor:
    """(1, c): how bright each channel looks; made where x is, of numbers, so that nothing is copied there."""
    if x.shape[1] == 1:
        return torch.ones(1, 1, device=x.device)
    return torch.cat([torch.full((1, 1), weight, device=x.device) for weight in _GREY], dim=1)


def _hue(angle: Tensor) -> Tensor:
    """(n, 1, 1) -> (n, 3, 3): colours turned about the line of greys."""
    one, third = torch.eye(3, device=angle.device), torch.full((3, 3), 1 / 3, device=angle.device)
    cross = (one.roll(1, 0) - one.roll(1, 1)) / math.sqrt(3)
    return angle.cos() * one + (1 - angle.cos()) * third + angle.sin() * cross


def rectangles(n: int, size: tuple[int, int], part: float, area: tuple[float, float], rng: torch.Generator) -> Tensor:
    """(n, 4) left, top, width, height in pixels of an image of size (h, w), each in a part of it and no larger."""
    u = torch.rand(6, n, generator=rng, device=rng.device)
    high, wide = (side * part for side in size)
    share = (area[0] + (area[1] - area[0]) * u[0]) * (high * wide)
    ratio = _RATIO[0] * (_RATIO[1] / _RATIO[0]) ** u[1]
    width, height = (share * ratio).sqrt().clamp(max=wide), (share / ratio).sqrt().clamp(max=high)
    left = u[2] * (size[1] - wide) + u[3] * (wide - width)
    top = u[4] * (size[0] - high) + u[5] * (high - height)
    return torch.stack([left, top, width, height], dim=1)


class Views:
    """The image at full, half, quarter ... size, side by side in one row of pixels; of it the size alone is saved."""

    def __init__(self, picture: Tensor) -> None:
        self.size: tuple[int, int] = (picture.shape[1], picture.shape[2])
        levels = [picture[None].float()]
        while min(levels[-1].shape[2:]) >= 4:
            h, w = levels[-1].shape[2:]
            levels.append(functional.interpolate(levels[-1], (h // 2, w // 2), mode="bilinear", antialias=True))
        self._pixels = torch.cat([level[0].flatten(1) for level in levels], dim=1).round().to(torch.uint8)
        sides = torch.tensor([level.shape[2:] for level in levels], device=picture.device)
        self._sides, self._starts = sides, sides.prod(dim=1).cumsum(0) - sides.prod(dim=1)

    def look(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1]: what is at x, y (n, h, w) of the full size, by bilinear interpolation between pixels
        of the level whose pixels are nearest in size to `scale` (n,) of the full one's."""
        level = scale.log2().round().long().clamp(0, len(self._sides) - 1)
        h, w = self._sides[level].T[:, :, None, None]
        x = (x * (w / self.size[1]) - 0.5).clamp_min(0.0).minimum(w - 1)
        y = (y * (h / self.size[0]) - 0.5).clamp_min(0.0).minimum(h - 1)
        left, up = x.long(), y.long()
        right, low = (left + 1).minimum(w - 1), (up + 1).minimum(h - 1)
        along, down = x - left, y - up
        start = self._starts[level][:, None, None]
        rows = (start + up * w, start + low * w)
        above, below = (self._at(row + left) * (1 - along) + self._at(row + right) * along for row in rows)
        return ((above * (1 - down) + below * down) / 255.0).transpose(0, 1).contiguous()

    def _at(self, index: Tensor) -> Tensor:
        return self._pixels[:, index]  # (c, n, h, w)

    def state_dict(self) -> dict[str, Any]:
        return {"size": list(self.size)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if tuple(state["size"]) != self.size:
            raise ValueError(f"state: expected an image of {self.size} pixels, found one of {tuple(state['size'])}")
