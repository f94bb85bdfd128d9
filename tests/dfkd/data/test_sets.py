"""Bytes to pixels, and what an image set refuses."""

import pytest
import torch

from dfkd.data import ImageSet
from dfkd.types import InputSpec

X = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)


def test_pixels_fill_the_box() -> None:
    images = ImageSet(X)
    found = images.pixels(None, InputSpec((1, 8, 8), 2))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([value / 255 for value in range(256)]).reshape(4, 1, 8, 8))
    signed = images.pixels(None, InputSpec((1, 8, 8), 2, -1.0, 1.0))
    torch.testing.assert_close(signed, 2 * found - 1)
    assert (float(signed.min()), float(signed.max())) == (-1.0, 1.0)


def test_pixels_of_some_rows_in_their_order() -> None:
    spec, index = InputSpec((1, 8, 8), 2), torch.tensor([2, 0, 2])
    images = ImageSet(X, torch.arange(4))
    assert torch.equal(images.pixels(index, spec), images.pixels(None, spec)[index])
    assert torch.equal(images.pixels(slice(1, 3), spec), images.pixels(None, spec)[1:3])
    assert torch.equal(images.x, X)


def test_digest_sees_images_and_labels() -> None:
    changed = X.clone()
    changed[3, 0, 7, 7] = 0
    digests = [ImageSet(x, y).digest for x in (X, changed) for y in (None, torch.zeros(4).long(), torch.arange(4))]
    assert len(set(digests)) == 6
    assert ImageSet(X.clone(), torch.arange(4)).digest == digests[2]


def test_moves_whole() -> None:
    moved = ImageSet(X, torch.arange(4)).to("cpu")
    assert torch.equal(moved.x, X)
    assert ImageSet(X).to("cpu").y is None
    assert len(moved.first(2)) == 2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X.float(), None, r"x: expected uint8 \(n, c, h, w\), found torch.float32"),
        (X[0], None, r"x: expected uint8 \(n, c, h, w\), found torch.uint8 \(1, 8, 8\)"),
        (X, torch.arange(3), r"y: expected int64 of shape \(4,\), found torch.int64 of shape \(3,\)"),
        (X, torch.zeros(4), r"y: expected int64 of shape \(4,\), found torch.float32"),
    ],
)
def test_refuses_other_tensors(x: torch.Tensor, y: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(x, y)
