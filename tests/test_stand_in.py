"""The device that is none finds what a GPU would refuse or wait for, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from .stand_in import DEVICE, MixedDevicesError, stand_in


def test_a_network_learns_there_as_here() -> None:
    torch.manual_seed(1)
    here = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(8, 1, 6, 6)

    def learned(net: nn.Module, x: Tensor) -> Tensor:
        optimiser = torch.optim.Adam(net.parameters(), fused=True)
        for _ in range(3):
            optimiser.zero_grad()
            net(x).square().mean().backward()
            optimiser.step()
        return torch.cat([value.flatten().float() for value in net.state_dict().values()])

    state = {key: value.clone() for key, value in here.state_dict().items()}
    expected = learned(here, x)
    with stand_in() as waits:
        here.load_state_dict(state)
        moved = here.to(DEVICE)
        there = x.to(DEVICE)
        waits.clear()
        found = learned(moved, there)
        assert found.device == DEVICE
        assert waits == []
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: float(x.mean()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.ones(3).to(DEVICE),
        lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
        lambda x: x.copy_(torch.ones(5)),
        lambda x: torch.ones(5).copy_(x),
        lambda x: x.multinomial(2),
        lambda x: (x > 0).long().bincount(),
        lambda x: x.repeat_interleave((x > 0).long()),
        lambda x: torch.linalg.inv(torch.diag(x) + 1.0),
    ],
)
def test_finds_what_waits(wait: Callable[[Tensor], object]) -> None:
    with stand_in() as waits:
        x = torch.rand(5, device=DEVICE)
        assert waits == []
        wait(x)
        assert waits


@pytest.mark.parametrize(
    "plain",
    [
        lambda x: x.mul_(2.0) + 1.0,
        lambda x: x[2:4].add_(1.0),
        lambda x: x[torch.arange(2, device=DEVICE)],
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.where(x > 0, x, torch.nan),
        lambda x: torch.ones(3).to(DEVICE, non_blocking=True),
        lambda x: torch.randn(4, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE),
        lambda x: torch.rand(4) + torch.ones(4),
        lambda x: x.repeat_interleave(3),
        lambda x: x.masked_fill((x > 0), 0.0),
    ],
)
def test_and_nothing_else(plain: Callable[[Tensor], Tensor]) -> None:
    with stand_in() as waits:
        plain(torch.rand(5, device=DEVICE))
        assert waits == []


def test_devices_do_not_mix() -> None:
    with stand_in():
        x = torch.rand(5, device=DEVICE)
        with pytest.raises(MixedDevicesError, match="add: tensors of the device and of the host"):
            x + torch.rand(5)
        with pytest.raises(MixedDevicesError, match="gather"):
            torch.rand(5).gather(0, torch.arange(5, device=DEVICE))
