"""Random views of images: per sample, on their device, from a torch.Generator, differentiable in the pixels.

no paper. Offsets are drawn on the device, so nothing waits for the GPU. The generator lives on the device of x.
Crops and rolls are moves of whole pixels; their backward is the opposite move, one pass as fast as the forward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop", "flip", "resized_crop", "roll", "roll_batch"]


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
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability: expected a number in [0, 1], found {probability!r}")
    mirrored = torch.rand(x.shape[0], generator=generator, device=x.device) < probability
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


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
