"""Small problems that every sampler can be tried on: a teacher and a student with BatchNorm, and no data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Probe, Problem
from dfkd.rng import initialised
from dfkd.types import InputSpec

MakeProblem = Callable[..., Problem]


class TinyNet(nn.Module):
    """(n, c, h, w) -> (n, k), with BatchNorm whose stored statistics are not the initial ones, and with dropout."""

    def __init__(self, spec: InputSpec, width: int, seed: int) -> None:
        super().__init__()
        with initialised(seed):
            self.body = nn.Sequential(
                nn.Conv2d(spec.channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, stride=2),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Dropout(0.5),
            )
            self.head = nn.Linear(4 * width, spec.num_classes)
            for _ in range(20):
                self.body(spec.low + spec.span * torch.rand(32, *spec.shape) ** 2)
        with torch.no_grad():  # sure of itself, as trained nets are; its last linear layer gives the logits
            self.head.weight.mul_(8.0)
            self.head.bias.mul_(8.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


class Fixed(nn.Module):
    """A teacher whose class is known: the brightness of the image, in k equal steps from low to high."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        self.centres: Tensor
        centres = spec.low + spec.span * (torch.arange(spec.num_classes) + 0.5) / spec.num_classes
        self.register_buffer("centres", centres)

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean(dim=(1, 2, 3))[:, None] - self.centres).abs() * 50.0


@pytest.fixture(scope="session")
def make_problem() -> MakeProblem:
    """make_problem(shape, num_classes, low, high, seed, banks, teacher, student_seed, device) -> Problem."""

    def make(
        shape: tuple[int, int, int] = (1, 8, 8),
        num_classes: int = 10,
        low: float = 0.0,
        high: float = 1.0,
        seed: int = 0,
        banks: Path | None = None,
        teacher: Callable[[InputSpec], nn.Module] | None = None,
        student_seed: int = 2,
        device: str = "cpu",
    ) -> Problem:
        spec = InputSpec(shape, num_classes, low, high)
        teacher_net = teacher(spec) if teacher is not None else TinyNet(spec, 6, seed=1)
        return Problem(
            Probe(teacher_net, spec, device=device),
            Probe(TinyNet(spec, 4, seed=student_seed), spec, device=device, name="student"),
            spec,
            torch.device(device),
            seed=seed,
            banks=banks,
        )

    return make


@pytest.fixture(scope="session")
def brightness() -> Callable[[InputSpec], nn.Module]:
    """The teacher whose class is the brightness of the image."""
    return Fixed


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 3x16x16 images of 10 classes: 40 to train on, 10 to test."""
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(
        path,
        x_train=rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8),
        y_train=np.arange(40) % 10,
        x_test=rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8),
        y_test=np.arange(10),
        classes=np.array([f"c{i}" for i in range(10)]),
    )
    return path
