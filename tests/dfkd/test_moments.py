"""Mean and variance of channels against their definition, and their gradient against differences."""

import pytest
import torch
from torch import Tensor

from dfkd.moments import moments

SHAPES = [(5, 3), (4, 2, 7), (3, 4, 5, 6)]


def tensor(shape: tuple[int, ...], offset: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) + offset


def slow_moments(x: Tensor) -> tuple[list[float], list[float]]:
    """Channel by channel, in Python floats."""
    means, variances = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].flatten().tolist()
        mean = sum(values) / len(values)
        means.append(mean)
        variances.append(sum((value - mean) ** 2 for value in values) / len(values))
    return means, variances


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_their_definition(shape: tuple[int, ...]) -> None:
    x = tensor(shape, 2.0)
    for found, slow in zip(moments(x), slow_moments(x), strict=True):
        torch.testing.assert_close(found, torch.tensor(slow))


def test_a_large_mean_leaves_the_variance() -> None:
    """As the mean of squares less the square of the mean it would be lost: 1e8 has eight places before it."""
    x = tensor((64, 3, 8, 8))
    torch.testing.assert_close(moments(x + 1e4)[1], moments(x)[1], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_differences(shape: tuple[int, ...]) -> None:
    x = tensor(shape, 2.0).double().requires_grad_(True)
    assert torch.autograd.gradcheck(moments, x)
    assert torch.autograd.gradgradcheck(moments, x)


def test_gradients_lie_as_the_input_does() -> None:
    x = tensor((3, 4, 5, 6)).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    mean, var = moments(x)
    (slope,) = torch.autograd.grad((mean * var).sum(), x)
    assert slope.is_contiguous(memory_format=torch.channels_last)
    (expected,) = torch.autograd.grad((x.mean(dim=(0, 2, 3)) * x.var(dim=(0, 2, 3), correction=0)).sum(), x)
    torch.testing.assert_close(slope, expected)


def test_one_of_both_is_enough() -> None:
    x = tensor((4, 2, 7)).requires_grad_(True)
    (slope,) = torch.autograd.grad(moments(x)[0].sum(), x)
    torch.testing.assert_close(slope, torch.full_like(x, 1 / 28))
