"""Views of single images: where they may come from, whose generator decides, gradients back to the pixels."""

import pytest
import torch
from torch import Tensor

from dfkd.types import InputSpec
from samplers.ingredients import View, cropped, resized

SPEC = InputSpec((1, 16, 16), 10, -1.0, 2.0)


def images(n: int = 40) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(3))


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("pad", "border"), [(None, 2), (3, 3), (0, 0)])
def test_a_crop_is_a_window_of_the_image_with_its_border(pad: int | None, border: int) -> None:
    x = images()
    wide = torch.nn.functional.pad(x, (border,) * 4, value=-1.0)
    shown = cropped(rng(), SPEC, pad, mirror=True)(x)
    found = set()
    for row in range(40):
        places = {
            (i, j, mirrored)
            for i in range(2 * border + 1)
            for j in range(2 * border + 1)
            for mirrored in (False, True)
            if torch.equal(wide[row, :, i : i + 16, j : j + 16].flip(2) if mirrored else
                           wide[row, :, i : i + 16, j : j + 16], shown[row])
        }  # fmt: skip
        assert len(places) == 1
        found |= places
    assert {mirrored for *_, mirrored in found} == {False, True}
    assert len(found) > (10 if border else 1)
    plain = cropped(rng(), SPEC, 0, mirror=False)(x)
    assert torch.equal(plain, x)


def test_a_resized_view_shows_at_least_its_share() -> None:
    ramp = torch.linspace(0, 1, 16).expand(400, 1, 16, 16)
    spread = resized(rng(), 0.25, mirror=False)(ramp)
    widths = (spread.amax((1, 2, 3)) - spread.amin((1, 2, 3))) / 1.0
    # a rectangle of a quarter of the area is at least sqrt(0.25 * 0.75) = 0.43 of the side wide
    assert widths.min() > 0.35
    assert widths.min() < 0.6
    assert widths.max() > 0.95
    assert torch.equal(resized(rng(), 1.0, mirror=False)(ramp), ramp)
    mirrored = resized(rng(), 1.0, mirror=True)(ramp)[:, 0, 0, 0]
    assert set(mirrored.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind", ["cropped", "resized"])
def test_views_repeat_for_their_generator_and_let_gradients_through(kind: str) -> None:
    def make(seed: int) -> View:
        return cropped(rng(seed), SPEC, 2, True) if kind == "cropped" else resized(rng(seed), 0.3, True)

    x, before = images().requires_grad_(True), torch.get_rng_state()
    one = make(1)(x)
    assert torch.equal(one, make(1)(x))
    assert not torch.equal(one, make(2)(x))
    assert torch.equal(before, torch.get_rng_state())
    view = make(1)
    assert not torch.equal(view(x), view(x))  # each step has views of its own
    (slope,) = torch.autograd.grad(one.sum(), x)
    assert slope.abs().sum() > 0.0
    assert one.shape == x.shape
