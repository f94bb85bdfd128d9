"""Directions: vectors at length 1, at any scale and where there is none.

no paper. What is all zero (or so small beside what it was computed from that it is rounding) has no direction. It is
never divided by nearly nothing: the gradient of that has no bound.
"""

import torch
from torch import Tensor

__all__ = ["TINY", "apart", "direction", "scaled", "unit"]

_NOTHING = 1e-8  # beside a largest element of 1: rounding, not a direction
TINY = 1e-12  # in whatever unit: nothing at all

Dims = int | tuple[int, ...]


def unit(x: Tensor, dim: Dims = 1, nothing: float = _NOTHING) -> Tensor:
    """x, whose squares neither over- nor underflow, over its Euclidean norm along dim.

    What is shorter than `nothing` stays as it is: no slope without bound.
    """
    square = x.square().sum(dim=dim, keepdim=True)
    return x / torch.where(square > nothing**2, square, 1.0).sqrt()


def scaled(x: Tensor, nothing: float = _NOTHING, dim: Dims | None = None) -> Tensor:
    """x over its largest element along dim, of all where dim is None, so that squares neither over- nor underflow.

    Where no element is larger than `nothing` it is zero, without a gradient.
    """
    dims = tuple(range(x.ndim)) if dim is None else dim
    largest = x.detach().abs().amax(dim=dims, keepdim=True)
    there = largest > nothing
    return torch.where(there, x / torch.where(there, largest, 1.0), 0.0)


def direction(x: Tensor, dim: Dims) -> Tensor:
    """x over its Euclidean norm along dim, at any scale; where x is zero it stays zero, without a gradient."""
    return unit(scaled(x, TINY, dim), dim)


def apart(a: Tensor, b: Tensor, dim: Dims) -> Tensor:
    """1 - <a, b> along dim, of vectors that have length 1 or are zero; 0 where both are zero.

    As half the squared distance, which does not cancel where they are alike; a zero one beside another is 1 from it.
    """
    lengths = [x.detach().square().sum(dim=dim) for x in (a, b)]
    return 0.5 * ((a - b).square().sum(dim=dim) + (lengths[0] - lengths[1]).abs())
