"""Random images whose spectrum falls with frequency as that of natural images does, with a slope of its own each.

Baradad Jurjo, Wulff, Wang, Isola, Torralba: Learning to See by Looking at Noise. 2021. arXiv:2106.05963. Changed: one
pass without their fitting to colour statistics; colours are mixed by a random matrix, and every image is brought to one
mean and one standard deviation, then clipped to the box.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch, BatchNormMode, whole

from .checks import a_labelling, at_least, between, positive, range_within, some_rows
from .state import State, Stream


@dataclass(frozen=True)
class Spectrum:
    """Random phases under a magnitude 1 / (|fx|^a + |fy|^b), a = s + d, b = s - d, f in cycles per pixel.

    slopes: least and most s, uniform per image, each >= 0; 0 is white noise, 1 is usual for photographs. tilt: standard
    deviation of d, >= 0. mean: of every image, as a fraction of the box. std: of every image before what is beyond the
    box is clipped, as a fraction of the box, > 0. labelling: BatchNorm statistics the teacher labels with, `eval`
    (stored) or `batch` (of the rows asked together).
    """

    slopes: tuple[float, float] = (0.5, 3.5)
    tilt: float = 0.05
    mean: float = 0.5
    std: float = 0.25
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "spectrum"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        range_within(self, 0.0, float("inf"), "slopes")
        at_least(self, 0.0, "tilt")
        between(self, 0.0, 1.0, "mean")
        positive(self, "std")
        a_labelling(self.labelling)

    def init(self, problem: Problem, seed: int) -> State:
        return State(stream=Stream(seed, problem.device))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn  # nothing to learn
        some_rows(n)
        spec, device, rng = problem.spec, problem.device, state.stream.advance()
        c, h, w = spec.shape
        u, bend = torch.rand(n, generator=rng, device=device), torch.randn(n, generator=rng, device=device)
        s = self.slopes[0] + (self.slopes[1] - self.slopes[0]) * u
        size = magnitude((s + self.tilt * bend).clamp_min(0.0), (s - self.tilt * bend).clamp_min(0.0), h, w)
        # the phases of white noise are uniform and those of a real image; half a spectrum drawn at random is not
        noise = torch.fft.rfft2(torch.randn(n, c, h, w, generator=rng, device=device))
        x = torch.fft.irfft2(noise / noise.abs().clamp_min(1e-30) * size[:, None], s=(h, w))
        if c > 1:
            mix = torch.randn(n, c, c, generator=rng, device=device)
            x = (mix @ x.flatten(2)).view(n, c, h, w)
        x = x / x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-30)  # its mean is 0 already
        x = (spec.low + spec.span * (self.mean + self.std * x)).clamp_(spec.low, spec.high)
        return Batch(x, labelling=whole(n, self.labelling))

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def magnitude(a: Tensor, b: Tensor, h: int, w: int) -> Tensor:
    """Slopes along width and height (n,) -> (n, h, w // 2 + 1), as `rfft2` orders it; 0 for the mean."""
    along_x = torch.fft.rfftfreq(w, device=a.device) ** a[:, None]
    along_y = torch.fft.fftfreq(h, device=a.device).abs() ** b[:, None]
    fall: Tensor = along_x[:, None, :] + along_y[:, :, None]
    fall[:, 0, 0] = torch.inf
    return fall.reciprocal()
