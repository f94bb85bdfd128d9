"""The random views against loops over rows, by generator, and their gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfkd.augment import crop, flip, resized_crop, roll, roll_batch

X = torch.rand(7, 3, 6, 5, generator=torch.Generator().manual_seed(1))

View = Callable[[Tensor, torch.Generator], Tensor]

VIEWS: dict[str, View] = {
    "crop": lambda x, g: crop(x, g, 2),
    "flip": lambda x, g: flip(x, g),
    "roll": lambda x, g: roll(x, g, 2),
    "roll_batch": lambda x, g: roll_batch(x, g, 2),
    "resized_crop": lambda x, g: resized_crop(x, g),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offsets(n: int, most: int) -> list[list[int]]:
    """The documented draw: one (2, n) table of integers in [0, 2 most], downwards first."""
    table: list[list[int]] = torch.randint(2 * most + 1, (2, n), generator=generator()).tolist()
    return table


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("pad", [1, 4, 9])
def test_crop_equals_a_loop_over_pixels(pad: int, value: float) -> None:
    downs, rights = offsets(len(X), pad)
    slow = torch.full_like(X, value)
    for i, (down, right) in enumerate(zip(downs, rights, strict=True)):
        for row in range(6):
            for column in range(5):
                r, c = row + down - pad, column + right - pad
                if 0 <= r < 6 and 0 <= c < 5:
                    slow[i, :, row, column] = X[i, :, r, c]
    assert torch.equal(crop(X, generator(), pad, value), slow)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_roll_equals_torch_roll_row_by_row(most: int) -> None:
    downs, rights = offsets(len(X), most)
    moves = zip(downs, rights, strict=True)
    slow = [X[i].roll((most - down, most - right), (1, 2)) for i, (down, right) in enumerate(moves)]
    assert torch.equal(roll(X, generator(), most), torch.stack(slow))


@pytest.mark.parametrize("most", [1, 3, 8])
def test_roll_batch_is_one_roll_for_all(most: int) -> None:
    down, right = torch.randint(-most, most + 1, (2,), generator=generator()).tolist()
    assert torch.equal(roll_batch(X, generator(), most), X.roll((down, right), (2, 3)))


def test_flip_mirrors_the_rows_it_drew() -> None:
    mirrored = (torch.rand(len(X), generator=generator()) < 0.5).tolist()
    assert 0 < sum(mirrored) < len(X)
    slow = [
        torch.stack([x[:, :, c] for c in reversed(range(5))], dim=2) if m else x
        for x, m in zip(X, mirrored, strict=True)
    ]
    assert torch.equal(flip(X, generator()), torch.stack(slow))


@pytest.mark.parametrize(("probability", "expected"), [(0.0, X), (1.0, X.flip(3))])
def test_flip_at_its_extremes(probability: float, expected: Tensor) -> None:
    assert torch.equal(flip(X, generator(), probability), expected)


def test_resized_crop_of_everything_is_the_identity() -> None:
    torch.testing.assert_close(resized_crop(X, generator(), area=(1.0, 1.0), ratio=(1.0, 1.0)), X)


def test_resized_crop_equals_interpolation_by_hand() -> None:
    """Bilinear values at the centres of h x w cells that fill the rectangle of the documented draw."""
    n, _, h, w = X.shape
    area, ratio = (0.25, 1.0), (0.75, 4 / 3)
    draws = torch.rand(4, n, generator=generator()).tolist()
    found = resized_crop(X, generator(), area, ratio)
    for i in range(n):
        share = area[0] + (area[1] - area[0]) * draws[0][i]
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** draws[1][i]
        width, height = min(1.0, (share * aspect) ** 0.5), min(1.0, (share / aspect) ** 0.5)
        left, top = (1 - width) * draws[2][i] * w, (1 - height) * draws[3][i] * h
        for row in range(h):
            for column in range(w):
                y, x = top + (row + 0.5) * height - 0.5, left + (column + 0.5) * width - 0.5
                torch.testing.assert_close(found[i, :, row, column], bilinear(X[i], y, x), atol=1e-5, rtol=0.0)


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """image (c, h, w) at a point in pixels, edges repeated outside."""
    h, w = image.shape[1:]
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = min(int(y), h - 2), min(int(x), w - 2)
    b, a = y - top, x - left
    above = (1 - a) * image[:, top, left] + a * image[:, top, left + 1]
    below = (1 - a) * image[:, top + 1, left] + a * image[:, top + 1, left + 1]
    return (1 - b) * above + b * below


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_repeats_with_its_generator_and_no_other(view: View) -> None:
    before = torch.get_rng_state()
    first = view(X, generator(3))
    assert torch.equal(first, view(X, generator(3)))
    assert not torch.equal(first, view(X, generator(4)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_gradient_equals_finite_differences(view: View) -> None:
    x = X[:2, :2].double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: view(x, generator(5)), (x,), atol=1e-5)
    assert torch.autograd.gradgradcheck(lambda x: view(x, generator(5)) ** 2, (x,), atol=1e-5)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_keeps_shape_type_and_input(view: View) -> None:
    kept = X.clone()
    for x in (X, X[:1], X.contiguous(memory_format=torch.channels_last)):
        seen = view(x, generator())
        assert (seen.shape, seen.dtype) == (x.shape, torch.float32)
    assert torch.equal(X, kept)


@pytest.mark.parametrize("name", ["crop", "flip", "roll"])
def test_moves_bytes_too(name: str) -> None:
    """A bank of uint8 images gets the same view as its pixels."""
    x = (X * 255).to(torch.uint8)
    assert torch.equal(VIEWS[name](x, generator()), VIEWS[name](x.float(), generator()).to(torch.uint8))


@pytest.mark.parametrize("name", ["crop", "roll", "resized_crop", "flip"])
def test_draws_each_image_on_its_own(name: str) -> None:
    same = X[:1].expand(64, -1, -1, -1)
    seen = VIEWS[name](same, generator())
    assert len({tuple(row.flatten().tolist()) for row in seen}) > 1


def test_nothing_to_move_changes_nothing() -> None:
    for view in (crop(X, generator(), 0), roll(X, generator(), 0), roll_batch(X, generator(), 0)):
        assert torch.equal(view, X)


def test_offsets_are_uniform() -> None:
    """n = 20 000 draws of 5 places: a share is off by 0.02 with probability <= 5 * 2 exp(-2 n 0.02^2) = 1.2e-6.

    The fault it would catch: a border place left out (a share of 0 or 1/4).
    """
    spot = torch.zeros(20_000, 1, 1, 5)
    spot[..., 2] = 1.0
    shares = roll(spot, generator(), 2).mean(dim=(0, 1, 2))
    assert (shares - 0.2).abs().max() < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop(X, generator(), -1), "pad: expected an integer >= 0, found -1"),
        (lambda: roll(X, generator(), -2), "most: expected an integer >= 0, found -2"),
        (lambda: flip(X, generator(), 1.5), r"probability: expected a number in \[0, 1\], found 1.5"),
        (
            lambda: resized_crop(X, generator(), (0.5, 0.2)),
            r"area: expected 0 < least <= most <= 1, found \(0.5, 0.2\)",
        ),
        (lambda: resized_crop(X, generator(), ratio=(0.0, 1.0)), "ratio: expected 0 < least <= most"),
    ],
)
def test_refuses_what_is_out_of_range(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_never_waits_for_the_gpu(view: View) -> None:
    x = X.to("cuda").requires_grad_(True)
    g = torch.Generator(device="cuda").manual_seed(0)
    view(x, g).sum().backward()  # what loads lazily is loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        view(x, g).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None
