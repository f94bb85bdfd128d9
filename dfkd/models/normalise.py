"""Normalisation as a model's own first layer: the one place where a mean and a standard deviation are handled."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfkd.naming import unknown
from dfkd.types import InputSpec

__all__ = ["NORMALISATIONS", "Normalisation", "Normalised", "resolve"]

Normalisation = str | tuple[Sequence[float], Sequence[float]]
"""A name of NORMALISATIONS, or (mean, std), one number per channel, in pixels."""

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
}
"""(mean, std) per channel of pixels in [0, 1]."""


class Normalised(nn.Module):
    """Takes pixels and asks `inner` with (x - mean) / std; mean and std (c,) are saved with it."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.inner = module
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x - self.mean[:, None, None]) / self.std[:, None, None])
        return logits

    def extra_repr(self) -> str:
        return f"mean={tuple(self.mean.tolist())}, std={tuple(self.std.tolist())}"


def resolve(normalise: Normalisation, spec: InputSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation, one number per channel of the spec."""
    if isinstance(normalise, str):
        if normalise not in NORMALISATIONS:
            raise unknown("normalise", normalise, NORMALISATIONS)
        if (spec.low, spec.high) != (0.0, 1.0):
            raise ValueError(f"normalise: {normalise} is for pixels in [0, 1], found [{spec.low}, {spec.high}]")
        mean, std = NORMALISATIONS[normalise]
    else:
        mean, std = _pair(normalise)
    if len(mean) != spec.channels or len(std) != spec.channels:
        raise ValueError(
            f"normalise: expected {spec.channels} numbers for mean and for std, one per channel, "
            f"found {len(mean)} and {len(std)}"
        )
    if not all(value > 0.0 for value in std):
        raise ValueError(f"normalise: expected every std > 0, found {std!r}")
    return mean, std


def _pair(normalise: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        means, stds = normalise  # type: ignore[misc]  # the error below says what was expected
        return tuple(float(v) for v in means), tuple(float(v) for v in stds)  # type: ignore[has-type]
    except (TypeError, ValueError):
        names = ", ".join(NORMALISATIONS)
        raise ValueError(f"normalise: expected one of {names}, or (mean, std), found {normalise!r}") from None
