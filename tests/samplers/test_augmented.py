"""Augmented: each row changed in its own way, and nothing else said of it changed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dfkd import config
from dfkd.augment import crop, flip, flip_vertical, jitter, resized_crop, roll, rotate
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import derive
from samplers import Augmented, Pooled, Real, Smoothed, Uniform
from samplers.state import Stream

MakeProblem = Callable[..., Problem]


def test_every_row_is_a_window_of_its_image(make_problem: MakeProblem) -> None:
    problem = make_problem(low=-1.0, high=2.0)
    base = Real(limit=60)
    sampler = Augmented(base, crop=2)
    state = sampler.init(problem, 1)
    twin = base.init(problem, state.base.seed)
    x, source = sampler.draw(state, problem, 60).x, base.draw(twin, problem, 60).x
    wide = torch.nn.functional.pad(source, (2, 2, 2, 2), value=-1.0)  # black is the low end of the box
    places = [
        {(i, j) for i in range(5) for j in range(5) if torch.equal(wide[row, :, i : i + 8, j : j + 8], x[row])}
        for row in range(60)
    ]
    assert all(places)
    assert len(set.union(*places)) > 15  # one place for the whole batch would leave one or few


def test_flips_about_half_of_the_rows(make_problem: MakeProblem) -> None:
    """2000 rows: over 0.064 from a half with probability 2 exp(-2 * 2000 * 0.064^2) = 1.5e-7."""
    problem = make_problem()
    sampler = Augmented(Uniform(), crop=0, flip=True)
    state = sampler.init(problem, 1)
    twin = Uniform().init(problem, state.base.stream.seed)
    x, source = sampler.draw(state, problem, 2000).x, Uniform().draw(twin, problem, 2000).x
    same = (x == source).flatten(1).all(dim=1)
    mirrored = (x == source.flip(3)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert abs(float(mirrored.float().mean()) - 0.5) < 0.064


def test_rolls_each_row_around_its_edges(make_problem: MakeProblem) -> None:
    problem = make_problem()
    sampler = Augmented(Uniform(), crop=0, roll=1)
    state = sampler.init(problem, 1)
    twin = Uniform().init(problem, state.base.stream.seed)
    x, source = sampler.draw(state, problem, 50).x, Uniform().draw(twin, problem, 50).x
    moves = []
    for row in range(50):
        found = [
            (i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if torch.equal(source[row].roll((i, j), dims=(1, 2)), x[row])
        ]
        assert len(found) == 1
        moves += found
    assert len(set(moves)) == 9


def test_enlarges_a_part_of_each_row(make_problem: MakeProblem) -> None:
    problem, base = make_problem(), Smoothed(sigma=2.0)
    sampler = Augmented(base, crop=0, area=0.2)
    state = sampler.init(problem, 1)
    twin = base.init(problem, state.base.stream.seed)
    x, source = sampler.draw(state, problem, 50).x, base.draw(twin, problem, 50).x
    changed = (x - source).flatten(1).abs().amax(dim=1) > 1e-4
    assert changed.float().mean() > 0.9
    for row in range(50):  # interpolation stays between the pixels of the image that it is of
        assert source[row].min() - 1e-6 <= x[row].min() <= x[row].max() <= source[row].max() + 1e-6
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"area: expected a number in \(0, 1\], found"):
            Augmented(base, area=wrong)


def test_keeps_labels_and_drops_what_the_teacher_said(make_problem: MakeProblem) -> None:
    problem = make_problem()
    base = Pooled(Real(limit=40), round=20)
    sampler = Augmented(base, crop=1)
    state = sampler.init(problem, 1)
    batch = sampler.draw(state, problem, 20)
    assert batch.y is not None
    assert batch.y.shape == (20,)
    assert batch.teacher is None
    assert base.draw(state.base, problem, 4).teacher is not None


def test_the_default_shift_grows_with_the_image(make_problem: MakeProblem) -> None:
    for side, pad in ((8, 1), (16, 2), (32, 4)):
        problem = make_problem(shape=(1, side, side))
        one, two = (s.draw(s.init(problem, 1), problem, 9).x for s in (Augmented(Uniform()), Augmented(Uniform(), pad)))
        assert torch.equal(one, two)


def test_turns_mirrors_and_recolours_in_the_order_it_says(make_problem: MakeProblem) -> None:
    problem = make_problem(low=-1.0, high=2.0, shape=(3, 8, 8))
    base, box = Smoothed(sigma=2.0), (-1.0, 2.0)
    sampler = Augmented(base, 1, True, 1, 0.8, 20.0, True, 0.1, 0.2, 0.3, 0.4)
    state = sampler.init(problem, 1)
    twin = base.init(problem, state.base.stream.seed)
    rng = Stream(derive(1, "augmented"), problem.device).advance()
    x = resized_crop(crop(base.draw(twin, problem, 40).x, rng, 1, -1.0), rng, (0.8, 1.0))
    x = flip_vertical(flip(rotate(x, rng, 20.0, -1.0).clamp(*box), rng), rng)
    x = jitter(roll(x, rng, 1), rng, 0.1, 0.2, 0.3, 0.4, box)
    found = sampler.draw(state, problem, 40).x
    assert torch.equal(found, x)
    assert found.min() >= -1.0
    assert found.max() <= 2.0


def test_what_is_off_changes_neither_images_nor_what_is_written(make_problem: MakeProblem) -> None:
    """Draws of before these were settings, and folders begun then, go on."""
    problem, base = make_problem(), Uniform()
    sampler = Augmented(base, crop=2, flip=True, roll=1, area=0.5)
    state = sampler.init(problem, 7)
    twin = base.init(problem, state.base.stream.seed)
    rng = Stream(derive(7, "augmented"), problem.device).advance()
    x = resized_crop(crop(base.draw(twin, problem, 30).x, rng, 2, problem.spec.low), rng, (0.5, 1.0))
    assert torch.equal(sampler.draw(state, problem, 30).x, roll(flip(x, rng), rng, 1))
    assert repr(sampler) == f"Augmented(base={base!r}, crop=2, flip=True, roll=1, area=0.5)"
    assert repr(replace(sampler, hue=0.2)) == f"{repr(sampler)[:-1]}, hue=0.2)"
    written = config.dump(sampler)["augmented"]
    assert list(written) == ["base", "crop", "flip", "roll", "area"]
    turned = config.dump(Augmented(base, degrees=20.0, flip_vertical=True, hue=0.2))["augmented"]
    assert list(turned) == [*written, "degrees", "flip_vertical", "hue"]
    assert config.sampler({"augmented": turned})[1] == Augmented(base, degrees=20.0, flip_vertical=True, hue=0.2)


def test_colours_need_channels_that_have_some(make_problem: MakeProblem) -> None:
    for shape in ((1, 8, 8), (3, 8, 8)):
        Augmented(Uniform(), saturation=0.2).init(make_problem(shape=shape), 1)
    with pytest.raises(UnsupportedProblem, match="images of 1 or 3 channels for saturation and hue, found 2"):
        Augmented(Uniform(), saturation=0.2).init(make_problem(shape=(2, 8, 8)), 1)


def test_names_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="crop: expected a change to the images"):
        Augmented(Uniform(), crop=0)
    with pytest.raises(ValueError, match="flip: expected true or false, found 'yes'"):
        Augmented(Uniform(), flip="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="roll: expected an integer >= 0, found -2"):
        Augmented(Uniform(), roll=-2)
    with pytest.raises(ValueError, match="degrees: expected a number >= 0, found -20"):
        Augmented(Uniform(), degrees=-20)
    with pytest.raises(ValueError, match="flip_vertical: expected true or false, found 1"):
        Augmented(Uniform(), flip_vertical=1)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="contrast: expected a number >= 0, found 'much'"):
        Augmented(Uniform(), contrast="much")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match=r"hue: expected a number in \[0, 0.5\], found 0.7"):
        Augmented(Uniform(), hue=0.7)
    for one in ({"degrees": 20.0}, {"flip_vertical": True}, {"brightness": 0.1}, {"hue": 0.1}):
        assert Augmented(Uniform(), crop=0, **one).crop == 0
