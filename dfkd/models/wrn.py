"""Wide residual network WRN-d-k: depth d = 6n + 4, k times as many maps, normalisation before each convolution.

Zagoruyko, Komodakis: Wide Residual Networks. 2016. arXiv:1605.07146. The basic block B(3, 3), with a 1x1 convolution
as shortcut where the number of maps changes.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.types import InputSpec

__all__ = ["WideResNet", "parse_wrn", "wrn"]


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = before == after and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        # where the number of maps changes, the shortcut too starts from the normalised maps
        kept = x if self.shortcut is None else self.shortcut(y)
        y = torch.relu_(self.bn2(self.conv1(y)))
        if self.dropout > 0.0:
            y = functional.dropout(y, self.dropout, self.training)
        added: Tensor = self.conv2(y)
        return added + kept


class WideResNet(nn.Module):
    """blocks: residual blocks per stage. widen: k. dropout: inside each block, in [0, 1)."""

    def __init__(self, spec: InputSpec, blocks: int, widen: int, dropout: float) -> None:
        super().__init__()
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(spec.channels, widths[0], 3, padding=1, bias=False)
        stages = []
        for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
            rest = (_Block(after, after, 1, dropout) for _ in range(blocks - 1))
            stages.append(nn.Sequential(_Block(before, after, stride, dropout), *rest))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], spec.num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(torch.relu_(self.bn(x)).mean(dim=(2, 3)))
        return logits


def wrn(spec: InputSpec, *, depth: int, widen: int, dropout: float = 0.0) -> WideResNet:
    """dropout: share of maps dropped between the convolutions of a block, in [0, 1)."""
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"wrn-{depth}-{widen}: expected depth 6n + 4 (10, 16, 22, 28, 40), found {depth}")
    if widen < 1:
        raise ValueError(f"wrn-{depth}-{widen}: expected a widening factor >= 1, found {widen}")
    if not isinstance(dropout, (int, float)) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: expected a number in [0, 1), found {dropout!r}")
    return WideResNet(spec, (depth - 4) // 6, widen, dropout)


def parse_wrn(name: str) -> tuple[int, int] | None:
    """(depth, widen) of wrn-16-1, wrn_40_2, WRN-28-10; None for another name."""
    match = re.fullmatch(r"wrn[-_](\d{1,4})[-_](\d{1,3})", name.lower())
    return (int(match[1]), int(match[2])) if match else None
