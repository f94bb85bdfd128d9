"""Augmented: each row changed in its own way, and nothing else said of it changed."""

from collections.abc import Callable

import pytest
import torch

from dfkd.problem import Problem
from samplers import Augmented, Pooled, Real, Smoothed, Uniform

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


def test_names_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="crop: expected a change to the images"):
        Augmented(Uniform(), crop=0)
    with pytest.raises(ValueError, match="flip: expected true or false, found 'yes'"):
        Augmented(Uniform(), flip="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="roll: expected an integer >= 0, found -2"):
        Augmented(Uniform(), roll=-2)
