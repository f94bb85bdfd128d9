"""A generator that is told the class: label embeddings through linear layers of noise, then the upsampling trunk.

Tran, Le, Le, Harandi, Tran, Phung: NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge
Distillation. 2024. arXiv:2310.00258.
"""

import torch
from torch import Tensor, nn

from .trunk import Trunk, Width

__all__ = ["LabelGenerator", "NoisyLayer"]


class NoisyLayer(nn.Module):
    """target (n,) -> (n, width): row i through the linear layer of its block, row i standing in block i // k.

    embeddings: (k, d), one row for each class. blocks: linear layers, >= 1; the last takes whatever follows. width:
    what they give. learned: whether the embeddings are parameters too.
    """

    def __init__(self, embeddings: Tensor, blocks: int, width: int, learned: bool = False) -> None:
        super().__init__()
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings: expected (classes, length), found {tuple(embeddings.shape)}")
        if blocks < 1:
            raise ValueError(f"blocks: expected an integer >= 1, found {blocks!r}")
        self.embeddings = nn.Parameter(embeddings.clone(), requires_grad=learned)
        self.norm = nn.BatchNorm1d(embeddings.shape[1])
        self.blocks = nn.ModuleList(nn.Linear(embeddings.shape[1], width) for _ in range(blocks))

    @torch.no_grad()
    def redraw(self, rng: torch.Generator) -> None:
        """The noise: all weights N(0, 1), biases 0."""
        for block in self.blocks:
            assert isinstance(block, nn.Linear)  # there are no others
            block.weight.normal_(0.0, 1.0, generator=rng)
            block.bias.zero_()

    def forward(self, target: Tensor) -> Tensor:
        k, last = len(self.embeddings), len(self.blocks) - 1
        e = self.norm(self.embeddings[target])
        parts = [e[i * k : (i + 1) * k if i < last else None] for i in range(last + 1)]
        return torch.cat([block(part) for block, part in zip(self.blocks, parts, strict=True)])


class LabelGenerator(nn.Module):
    """target (n,) -> pixels (n, c, h, w) in [low, high]; shape and width as for Trunk, noise the layer's length."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        embeddings: Tensor,
        blocks: int,
        noise: int = 1000,
        width: Width = "small",
        *,
        learned: bool = False,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.noisy = NoisyLayer(embeddings, blocks, noise, learned)
        self.trunk = Trunk(shape, noise, width, low=low, high=high)

    def forward(self, target: Tensor) -> Tensor:
        pixels: Tensor = self.trunk(self.noisy(target))
        return pixels
