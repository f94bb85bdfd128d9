"""The convolution of doubled maps against doubling and convolving one after the other."""

import copy

import pytest
import torch
from torch import nn

from generators import doubling
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


def changed(conv: DoublingConv, how: str) -> None:
    """Other weights, by the ways that weights change in training, in averaging and in loading."""
    if how == "optimiser":
        optimiser = torch.optim.Adam(conv.parameters(), lr=0.1, fused=True)
        conv(torch.ones(1, 3, 2, 2)).square().sum().backward()
        optimiser.step()
    elif how == "average":
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.lerp_(torch.ones_like(parameter), 0.5)
    elif how == "load":
        conv.load_state_dict({key: value + 1.0 for key, value in conv.state_dict().items()})
    else:
        conv.weight = nn.Parameter(conv.weight.detach() + 1.0)


@pytest.mark.parametrize("how", ["optimiser", "average", "load", "other"])
def test_follows_its_weights_though_their_kernel_is_kept(how: str) -> None:
    conv, x = DoublingConv(3, 5), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = conv(x)
        assert torch.equal(conv(x), before)
    changed(conv, how)
    copied = copy.deepcopy(conv)
    with torch.no_grad():
        after = conv(x)
    assert not torch.allclose(after, before)
    # with a gradient nothing is kept
    torch.testing.assert_close(after, conv(x).detach(), rtol=0, atol=0)
    torch.testing.assert_close(after, copied(x).detach(), rtol=0, atol=0)


def test_normalised_weights_are_never_kept_too_long() -> None:
    conv = nn.utils.parametrizations.spectral_norm(DoublingConv(3, 5)).eval()
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = conv(x)
        dict(conv.named_parameters())["parametrizations.weight.original"].copy_(torch.ones(5, 3, 3, 3))
        assert not torch.allclose(conv(x), before)


def test_prepares_its_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, add = [], doubling._added

    def counted(weight: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return add(weight)

    monkeypatch.setattr(doubling, "_added", counted)
    conv, x = DoublingConv(3, 5), torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        for _ in range(3):
            conv(x)
    assert len(made) == 1
    conv(x)
    conv(x)
    assert len(made) == 3
