"""Pixels in the box as bytes and back: 256 levels from low to high."""

import torch
from torch import Tensor

from dfkd.types import InputSpec

__all__ = ["as_channels_last", "to_bytes", "to_pixels"]


def to_bytes(x: Tensor, spec: InputSpec) -> Tensor:
    """Float pixels in [low, high], any shape -> uint8, the nearest of 256 levels."""
    return ((x - spec.low) * (255.0 / spec.span)).round().clamp(0, 255).to(torch.uint8)


def to_pixels(levels: Tensor, spec: InputSpec) -> Tensor:
    """uint8 -> float32 in [low, high]; `to_bytes` of it gives the same bytes back. Floats are pixels already."""
    if levels.is_floating_point():
        return levels.float()
    pixels = levels / 255.0  # one pass, and all there is to do for the default box
    if (spec.low, spec.high) == (0.0, 1.0):
        return pixels
    return pixels.mul_(spec.span).add_(spec.low).clamp_(spec.low, spec.high)


def as_channels_last(x: Tensor) -> Tensor:
    """(n, c, h, w) -> the same numbers, laid out so that convolutions answer channels last."""
    if x.shape[1] == 1:
        # one channel lies either way, and torch takes it for channels first unless its stride says otherwise
        return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)
