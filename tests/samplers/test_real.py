"""Real: every image once per epoch, in an order that depends on the seed and the epoch alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfkd.data import load
from dfkd.problem import Problem
from samplers import Real

MakeProblem = Callable[..., Problem]

SETTINGS = Real(limit=50)


def draw_all(problem: Problem, sizes: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    state = SETTINGS.init(problem, seed)
    batches = [SETTINGS.draw(state, problem, n) for n in sizes]
    return torch.cat([b.x for b in batches]), torch.cat([b.require_y("test") for b in batches])


def as_rows(x: Tensor) -> list[tuple[float, ...]]:
    return [tuple(row) for row in x.flatten(1).tolist()]


@pytest.mark.parametrize("sizes", [[50], [7] * 7 + [1], [49, 1], [20, 30]])
def test_an_epoch_is_every_image_once(sizes: list[int], make_problem: MakeProblem) -> None:
    problem = make_problem()
    x, y = draw_all(problem, sizes)
    images = load("digits", limit=50).train
    assert sorted(as_rows(x)) == sorted(as_rows(images.x.float() / 255))
    truth = dict(zip(as_rows(images.x.float() / 255), images.y.tolist() if images.y is not None else [], strict=True))
    assert [truth[row] for row in as_rows(x)] == y.tolist()


def test_the_order_does_not_depend_on_how_it_is_drawn(make_problem: MakeProblem) -> None:
    problem = make_problem()
    whole, _ = draw_all(problem, [190])  # almost four epochs in one draw
    pieces, _ = draw_all(problem, [7] * 27 + [1])
    assert torch.equal(whole, pieces)
    epochs = [whole[start : start + 50] for start in (0, 50, 100)]
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    assert sorted(as_rows(epochs[1])) == sorted(as_rows(epochs[2]))


def test_splits_share_no_image(make_problem: MakeProblem) -> None:
    problem = make_problem()
    train, test = (s.draw(s.init(problem, 1), problem, n) for s, n in ((Real(), 1437), (Real(split="test"), 360)))
    assert len(set(as_rows(train.x)) & set(as_rows(test.x))) < 5  # scikit-learn's digits repeat an image or two


def test_continues_from_integers_alone(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = SETTINGS.init(problem, 1)
    SETTINGS.draw(state, problem, 77)
    assert state.state_dict() == {"seed": 1, "drawn": 77, "size": 50}


def test_refuses_the_state_of_another_set(make_problem: MakeProblem) -> None:
    problem = make_problem()
    saved = SETTINGS.init(problem, 1).state_dict()
    with pytest.raises(ValueError, match="state: expected a set of 40 images, found one of 50"):
        Real(limit=40).init(problem, 1).load_state_dict(saved)


def test_refuses_images_that_the_teacher_does_not_take(make_problem: MakeProblem, colours: Path) -> None:
    expected = (
        r"data: expected images \(1, 8, 8\) of 10 classes.*, found \(3, 16, 16\) of 10 classes in '.*colours.npz'"
    )
    with pytest.raises(ValueError, match=expected):
        Real(data=str(colours)).init(make_problem(), 1)
    with pytest.raises(ValueError, match=r"of 7 classes, as the teacher takes, found \(1, 8, 8\) of 10"):
        Real().init(make_problem(num_classes=7), 1)


def test_reads_colours_into_the_box(make_problem: MakeProblem, colours: Path) -> None:
    problem = make_problem(shape=(3, 16, 16), low=-1.0, high=2.0)
    sampler = Real(data=str(colours))
    batch = sampler.draw(sampler.init(problem, 1), problem, 40)
    assert batch.x.min() == -1.0  # 30720 random bytes have both ends among them
    assert batch.x.max() == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "tset"}, "split: expected one of train, test, found 'tset'"),
        ({"data": ""}, "data: expected the name"),
        ({"size": 0}, "size: expected an integer >= 1, found 0"),
        ({"limit": 2.5}, "limit: expected an integer >= 1, found 2.5"),
    ],
)
def test_names_a_wrong_setting(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Real(**settings)  # type: ignore[arg-type]


def test_a_used_state_can_be_put_back(make_problem: MakeProblem) -> None:
    """The order that it holds for the epoch it was in must not outlive the seed it was made from."""
    problem = make_problem()
    state, other = SETTINGS.init(problem, 1), SETTINGS.init(problem, 2)
    SETTINGS.draw(state, problem, 7)
    SETTINGS.draw(other, problem, 9)
    other.load_state_dict(state.state_dict())
    assert torch.equal(SETTINGS.draw(state, problem, 20).x, SETTINGS.draw(other, problem, 20).x)
