"""Normalisation as a first layer: its arithmetic, its names, what it refuses."""

import pytest
import torch
from torch import nn

from dfkd.models.normalise import NORMALISATIONS, Normalisation, Normalised, resolve
from dfkd.types import InputSpec

RGB = InputSpec((3, 4, 4), 10)


def test_equals_its_definition_channel_by_channel() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = Normalised(nn.Identity(), mean, std)(x)
    for c in range(3):
        torch.testing.assert_close(found[:, c], (x[:, c] - mean[c]) / std[c])


def test_keeps_mode_and_names_of_what_it_wraps() -> None:
    module = Normalised(nn.Sequential(nn.Dropout()).eval(), (0.5,), (0.5,))
    assert not module.training
    assert not module.inner.training
    assert set(module.state_dict()) == {"mean", "std"}
    assert "mean=(0.5,)" in repr(module)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_named_ones_fit_their_pixels(name: str) -> None:
    mean, std = NORMALISATIONS[name]
    assert resolve(name, InputSpec((len(mean), 4, 4), 10)) == (mean, std)
    assert all(0.0 < value < 1.0 for value in mean + std)


@pytest.mark.parametrize(
    ("normalise", "spec", "message"),
    [
        ("imagnet", RGB, "normalise: unknown 'imagnet'; the nearest is 'imagenet'"),
        ("mnist", RGB, "normalise: expected 3 numbers for mean and for std, one per channel, found 1 and 1"),
        (((0.5,) * 3, (0.5, 0.0, 0.5)), RGB, "normalise: expected every std > 0"),
        (((0.5,) * 3, (0.5, float("nan"), 0.5)), RGB, "normalise: expected every std > 0"),
        ((0.5, 0.5), RGB, r"normalise: expected one of cifar10, .*, or \(mean, std\), found \(0.5, 0.5\)"),
        (3, RGB, r"normalise: expected one of cifar10, .*, or \(mean, std\), found 3"),
        ("cifar10", InputSpec((3, 4, 4), 10, -1.0, 1.0), r"cifar10 is for pixels in \[0, 1\], found \[-1.0, 1.0\]"),
    ],
)
def test_refuses_what_does_not_fit(normalise: Normalisation, spec: InputSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(normalise, spec)
