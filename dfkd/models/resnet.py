"""ResNet-18 and ResNet-34 for small images: a 3x3 stem and no pooling in front of the four stages.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. 2015. arXiv:1512.03385, the first two columns of
table 1. Changed: stem of stride 1 without max pooling, as data-free distillation on CIFAR does.
"""

import torch
from torch import Tensor, nn

from dfkd.types import InputSpec

__all__ = ["ResNet", "resnet"]

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu_(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """stages: residual blocks in each of the four stages. width: maps of the first, doubled from stage to stage."""

    def __init__(self, spec: InputSpec, stages: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1, stages[0])
        self.layer2 = _stage(width, 2 * width, 2, stages[1])
        self.layer3 = _stage(2 * width, 4 * width, 2, stages[2])
        self.layer4 = _stage(4 * width, 8 * width, 2, stages[3])
        self.linear = nn.Linear(8 * width, spec.num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(before: int, after: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(before, after, stride), *(_Block(after, after, 1) for _ in range(blocks - 1)))


def resnet(spec: InputSpec, *, depth: int, width: int = 64) -> ResNet:
    """width: maps of the first stage, >= 1; 64 as published."""
    if depth not in STAGES:
        raise ValueError(f"depth: expected one of {sorted(STAGES)}, found {depth!r}")
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width: expected an integer >= 1, found {width!r}")
    return ResNet(spec, STAGES[depth], width)
