"""Pixels in the box as bytes and back: 256 levels from low to high."""

import torch
from torch import Tensor

from dfkd.types import InputSpec

__all__ = ["to_bytes", "to_pixels"]


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
