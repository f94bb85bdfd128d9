"""The random views against loops over rows, by generator, and their gradients."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from dfkd.augment import crop, flip, flip_vertical, jitter, resized_crop, roll, roll_batch, rotate

X = torch.rand(7, 3, 6, 5, generator=torch.Generator().manual_seed(1))

View = Callable[[Tensor, torch.Generator], Tensor]

VIEWS: dict[str, View] = {
    "crop": lambda x, g: crop(x, g, 2),
    "flip": lambda x, g: flip(x, g),
    "roll": lambda x, g: roll(x, g, 2),
    "roll_batch": lambda x, g: roll_batch(x, g, 2),
    "resized_crop": lambda x, g: resized_crop(x, g),
    "flip_vertical": lambda x, g: flip_vertical(x, g),
    "rotate": lambda x, g: rotate(x, g, 20.0),
    # a box so wide that no pixel is cut, where slopes are one-sided
    "jitter": lambda x, g: jitter(x, g, 0.2, 0.2, 0.2, 0.2, box=(-9.0, 10.0)),
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


def test_flip_vertical_turns_the_rows_it_drew_upside_down() -> None:
    mirrored = (torch.rand(len(X), generator=generator()) < 0.5).tolist()
    assert 0 < sum(mirrored) < len(X)
    slow = [functional.vflip(x) if m else x for x, m in zip(X, mirrored, strict=True)]
    assert torch.equal(flip_vertical(X, generator()), torch.stack(slow))
    assert torch.equal(flip_vertical(X, generator(), 1.0)[:, :, 0], X[:, :, -1])


@pytest.mark.parametrize("value", [0.0, 0.4])
@pytest.mark.parametrize("degrees", [5.0, 20.0, 180.0])
def test_rotate_equals_torchvision_image_by_image(degrees: float, value: float) -> None:
    angles = degrees * (2 * torch.rand(len(X), generator=generator()) - 1)
    slow = [
        # theirs blends what lies outside twice where it is given a colour, so black is moved to where it should be
        functional.rotate(x - value, angle, InterpolationMode.BILINEAR) + value
        for x, angle in zip(X, angles.tolist(), strict=True)
    ]
    torch.testing.assert_close(rotate(X, generator(), degrees, value), torch.stack(slow), atol=2e-5, rtol=0.0)


def test_rotate_by_no_degrees_is_the_identity_and_draws_nothing() -> None:
    g = generator()
    assert rotate(X, g, 0.0) is X
    assert torch.equal(g.get_state(), generator().get_state())
    torch.testing.assert_close(rotate(X, g, 1e-6), X, atol=1e-5, rtol=0.0)


def drawn_factors(settings: tuple[float, float, float, float], n: int) -> list[list[float]]:
    """The documented draw: one (4, n) table in [0, 1), of brightness, contrast, saturation and hue."""
    u = torch.rand(4, n, generator=generator()).double()
    ends = [(max(0.0, 1 - s), 1 + s) for s in settings[:3]] + [(-settings[3], settings[3])]
    return [(low + (high - low) * row).tolist() for (low, high), row in zip(ends, u, strict=True)]


JITTERS = [(0.2, 0.2, 0.2, 0.2), (0.9, 0.0, 0.0, 0.0), (0.0, 1.5, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 0.5)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", JITTERS)
def test_jitter_equals_torchvision_image_by_image(settings: tuple[float, float, float, float], channels: int) -> None:
    x = X[:, :channels]
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    slow = x.clone()
    for change, factors in zip(changes, drawn_factors(settings, len(x)), strict=True):
        slow = torch.stack([change(row, factor) for row, factor in zip(slow, factors, strict=True)])
    torch.testing.assert_close(jitter(x, generator(), *settings), slow, atol=1e-5, rtol=0.0)


def test_jitter_of_nothing_is_the_identity_and_draws_nothing() -> None:
    g = generator()
    assert jitter(X, g) is X
    assert torch.equal(g.get_state(), generator().get_state())
    torch.testing.assert_close(jitter(X, g, 1e-7, 1e-7, 1e-7, 1e-7), X, atol=1e-5, rtol=0.0)


def test_jitter_changes_grey_images_in_brightness_and_contrast_alone() -> None:
    grey = X[:, :1]
    assert not torch.allclose(jitter(grey, generator(), brightness=0.2), grey)
    assert not torch.allclose(jitter(grey, generator(), contrast=0.2), grey)
    assert torch.equal(jitter(grey, generator(), saturation=0.2, hue=0.2), grey)
    flat = grey.expand(-1, 3, -1, -1)  # grey images in colours: their hue is none
    torch.testing.assert_close(jitter(flat, generator(), saturation=0.2, hue=0.2), flat, atol=1e-4, rtol=0.0)


def test_jitter_stays_in_its_box_and_knows_where_black_is() -> None:
    many = X.repeat(10, 1, 1, 1)
    seen = jitter(2 * many - 1, generator(), 0.9, 0.9, 0.9, 0.3, box=(-1.0, 1.0))
    assert seen.min() >= -1.0
    assert seen.max() <= 1.0
    assert (seen == 1.0).any()  # factors of up to 1.9 do leave it
    torch.testing.assert_close(seen, 2 * jitter(many, generator(), 0.9, 0.9, 0.9, 0.3) - 1, atol=1e-5, rtol=0.0)


def test_jitter_has_slopes_where_colours_are_none() -> None:
    for level in (0.0, 0.5, 1.0):
        x = torch.full((2, 3, 4, 4), level, requires_grad=True)
        (slope,) = torch.autograd.grad(jitter(x, generator(), 0.2, 0.2, 0.2, 0.2).sum(), x)
        assert slope.isfinite().all()


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
    x = X[:2, :, :4].double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: view(x, generator(5)), (x,), atol=1e-5)
    assert torch.autograd.gradgradcheck(lambda x: view(x, generator(5)) ** 2, (x,), atol=1e-5)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_keeps_shape_type_and_input(view: View) -> None:
    kept = X.clone()
    for x in (X, X[:1], X.contiguous(memory_format=torch.channels_last)):
        seen = view(x, generator())
        assert (seen.shape, seen.dtype) == (x.shape, torch.float32)
    assert torch.equal(X, kept)


@pytest.mark.parametrize("name", ["crop", "flip", "flip_vertical", "roll"])
def test_moves_bytes_too(name: str) -> None:
    """A bank of uint8 images gets the same view as its pixels."""
    x = (X * 255).to(torch.uint8)
    assert torch.equal(VIEWS[name](x, generator()), VIEWS[name](x.float(), generator()).to(torch.uint8))


@pytest.mark.parametrize("name", ["crop", "roll", "resized_crop", "flip", "flip_vertical", "rotate", "jitter"])
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
        (lambda: flip_vertical(X, generator(), -0.1), r"probability: expected a number in \[0, 1\], found -0.1"),
        (lambda: rotate(X, generator(), -1.0), "degrees: expected a number >= 0, found -1.0"),
        (lambda: rotate(X, generator(), math.nan), "degrees: expected a number >= 0, found nan"),
        (lambda: jitter(X, generator(), -0.1), "brightness: expected a number >= 0, found -0.1"),
        (lambda: jitter(X, generator(), saturation=math.inf), "saturation: expected a number >= 0, found inf"),
        (lambda: jitter(X, generator(), hue=0.6), r"hue: expected a number in \[0, 0.5\], found 0.6"),
        (lambda: jitter(X[:, :2], generator(), hue=0.1), "expected images of 1 or 3 channels, found 2"),
        (lambda: resized_crop(X, generator(), ratio=(0.0, 1.0)), "ratio: expected 0 < least <= most"),
    ],
)
def test_refuses_what_is_out_of_range(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_never_waits_for_the_gpu(view: View, no_waits: AbstractContextManager[None]) -> None:
    x = X.to("cuda").requires_grad_(True)
    g = torch.Generator(device="cuda").manual_seed(0)
    view(x, g).sum().backward()  # what loads lazily is loaded
    with no_waits:
        view(x, g).sum().backward()
    assert x.grad is not None
