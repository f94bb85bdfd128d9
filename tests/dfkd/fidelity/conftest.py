"""Two small BatchNorm networks that differ, and the 8x8 grey spec they share."""

import pytest
import torch
from torch import nn

from dfkd.problem import Probe
from dfkd.rng import initialised
from dfkd.types import InputSpec


def small_net(seed: int, batchnorm: bool = True) -> nn.Module:
    """1x8x8 -> 5 logits; its stored statistics are some, not the initial ones."""
    with initialised(seed):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4) if batchnorm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2),
            nn.BatchNorm2d(6) if batchnorm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 5),
        )
        with torch.no_grad():
            net.train()(torch.rand(64, 1, 8, 8))
    return net.eval()


@pytest.fixture
def spec() -> InputSpec:
    return InputSpec((1, 8, 8), 5)


@pytest.fixture
def teacher(spec: InputSpec) -> Probe:
    return Probe(small_net(0), spec)


@pytest.fixture
def student(spec: InputSpec) -> Probe:
    return Probe(small_net(1), spec, name="student")


@pytest.fixture
def plain(spec: InputSpec) -> Probe:
    """A teacher without BatchNorm."""
    return Probe(small_net(2, batchnorm=False), spec)
