"""Random views of images: per sample, on their device, from a torch.Generator, differentiable in the pixels.

no paper. Offsets are drawn on the device, so nothing waits for the GPU. The generator lives on the device of x.
Crops and rolls are moves of whole pixels; their backward is the opposite move, one pass as fast as the forward.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop", "flip", "flip_vertical", "jitter", "resized_crop", "roll", "roll_batch", "rotate"]

GREY = (0.2989, 0.587, 0.114)
"""What red, green and blue add to a pixel's grey."""


def crop(x: Tensor, generator: torch.Generator, pad: int, value: float = 0.0) -> Tensor:
    """x (n, c, h, w) with `pad` pixels of `value` around it, cut back to (h, w) at a place drawn per image."""
    _check_most("pad", pad)
    if pad == 0:
        return x
    down, right = torch.randint(2 * pad + 1, (2, x.shape[0]), generator=generator, device=x.device)
    cut: Tensor = _Move.apply(x, down, right, pad, value, False)
    return cut


def flip(x: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """x (n, c, h, w), each image mirrored left to right with this probability."""
    return _mirror(x, generator, probability, 3)


def flip_vertical(x: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """x (n, c, h, w), each image mirrored upside down with this probability."""
    return _mirror(x, generator, probability, 2)


def roll(x: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """x (n, c, h, w), each image rolled by up to `most` pixels either way, along height and along width."""
    _check_most("most", most)
    if most == 0:
        return x
    down, right = torch.randint(2 * most + 1, (2, x.shape[0]), generator=generator, device=x.device)
    rolled: Tensor = _Move.apply(x, down, right, most, 0.0, True)
    return rolled


def roll_batch(x: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """x (n, c, h, w), all images rolled by the same up to `most` pixels either way, along height and along width."""
    _check_most("most", most)
    if most == 0:
        return x
    down, right = torch.randint(-most, most + 1, (2,), generator=generator, device=x.device)
    h, w = x.shape[2:]
    # an index instead of torch.roll, whose shifts are host numbers and would have to be waited for
    rows = (torch.arange(h, device=x.device) - down) % h
    columns = (torch.arange(w, device=x.device) - right) % w
    return x.index_select(2, rows).index_select(3, columns)


def resized_crop(
    x: Tensor,
    generator: torch.Generator,
    area: tuple[float, float] = (0.25, 1.0),
    ratio: tuple[float, float] = (0.75, 4 / 3),
) -> Tensor:
    """x (n, c, h, w), of each image a rectangle drawn inside it, scaled back to (h, w) by bilinear interpolation.

    area: least and most share of the image, in (0, 1], uniform. ratio: least and most width / height of the rectangle
    relative to the image, log-uniform; a side longer than the image is cut to it.
    """
    if not 0.0 < area[0] <= area[1] <= 1.0:
        raise ValueError(f"area: expected 0 < least <= most <= 1, found {area!r}")
    if not 0.0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio: expected 0 < least <= most, found {ratio!r}")
    n = x.shape[0]
    u = torch.rand(4, n, generator=generator, device=x.device)
    share = area[0] + (area[1] - area[0]) * u[0]
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** u[1]
    width, height = (share * aspect).sqrt().clamp(max=1.0), (share / aspect).sqrt().clamp(max=1.0)
    # the grid's unit is half an image, so a centre keeps the rectangle inside at up to 1 - its share of the side
    centre_x, centre_y = (1 - width) * (2 * u[2] - 1), (1 - height) * (2 * u[3] - 1)
    zero = torch.zeros_like(width)
    maps = torch.stack([width, zero, centre_x, zero, height, centre_y], dim=1).view(n, 2, 3)
    grid = functional.affine_grid(maps.to(x.dtype), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def rotate(x: Tensor, generator: torch.Generator, degrees: float, value: float = 0.0) -> Tensor:
    """x (n, c, h, w), each image turned about its middle by up to `degrees` either way, uniform; outside is `value`.

    By bilinear interpolation; a positive angle is counter-clockwise.
    """
    if not 0.0 <= degrees < math.inf:
        raise ValueError(f"degrees: expected a number >= 0, found {degrees!r}")
    if degrees == 0:
        return x
    n, _, h, w = x.shape
    angle = math.radians(degrees) * (2 * torch.rand(n, generator=generator, device=x.device) - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # from a place in the result to the place it shows; the grid's units are half a width and half a height
    maps = torch.stack([cos, -sin * (h / w), zero, sin * (w / h), cos, zero], dim=1).view(n, 2, 3)
    grid = functional.affine_grid(maps.to(x.dtype), list(x.shape), align_corners=False)
    return functional.grid_sample(x - value, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + value


def jitter(
    x: Tensor,
    generator: torch.Generator,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    box: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """x (n, c, h, w) in the box, each image with a brightness, contrast, saturation and hue of its own.

    The settings are those of torchvision's ColorJitter: factors uniform in [max(0, 1 - setting), 1 + setting], and a
    turn of the hue uniform in [-hue, hue], of which 1 would be the whole circle. What leaves the box is cut to its edge
    each time. The order is always this one, where theirs is drawn: without cuts and hue it would make no difference.
    A grey image (c = 1) has neither saturation nor hue, and is changed in brightness and contrast alone.
    """
    for name, setting in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        if not 0.0 <= setting < math.inf:
            raise ValueError(f"{name}: expected a number >= 0, found {setting!r}")
    if not 0.0 <= hue <= 0.5:
        raise ValueError(f"hue: expected a number in [0, 0.5], found {hue!r}")
    if brightness == contrast == saturation == hue == 0:
        return x
    n, c = x.shape[:2]
    if (saturation or hue) and c not in (1, 3):
        raise ValueError(f"saturation, hue: expected images of 1 or 3 channels, found {c}")
    low, span = box[0], box[1] - box[0]
    u = torch.rand(4, n, 1, 1, 1, generator=generator, device=x.device)
    settings = (brightness, contrast, saturation)
    factors = [max(0.0, 1 - s) + (1 + s - max(0.0, 1 - s)) * u[i] for i, s in enumerate(settings)]
    z = (x - low) / span
    if brightness:
        z = (factors[0] * z).clamp(0, 1)
    if contrast:
        mean = _grey(z).mean(dim=(1, 2, 3), keepdim=True)
        z = (mean + factors[1] * (z - mean)).clamp(0, 1)
    if saturation and c == 3:
        grey = _grey(z)
        z = (grey + factors[2] * (z - grey)).clamp(0, 1)
    if hue and c == 3:
        z = _turn_hue(z, hue * (2 * u[3] - 1)).clamp(0, 1)
    return (low + span * z).clamp(*box)


def _mirror(x: Tensor, generator: torch.Generator, probability: float, dim: int) -> Tensor:
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability: expected a number in [0, 1], found {probability!r}")
    mirrored = torch.rand(x.shape[0], generator=generator, device=x.device) < probability
    return torch.where(mirrored[:, None, None, None], x.flip(dim), x)


def _grey(z: Tensor) -> Tensor:
    """z (n, c, h, w) -> (n, 1, h, w) of colours, itself of anything else."""
    if z.shape[1] != 3:
        return z
    red, green, blue = (share * channel for share, channel in zip(GREY, z.split(1, dim=1), strict=True))
    grey: Tensor = red + green + blue
    return grey


def _turn_hue(z: Tensor, turn: Tensor) -> Tensor:
    """z (n, 3, h, w), its hues turned by `turn` (n, 1, 1, 1) of a circle; a pixel's most and least value stay."""
    most, least = z.amax(dim=1, keepdim=True), z.amin(dim=1, keepdim=True)
    chroma = most - least
    r, g, b = z.split(1, dim=1)
    known = chroma.clamp(min=1e-6)  # of greys the hue is as good as any
    sixth = torch.where(r == most, (g - b) / known, torch.where(g == most, (b - r) / known + 2, (r - g) / known + 4))
    sixth = sixth + 6 * turn
    places = [(sixth + start) % 6 for start in (5, 3, 1)]  # of red, green and blue around the circle, in sixths
    away = torch.cat([torch.minimum(place, 4 - place) for place in places], dim=1)
    return most - chroma * away.clamp(0, 1)


class _Move(torch.autograd.Function):
    """Window (down, right), each (n,) in [0, 2 most], of x with a border of `most` pixels: of `value`, or wrapped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, right: Tensor, most: int, value: float, wrap: bool) -> Tensor:
        ctx.save_for_backward(down, right)
        ctx.most, ctx.wrap = most, wrap
        n, _, h, w = x.shape
        border = (most, most, most, most)
        padded = _wrapped(x, most) if wrap else functional.pad(x, border, value=value)
        windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # a view (n, c, 2 most + 1, 2 most + 1, h, w)
        return windows[torch.arange(n, device=x.device), :, down, right]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        down, right = ctx.saved_tensors
        # what moved down by d moves up by d; pixels that had left the image get none
        back = _Move.apply(grads[0], 2 * ctx.most - down, 2 * ctx.most - right, ctx.most, 0.0, ctx.wrap)
        return back, None, None, None, None, None


def _wrapped(x: Tensor, most: int) -> Tensor:
    """x with a border of `most` pixels from the opposite side, however small the image."""
    h, w = x.shape[2:]
    rows = torch.arange(-most, h + most, device=x.device) % h
    columns = torch.arange(-most, w + most, device=x.device) % w
    return x.index_select(2, rows).index_select(3, columns)


def _check_most(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name}: expected an integer >= 0, found {value!r}")
