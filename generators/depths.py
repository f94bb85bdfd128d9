"""A trunk cut open: the maps inside it, and the image that its later layers make of such maps.

Yu, Chen, Han, Jiang: Data-Free Knowledge Distillation via Feature Exchange and Activation Region Constraint. 2023.
doi:10.1109/CVPR52729.2023.02324.
"""

from torch import Tensor, nn

from .trunk import Trunk

__all__ = ["DEPTHS", "image_from", "maps_of"]

DEPTHS = 3
"""Places where a trunk is cut: after its first BatchNorm, after its first block, after its second."""


def _pieces(trunk: Trunk) -> list[nn.Sequential]:
    """The body's layers between two cuts: up to the first BatchNorm, then up to each activation."""
    pieces: list[nn.Sequential] = []
    begin = 0
    for end, layer in enumerate(trunk.body, start=1):
        if isinstance(layer, nn.LeakyReLU) or (not pieces and isinstance(layer, nn.BatchNorm2d)):
            pieces.append(trunk.body[begin:end])
            begin = end
    assert len(pieces) == DEPTHS
    assert begin == len(trunk.body)
    return pieces


def maps_of(trunk: Trunk, z: Tensor) -> tuple[list[Tensor], Tensor]:
    """z (n, latent) -> the maps at each depth, (n, channels, side, side), and the image that the trunk makes of z."""
    maps, inner = [], trunk.planted(z)
    for piece in _pieces(trunk):
        inner = piece(inner)
        maps.append(inner)
    return maps, trunk.pixels(trunk.head(inner))


def image_from(trunk: Trunk, maps: Tensor, depth: int) -> Tensor:
    """Maps as they are at `depth`, 0 to 2 -> pixels (n, c, h, w), by the layers behind it."""
    if not 0 <= depth < DEPTHS:
        raise ValueError(f"depth: expected an integer from 0 to {DEPTHS - 1}, found {depth!r}")
    for piece in _pieces(trunk)[depth + 1 :]:
        maps = piece(maps)
    return trunk.pixels(trunk.head(maps))
