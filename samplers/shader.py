"""Random compositions of simple functions of the coordinates, coloured by a random palette.

After Baradad, Chen, Wulff, Wang, Feris, Torralba, Isola: Procedural Image Programs for Representation Learning. 2022.
arXiv:2211.16412, who collected small shader programs that people wrote. Changed: the programs are drawn, so there are
as many as images: each is two to six of sine waves, mirrors, tiles, products, warps by value noise and kaleidoscopes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, whole

from .checks import a_labelling, range_within, some_rows
from .state import State, Stream

_COLOURS = 5  # most in a palette
_OCTAVES = 6
_SHARP = 16  # pixels along the longer side below which images are painted finer than they are
_WHOLE = 64  # pixels along the longer side that show what a program makes as a whole; fewer show a part of it


@dataclass(frozen=True)
class Shader:
    """Images of smooth gradients, stripes and shapes, each by a program of its own.

    layers: least and most functions that are applied to the coordinates one after another, 1 <= least <= most; each
    number and each function is met equally often. contrast: least share of the box from the darkest to the brightest
    pixel of an image, in (0, 1]; uniform from there to 1. labelling: BatchNorm statistics the teacher labels with,
    `eval` (stored) or `batch` (of the rows asked together).
    """

    layers: tuple[int, int] = (2, 6)
    contrast: float = 0.3
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "shader"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        range_within(self, 1, float("inf"), "layers", whole=True)
        if not 0.0 < self.contrast <= 1.0:
            raise ValueError(f"contrast: expected a share of the box in (0, 1], found {self.contrast!r}")
        a_labelling(self.labelling)

    def init(self, problem: Problem, seed: int) -> State:
        return State(stream=Stream(seed, problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        spec, chance = problem.spec, Chance(state.stream.advance())
        least, most = self.layers
        # rows come in whole sets of every number of layers with every function, so that which function a row gets can
        # be drawn without the host looking at it and without every function being computed for every row
        lengths = most - least + 1
        rows = -(-n // (lengths * len(FUNCTIONS))) * lengths * len(FUNCTIONS)
        finer = max(1, _SHARP // max(spec.height, spec.width))  # small images are painted larger and averaged
        at = _coordinates(rows, spec.height, spec.width, finer, chance)
        for layer in range(most):
            first = rows // lengths * max(0, layer - least + 1)  # rows before it have had all their layers
            order = first + chance.order(rows - first)
            for function, some in zip(FUNCTIONS, order.chunk(len(FUNCTIONS)), strict=True):
                at[some] = function(at[some], chance)
        x = functional.avg_pool2d(_coloured(at[chance.order(rows)[:n]], spec.channels, chance), finer)
        low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        size = chance.between(self.contrast, 1.0, n)
        x = (x - low) * (size / (high - low).clamp_min(1e-6)) + (1 - size) * chance.between(0.0, 1.0, n)
        x = (spec.low + spec.span * x).clamp_(spec.low, spec.high)
        return Batch(x, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


class Chance:
    """Numbers per row, shaped to meet (n, c, h, w)."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def between(self, low: float, high: float, n: int, c: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(n, c, 1, 1, generator=self.generator, device=self.device)

    def apart(self, low: float, high: float, n: int, c: int = 1) -> Tensor:
        """Log-uniform: a factor of two is as likely everywhere."""
        return self.between(math.log(low), math.log(high), n, c).exp()

    def whole(self, low: int, high: int, n: int) -> Tensor:
        """Integers from low to high, both among them."""
        return torch.randint(low, high + 1, (n, 1, 1, 1), generator=self.generator, device=self.device)

    def order(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)


def _coordinates(n: int, h: int, w: int, finer: int, chance: Chance) -> Tensor:
    """(n, 2, finer h, finer w): x and y from the middle, turned, scaled and moved for each row.

    Functions of functions soon have detail that few pixels cannot show: then noise is all there is to see.
    """
    extent = min(1.0, max(h, w) / _WHOLE)
    x, y = ((torch.arange(finer * side, device=chance.device) * 2 + 1) / finer - side for side in (w, h))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy")) / max(h, w)
    moved = grid * extent * chance.apart(0.5, 1.5, n) + chance.between(-0.8, 0.8, n, 2)
    return _turned(moved, chance.between(0.0, 2 * math.pi, n))


