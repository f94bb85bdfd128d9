"""How fast the power of images falls with frequency: about -2 for photographs, 0 for white noise.

van der Schaaf, van Hateren: Modelling the Power Spectra of Natural Images: Statistics and Information. Vision Research
1996. doi:10.1016/0042-6989(96)00002-8. Changed: images are taken as periodic as they are, without a window.
"""

import torch
from torch import Tensor

__all__ = ["radial_power", "spectral_slope"]

_NOTHING = 1e-13  # of the largest power: rounding of float32 pixels


def spectral_slope(pixels: Tensor) -> float | None:
    """(n, c, h, w) -> the least-squares slope of ln power over ln frequency, one point for each ring; no unit.

    Rings 1 to r, r being half of the shorter side, in cycles per that side: for 8x8 the four rings 1, 2, 3 and 4, for
    28x28 fourteen. None for sides of less than 4 pixels, and where a ring has no power, as of flat images.
    """
    frequency, power = radial_power(pixels)
    if len(power) < 2 or not bool((power > _NOTHING * power.max()).all()):  # sync
        return None
    x, y = frequency.log(), power.log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())  # sync


def radial_power(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(n, c, h, w) -> frequency and power of each ring, (r,) float64: means over the ring, rows and channels.

    A frequency belongs to the ring it is nearest to. Its ring's place is the mean of logarithms, as those are fitted.
    What lies beyond the last ring, in the corners, and the mean of each image (frequency 0) do not count.
    """
    h, w = pixels.shape[-2:]
    shorter = min(h, w)
    side = [torch.fft.fftfreq(n, dtype=torch.float64, device=pixels.device) * shorter for n in (h, w)]
    radius = (side[0][:, None].square() + side[1][None, :].square()).sqrt().flatten()
    values = pixels.double()
    values = values - values.mean(dim=(-2, -1), keepdim=True)
    power = torch.fft.fft2(values).abs().square().mean(dim=(0, 1)).flatten()
    rings = [radius.round() == ring for ring in range(1, shorter // 2 + 1)]
    places, means = [radius[ring].log().mean().exp() for ring in rings], [power[ring].mean() for ring in rings]
    return (torch.stack(places), torch.stack(means)) if rings else (radius.new_zeros(0), radius.new_zeros(0))
