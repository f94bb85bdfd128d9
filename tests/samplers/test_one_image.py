"""One image: where its crops lie, what they show pixel by pixel, and how their colours change."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dfkd.interfaces import sources
from dfkd.problem import Problem
from dfkd.rng import Stream
from samplers import Balanced, OneImage
from samplers.one_image import rectangles

MakeProblem = Callable[..., Problem]

PLAIN: dict[str, Any] = {"rotate": 0.0, "shear": 0.0, "jitter": 0.0, "flip": False}
H, W = 90, 120


def save(folder: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(folder / "picture.png")
    return str(folder / "picture.png")


@pytest.fixture
def ramp(tmp_path: Path) -> str:
    """Red is where a pixel is along the width, green along the height, both 0 to 1 from edge to edge."""
    x, y = np.meshgrid((np.arange(W) + 0.5) / W, (np.arange(H) + 0.5) / H)
    return save(tmp_path, np.stack([255 * x, 255 * y, 0 * x], axis=2).round().astype(np.uint8))


def draw(sampler: OneImage, problem: Problem, n: int, seed: int = 3) -> Tensor:
    return sampler.draw(sampler.init(problem, seed), problem, n).x


# -- crops ---------------------------------------------------------------------------------------------------------


def test_rectangles_lie_in_a_part_of_the_image_and_have_their_area() -> None:
    """20 000 areas: their distribution is over 0.02 off with probability 2.3e-7."""
    size, part, area = (300, 500), 0.5, (1 / 500, 0.4)
    left, top, wide, high = rectangles(20_000, size, part, area, torch.Generator().manual_seed(1)).double().unbind(1)
    assert left.min() >= 0.0
    assert top.min() >= 0.0
    assert (left + wide).max() <= 500.001
    assert (top + high).max() <= 300.001
    assert wide.max() <= 250.0
    assert high.max() <= 150.0
    share = (wide * high / (250 * 150)).sort().values
    assert share[0] >= area[0] * 0.999
    assert share[-1] <= area[1] * 1.001
    expected = (share - area[0]) / (area[1] - area[0])
    assert (torch.arange(20_000) / 20_000 - expected).abs().max() < 0.02
    ratio = wide / high
    assert ratio.min() >= 0.749
    assert ratio.max() <= 1.334
    assert abs(float(ratio.log().mean())) < 0.288 * 2 * 0.02
    assert abs(float((left + wide / 2).mean()) - 250) < 0.02 * 500
    assert left.min() < 5.0  # the edges are reached
    assert (left + wide).max() > 495.0


def test_large_areas_are_cut_to_the_part() -> None:
    _, _, wide, high = rectangles(5000, (100, 300), 0.5, (0.9, 1.0), torch.Generator().manual_seed(1)).unbind(1)
    assert high.max() <= 50.0
    assert wide.max() <= 150.0
    assert (high == 50.0).double().mean() > 0.9  # 3/4 to 4/3 as wide as high does not fit
    assert (wide / high).max() < 3.0


def slow_places(box: list[float], u: list[float], h: int, w: int, sampler: OneImage) -> list[tuple[float, float]]:
    """Where each pixel looks: mirrored, turned, sheared, then as a square of sqrt(2) laid over the rectangle."""
    turn, shear = math.radians(sampler.rotate) * (2 * u[0] - 1), math.radians(sampler.shear) * (2 * u[1] - 1)
    found = []
    for i in range(h):
        for j in range(w):
            x, y = j + 0.5 - w / 2, i + 0.5 - h / 2
            if sampler.flip and u[2] < 0.5:
                x = -x
            x, y = math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y
            x += math.tan(shear) * y
            left, top, wide, high = box
            found.append((left + wide * (0.5 + x / (math.sqrt(2) * w)), top + high * (0.5 + y / (math.sqrt(2) * h))))
    return found


@pytest.mark.parametrize("settings", [PLAIN, {"jitter": 0.0}, {**PLAIN, "flip": True}, {**PLAIN, "shear": 40.0}])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 9, 14)])
def test_shows_what_is_there(
    settings: dict[str, Any], shape: tuple[int, int, int], ramp: str, make_problem: MakeProblem
) -> None:
    problem = make_problem(shape=shape)
    sampler = OneImage(image=ramp, **settings)
    x = draw(sampler, problem, 12)
    twin = Stream(3).advance()
    boxes = rectangles(12, (H, W), 0.5, sampler.area, twin).tolist()
    u = torch.rand(3, 12, 1, 1, generator=twin).flatten(1).T.tolist()
    for image, box, chance in zip(x, boxes, u, strict=True):
        places = torch.tensor(slow_places(box, chance, *shape[1:], sampler)).T.view(2, *shape[1:])
        # beyond the border is the border; a level's pixels at the border stand for up to one of them
        inside = (places[0] > 8) & (places[0] < W - 8) & (places[1] > 8) & (places[1] < H - 8)
        expected = places / torch.tensor([W, H]).view(2, 1, 1)
        assert inside.any()
        assert (image[:2] - expected).abs()[:, inside].max() < 0.006  # a level of 256, and rounding of smaller copies
        assert image[2].max() == 0.0
        assert (image[:2] - expected.clamp(0, 1)).abs().max() < 0.06


def test_what_is_larger_than_a_pixel_is_averaged(tmp_path: Path, make_problem: MakeProblem) -> None:
    """A fine check pattern is grey from afar."""
    board = (255 * (np.indices((400, 400)).sum(axis=0) % 2)).astype(np.uint8)
    x = draw(OneImage(save(tmp_path, board), part=1.0, area=(0.8, 1.0), **PLAIN), make_problem(), 20)
    assert (x - 0.5).abs().max() < 0.02
    near = draw(OneImage(save(tmp_path, board), part=0.05, area=(0.1, 0.1), **PLAIN), make_problem(), 20)
    assert float(near.std()) > 0.12


def test_small_crops_are_smooth(ramp: str, make_problem: MakeProblem) -> None:
    x = draw(OneImage(ramp, area=(1 / 500, 1 / 500), **PLAIN), make_problem(shape=(3, 16, 16)), 50)
    assert x.diff(dim=3).abs().max() < 3 / 255


# -- colours -------------------------------------------------------------------------------------------------------

ONLY: dict[str, Any] = {
    **PLAIN,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "jitter": 1.0,
    "area": (1.0, 1.0),
    "part": 1.0,
}
LUMA = torch.tensor([0.299, 0.587, 0.114])


@pytest.fixture
def colourful(tmp_path: Path) -> str:
    pixels = np.random.default_rng(3).integers(90, 160, (3, 3, 3)).repeat(20, axis=0).repeat(20, axis=1)
    return save(tmp_path, pixels.astype(np.uint8))


def changed(image: str, problem: Problem, **settings: float) -> tuple[Tensor, Tensor]:
    """The same crops without and with a change of colour, 200 rows."""
    return (draw(OneImage(image, **{**ONLY, **extra}), problem, 200) for extra in ({}, settings))  # type: ignore[return-value]


def test_brightness_is_a_factor(colourful: str, make_problem: MakeProblem) -> None:
    before, after = changed(colourful, make_problem(shape=(3, 8, 8)), brightness=0.4)
    factor = (after / before).flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), atol=1e-4, rtol=0.0)
    assert 0.6 <= float(factor.min()) < 0.64  # of 200 values in [0.6, 1.4] none is in a twentieth of it: 4e-5
    assert 1.36 < float(factor.max()) <= 1.4001


def test_contrast_keeps_the_mean_brightness(colourful: str, make_problem: MakeProblem) -> None:
    before, after = changed(colourful, make_problem(shape=(3, 8, 8)), contrast=0.4)
    means = [torch.einsum("nchw,c->nhw", x, LUMA).mean(dim=(1, 2)) for x in (before, after)]
    torch.testing.assert_close(means[0], means[1], atol=1e-4, rtol=0.0)
    factor = after.std(dim=(2, 3)) / before.std(dim=(2, 3))
    assert 0.6 - 1e-3 <= float(factor.min()) < 0.64
    assert 1.36 < float(factor.max()) <= 1.4 + 1e-3


def test_saturation_keeps_the_brightness_of_each_pixel(colourful: str, make_problem: MakeProblem) -> None:
    before, after = changed(colourful, make_problem(shape=(3, 8, 8)), saturation=0.4)
    grey, same = (torch.einsum("nchw,c->nhw", x, LUMA)[:, None] for x in (before, after))
    torch.testing.assert_close(grey, same, atol=1e-4, rtol=0.0)
    factor = (after - same).abs().mean(dim=(1, 2, 3)) / (before - grey).abs().mean(dim=(1, 2, 3))
    assert 0.6 - 1e-3 <= float(factor.min()) < 0.64
    assert 1.36 < float(factor.max()) <= 1.4 + 1e-3


def test_changes_follow_one_another(colourful: str, make_problem: MakeProblem) -> None:
    """Brightness, then contrast about the mean brightness of that, then saturation, pixel by pixel."""
    problem = make_problem(shape=(3, 8, 8))
    most = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4}
    before, after = changed(colourful, problem, **most)
    twin = Stream(3).advance()
    rectangles(200, (60, 60), 1.0, (1.0, 1.0), twin)
    torch.rand(3, 200, 1, 1, generator=twin)
    u = (2 * torch.rand(5, 200, 1, 1, generator=twin) - 1)[:4].flatten(1)
    for row in range(0, 200, 20):
        bright, strong, vivid = (1 + share * float(u[i, row]) for i, share in enumerate(most.values()))
        x = before[row] * bright
        x = strong * x + (1 - strong) * torch.einsum("chw,c->hw", x, LUMA).mean()
        x = vivid * x + (1 - vivid) * torch.einsum("chw,c->hw", x, LUMA)
        torch.testing.assert_close(after[row], x.clamp(0, 1), atol=1e-4, rtol=0.0)


def test_hue_turns_about_grey(colourful: str, tmp_path: Path, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(3, 8, 8))
    before, after = changed(colourful, problem, hue=0.1)
    grey = before.mean(dim=1, keepdim=True)
    torch.testing.assert_close(after.mean(dim=1, keepdim=True), grey, atol=1e-4, rtol=0.0)
    a, b = before - grey, after - grey
    cosine = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1), atol=1e-4, rtol=0.0)
    turn = cosine.clamp(-1, 1).arccos().median(dim=1).values.median(dim=1).values / (2 * math.pi)
    assert 0.09 < float(turn.max()) <= 0.1005
    (tmp_path / "grey").mkdir()
    before, after = changed(save(tmp_path / "grey", np.full((30, 30), 99, dtype=np.uint8)), problem, hue=0.5)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0.0)


def test_some_rows_keep_their_colours(tmp_path: Path, make_problem: MakeProblem) -> None:
    """5000 rows: the share is over 0.04 off with probability 2 exp(-16) = 2.3e-7."""
    image = save(tmp_path, np.full((40, 40), 102, dtype=np.uint8))
    for share in (0.0, 0.3, 1.0):
        x = draw(OneImage(image, jitter=share), make_problem(), 5000)
        assert abs(float(((x - 0.4).abs().amax(dim=(1, 2, 3)) > 1e-5).double().mean()) - share) < 0.04


# -- what it reads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["china", "flower"])
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_that_are_there(image: str, channels: int, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(channels, 12, 12), low=-1.0, high=2.0)
    x = draw(OneImage(image), problem, 100)
    assert float(x.std()) > 0.3
    assert x.min() >= -1.0
    assert x.max() <= 2.0
    assert sources(Balanced(OneImage(image))) == [image]


def test_a_grey_file_serves_a_teacher_of_colours(tmp_path: Path, make_problem: MakeProblem) -> None:
    image = save(tmp_path, np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8))
    x = draw(OneImage(image, jitter=0.0), make_problem(shape=(3, 8, 8)), 5)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])


def test_names_what_it_cannot_use(tmp_path: Path, make_problem: MakeProblem) -> None:
    (tmp_path / "text.png").write_text("no picture")
    small = save(tmp_path, np.zeros((15, 40), dtype=np.uint8))
    cases = [
        (str(tmp_path / "text.png"), "image: .*text.png is not a readable image"),
        (str(tmp_path), "image: expected one image file, found the folder"),
        ("nowhere/at_all.png", "image: no such file: 'nowhere/at_all.png'"),
        ("chinna", "image: unknown 'chinna', and no such file; the nearest is 'china'"),
        (
            small,
            r"image: expected at least 16x16 pixels, of which a part of 0.5 .* 8x8, found 15x40 in '.*picture.png'",
        ),
    ]
    for image, message in cases:
        with pytest.raises(ValueError, match=message):
            OneImage(image).init(make_problem(), 1)
    with pytest.raises(ValueError, match="image: expected a teacher of 1 or 3 channels, found 2"):
        OneImage().init(make_problem(shape=(2, 8, 8)), 1)


def test_refuses_the_state_of_another_image(ramp: str, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(3, 8, 8))
    saved = OneImage(ramp).init(problem, 1).state_dict()
    with pytest.raises(ValueError, match=r"state: expected an image of \(427, 640\) pixels, found one of \(90, 120\)"):
        OneImage().init(problem, 1).load_state_dict(saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": ""}, "image: expected an image file, china or flower, found ''"),
        ({"part": 0.0}, r"part: expected a share of the image's sides in \(0, 1\], found 0.0"),
        ({"area": (0.0, 1.0)}, r"area: expected two numbers, 1e-06 <= least <= most <= 1, found \(0.0, 1.0\)"),
        ({"area": (0.5, 0.1)}, "area: expected two numbers"),
        ({"rotate": -1.0}, "rotate: expected a number >= 0, found -1.0"),
        ({"shear": 90.0}, "shear: expected degrees below 90, found 90.0"),
        ({"brightness": 1.5}, r"brightness: expected a number in \[0, 1\], found 1.5"),
        ({"hue": 0.6}, r"hue: expected a number in \[0, 0.5\], found 0.6"),
        ({"jitter": -0.1}, r"jitter: expected a number in \[0, 1\]"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_a_wrong_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneImage(**settings)