def _turned(at: Tensor, angle: Tensor) -> Tensor:
    x, y = at[:, :1], at[:, 1:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([x * cos - y * sin, x * sin + y * cos], dim=1)


def _waves(at: Tensor, chance: Chance) -> Tensor:
    """Each coordinate moved by a sine of the other."""
    n = len(at)
    phase = at.flip(1) * chance.between(1.5, 5.0, n, 2) + chance.between(0.0, 2 * math.pi, n, 2)
    return at + chance.between(0.15, 0.7, n, 2) * phase.sin()


def _mirror(at: Tensor, chance: Chance) -> Tensor:
    """Folded along two lines at right angles."""
    n = len(at)
    return _turned(at, chance.between(0.0, 2 * math.pi, n)).abs() - chance.between(0.1, 0.7, n, 2)


def _tiles(at: Tensor, chance: Chance) -> Tensor:
    """Repeated from -1 to 1."""
    n = len(at)
    q = at * chance.between(0.4, 1.0, n) + chance.between(0.0, 1.0, n, 2)
    return 2 * (q - q.floor()) - 1


def _product(at: Tensor, chance: Chance) -> Tensor:
    """The square of x + i y, no longer than that where it is long, moved."""
    x, y = at[:, :1], at[:, 1:]
    square = torch.cat([x * x - y * y, 2 * x * y], dim=1)
    return 1.5 * square / (0.5 + (x * x + y * y).sqrt()) + chance.between(-0.6, 0.6, len(at), 2)


def _warp(at: Tensor, chance: Chance) -> Tensor:
    """Moved by value noise: random values on grids of 2, 4, 8, ... cells, each half as strong as the one before."""
    n, (h, w) = len(at), at.shape[2:]
    octaves = chance.whole(1, _OCTAVES, n)
    moved = at
    strength = chance.between(0.3, 1.0, n) * at.std(dim=(2, 3), keepdim=True)
    for octave in range(_OCTAVES):
        cells = 2 << octave
        if 4 * cells > max(h, w):
            break  # too few pixels each
        grid = chance.normal(n, 2, cells + 1, cells + 1)
        noise = _between_nodes(h, cells, grid) @ grid @ _between_nodes(w, cells, grid).T
        moved = moved + torch.where(octaves > octave, strength * 0.5**octave, 0.0) * noise
    return moved


def _between_nodes(side: int, cells: int, like: Tensor) -> Tensor:
    """(side, cells + 1): the weights of the nodes at each pixel, by smooth steps."""
    at = (torch.arange(side, device=like.device) + 0.5) * (cells / side)
    share = (1 - (at[:, None] - torch.arange(cells + 1, device=like.device)).abs()).clamp_min(0.0)
    return share * share * (3 - 2 * share)


def _kaleidoscope(at: Tensor, chance: Chance) -> Tensor:
    """Folded into one of 3 to 8 sectors around the middle, and mirrored in it."""
    n = len(at)
    x, y = at[:, :1], at[:, 1:]
    r, sector = (x * x + y * y).sqrt(), 2 * math.pi / chance.whole(3, 8, n)
    angle = torch.atan2(y, x) / sector + chance.between(0.0, 1.0, n)
    angle = (angle - angle.floor() - 0.5).abs() * sector
    return torch.cat([r * angle.cos(), r * angle.sin()], dim=1) - chance.between(0.0, 0.6, n, 2)


FUNCTIONS: tuple[Callable[[Tensor, Chance], Tensor], ...] = (_waves, _mirror, _tiles, _product, _warp, _kaleidoscope)


def _level(at: Tensor, folds: float, chance: Chance) -> Tensor:
    """(n, 2, h, w) -> (n, 1, h, w) in [0, 1]: a random sum of x, y, r and cos theta, folded to and fro."""
    x, y = at[:, :1], at[:, 1:]
    r = (x * x + y * y).sqrt()
    weights = chance.normal(4, len(at), 1, 1, 1)
    height = weights[0] * x + weights[1] * y + weights[2] * r + 0.5 * weights[3] * x / r.clamp_min(1e-3)
    spread = height.std(dim=(2, 3), keepdim=True).clamp_min(1e-4)
    q = (height - height.mean(dim=(2, 3), keepdim=True)) / spread
    q = q * chance.apart(0.2 * folds, folds, len(at)) + chance.between(0.0, 1.0, len(at))
    return 2 * (q - q.floor() - 0.5).abs()


def _coloured(at: Tensor, c: int, chance: Chance) -> Tensor:
    """(n, 2, h, w) -> (n, c, h, w): a palette of 2 to 5 colours, with steps from smooth to sharp, and some shade."""
    n, _, h, w = at.shape
    folds = 0.1 + 0.7 * min(1.0, max(h, w) / _WHOLE)
    palette = torch.rand(n, c, _COLOURS, generator=chance.generator, device=chance.device)
    colours, sharp = chance.whole(2, _COLOURS, n), chance.apart(0.5, 20.0, n)
    place = _level(at, folds, chance) * (colours - 1)
    below = place.floor().clamp(max=_COLOURS - 2)
    place = below + 0.5 + torch.tanh((place - below - 0.5) * sharp) / (2 * torch.tanh(sharp / 2))
    nodes = torch.arange(_COLOURS, device=at.device)[:, None, None]
    share = functional.relu(1 - (place - nodes).abs())  # (n, colours, h, w), two of them above 0
    x = (palette @ share.flatten(2)).view(n, c, h, w)
    return x * (1 - chance.between(0.0, 0.7, n) * _level(at, folds, chance))
