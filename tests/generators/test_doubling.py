"""The convolution of doubled maps against doubling and convolving one after the other."""

import pytest
import torch
from torch import nn

from generators.doubling import DoublingConv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [(1, 1), (2, 3), (4, 4)])
def test_equals_both_one_after_the_other(side: tuple[int, int], bias: bool) -> None:
    ours, theirs = DoublingConv(3, 5, bias=bias).double(), nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(1)).double()
    leaves = [x.clone().requires_grad_(True) for _ in range(2)]
    maps = [ours(leaves[0]), theirs(nn.Upsample(scale_factor=2)(leaves[1]))]
    torch.testing.assert_close(maps[0], maps[1])
    push = torch.randn(maps[1].shape, generator=torch.Generator().manual_seed(2)).double()
    slopes = [
        torch.autograd.grad(out, [leaf, *net.parameters()], push)
        for out, leaf, net in zip(maps, leaves, (ours, theirs), strict=True)
    ]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


def test_gives_maps_channels_last() -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert DoublingConv(3, 5)(x).is_contiguous(memory_format=torch.channels_last)


def test_weights_begin_as_a_convolutions() -> None:
    drawn = []
    for make in (lambda: DoublingConv(3, 5), lambda: nn.Conv2d(3, 5, 3, padding=1)):
        with torch.random.fork_rng():
            torch.manual_seed(4)
            drawn.append(make().state_dict())
    assert all(torch.equal(a, b) for a, b in zip(drawn[0].values(), drawn[1].values(), strict=True))
