"""The CIFAR ResNet: three stages of 16, 32 and 64 maps, depth 6n + 2, shortcuts without parameters.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. 2015. arXiv:1512.03385, section 4.2, option A.
Module names are those of the widely used weights: conv1, bn1, layer1.0.conv1, ..., linear.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.types import InputSpec

from .norm import norm2d

__all__ = ["CifarResNet", "resnet_cifar"]


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm2d(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = norm2d(norm, after)
        self.stride, self.added = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu_(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Option A: every stride-th pixel, and maps of zeros on both sides of the channels."""
        if self.stride == 1 and self.added == 0:
            return x
        front = self.added // 2
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.added - front))


class CifarResNet(nn.Module):
    """blocks: residual blocks in each of the three stages. norm: a word of NORMS, for what is called bn."""

    def __init__(self, spec: InputSpec, blocks: int, norm: str = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.channels, 16, 3, padding=1, bias=False)
        self.bn1 = norm2d(norm, 16)
        self.layer1 = _stage(16, 16, 1, blocks, norm)
        self.layer2 = _stage(16, 32, 2, blocks, norm)
        self.layer3 = _stage(32, 64, 2, blocks, norm)
        self.linear = nn.Linear(64, spec.num_classes)
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(before: int, after: int, stride: int, blocks: int, norm: str) -> nn.Sequential:
    first = _Block(before, after, stride, norm)
    return nn.Sequential(first, *(_Block(after, after, 1, norm) for _ in range(blocks - 1)))


def resnet_cifar(spec: InputSpec, *, depth: int, norm: str = "batch") -> CifarResNet:
    """depth: 6n + 2 layers: 8, 20, 32, 44, 56, 110. norm: batch or group (one group)."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth: expected 6n + 2 (20, 32, 44, 56, 110), found {depth!r}")
    return CifarResNet(spec, (depth - 2) // 6, norm)
