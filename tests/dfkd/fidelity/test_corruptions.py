"""Corruptions: repeatable, stronger with severity, and each what its name says."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dfkd.fidelity import CORRUPTIONS, columns, corrupted, corrupted_column, parse_corruption

SHAPES = ((100, 1, 8, 8), (50, 3, 32, 32), (3, 3, 224, 224))


def pictures(shape: tuple[int, ...]) -> Tensor:
    """Noise on every scale from half the side to one pixel, so that every corruption has something to change."""
    n, c, h, w = shape
    rng = torch.Generator().manual_seed(0)
    side, x = 2, torch.zeros(shape)
    while side <= h:
        coarse = torch.rand(n, c, side, side, generator=rng)
        x = 0.6 * x + interpolate(coarse, size=(h, w), mode="bilinear")
        side *= 2
    return (x / x.amax() * 255).to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_is_repeatable_and_grows_with_severity(name: str, shape: tuple[int, ...]) -> None:
    x = pictures(shape)
    before = x.clone()
    distance = []
    for severity in range(1, 6):
        found = corrupted(x, name, severity, seed=0)
        assert found.dtype == torch.uint8
        assert found.shape == x.shape
        assert torch.equal(found, corrupted(x, name, severity, seed=0))
        distance.append(float((found.float() - x.float()).square().mean()))
    assert torch.equal(x, before)
    assert distance[0] > 0.0
    assert distance[4] > 1.2 * distance[0]
    assert sorted(distance) == pytest.approx(distance, rel=0.15)  # occlusions are at random places


def test_noise_has_its_standard_deviation_and_one_draw_per_pixel() -> None:
    """n = 65 536 normal values around mid-grey: the standard deviation is off by over 3 % with probability < 1e-15."""
    x = torch.full((64, 1, 32, 32), 128, dtype=torch.uint8)
    found = corrupted(x, "noise", 3, seed=0).float() - 128.0
    assert float(found.std()) / 255.0 == pytest.approx(0.12, rel=0.03)
    assert abs(float(found.mean())) < 1.0  # eight standard errors
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, corrupted(x, "noise", 3, seed=1).float() - 128.0)


def test_blur_of_a_point_is_the_gaussian() -> None:
    x = torch.zeros(1, 1, 15, 15, dtype=torch.uint8)
    x[0, 0, 7, 7] = 255
    found = corrupted(x, "blur", 5, seed=0)[0, 0].float() / 255.0  # sigma is one pixel
    expected = torch.tensor([[-0.5 * ((i - 7) ** 2 + (j - 7) ** 2) for j in range(15)] for i in range(15)]).exp()
    torch.testing.assert_close(found, expected / expected.sum(), atol=0.003, rtol=0.0)


def test_blur_does_not_mix_channels_or_darken_edges() -> None:
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    x[:, 1] = 200
    assert torch.equal(corrupted(x, "blur", 5, seed=0), x)


def test_contrast_keeps_the_mean_and_brightness_the_differences() -> None:
    x = torch.tensor([100, 140], dtype=torch.uint8).view(1, 1, 1, 2)
    assert corrupted(x, "contrast", 2, seed=0).flatten().tolist() == [110, 130]
    assert corrupted(x, "brightness", 2, seed=0).flatten().tolist() == [126, 166]  # 25.5 levels, to even


def test_pixelate_leaves_blocks_of_their_mean() -> None:
    x = torch.arange(0, 128, 2, dtype=torch.uint8).view(1, 1, 8, 8)  # even, so that no mean is a half
    found = corrupted(x, "pixelate", 3, seed=0)  # 8 pixels to 4
    blocks = x.float().view(4, 2, 4, 2).mean(dim=(1, 3))
    assert torch.equal(found[0, 0, ::2, ::2].float(), blocks)
    assert torch.equal(found[0, 0, 1::2, 1::2].float(), blocks)


def test_occlusion_is_one_grey_rectangle_per_image_at_its_own_place() -> None:
    x = torch.zeros(300, 3, 10, 10, dtype=torch.uint8)
    found = corrupted(x, "occlude", 3, seed=0)
    covered = found == 128
    assert bool((covered | (found == 0)).all())
    assert bool((covered.sum(dim=(1, 2, 3)) == 3 * 4 * 4).all())
    assert bool((covered == covered[:, :1]).all())  # all channels at once
    corners = {int(c[0].flatten().nonzero()[0]) for c in covered}
    assert len(corners) == 49  # 7 x 7 places; one is missed by 300 rows with probability below 49 (48 / 49)^300 = 0.1


def test_columns_and_their_names() -> None:
    column = columns.test_column(pictures((4, 1, 8, 8)), torch.arange(4))
    found = corrupted_column(column, "noise", 3, seed=0)
    assert (found.name, found.kind, found.y is column.y) == ("noise@3", "corrupted", True)
    assert parse_corruption("noise@3") == ("noise", 3)
    with pytest.raises(ValueError, match="corruption: unknown 'nose'; the nearest is 'noise'"):
        parse_corruption("nose@3")
    with pytest.raises(ValueError, match="expected blur@1 to blur@5, found 'blur@6'"):
        parse_corruption("blur@6")
    with pytest.raises(ValueError, match="severity: expected an integer from 1 to 5, found 0"):
        corrupted(column.x, "noise", 0, seed=0)
    with pytest.raises(ValueError, match=r"x: expected uint8 .*found torch.float32"):
        corrupted(column.x.float(), "noise", 1, seed=0)
