"""CutMix: boxes of the area that the labels say, anywhere in the image, each row with its own."""

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Batch
from samplers import CutMix, Uniform
from samplers.state import State

MakeProblem = Callable[..., Problem]

N, E = 20_000, 0.02
"""A mean of N independent values in [0, 1] is off by over E with probability 2 exp(-2 N E^2) = 2.3e-7."""


class Flat:
    """Image i of a draw of n is all (i + 1) / n, its class is i % 10."""

    name: ClassVar[str] = "flat"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        return Uniform().init(problem, seed)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        del state, learn
        x = ((torch.arange(n) + 1) / n).reshape(n, 1, 1, 1).expand(n, *problem.spec.shape)
        return Batch(x, y=torch.arange(n) % 10)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def pasted(alpha: float, problem: Problem, n: int) -> tuple[Batch, Tensor]:
    """A batch, and which pixels (n, h, w) are not of the row's own image."""
    cutmix = CutMix(Flat(), alpha=alpha)
    batch = cutmix.draw(cutmix.init(problem, 3), problem, n)
    return batch, batch.x[:, 0] != ((torch.arange(n) + 1) / n)[:, None, None]


def test_labels_are_the_exact_area(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(2, 7, 9))
    batch, foreign = pasted(1.0, problem, 10)
    expected = torch.zeros(10, 10)
    for i in range(10):
        for pixel in batch.x[i, 0].flatten():
            expected[i, round(float(pixel) * 10) - 1] += 1 / 63
    torch.testing.assert_close(batch.y, expected)
    assert torch.equal(batch.x[:, 0], batch.x[:, 1])  # one box for all channels
    assert foreign.any()


def test_boxes_are_boxes(make_problem: MakeProblem) -> None:
    _, foreign = pasted(1.0, make_problem(shape=(1, 7, 9)), 200)
    for mask in foreign:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert torch.equal(mask, rows[:, None] & columns)
        for side in (rows, columns):
            at = side.nonzero().flatten().tolist()
            assert at == list(range(at[0], at[0] + len(at))) if at else True


def test_area_has_the_law_of_its_proportion(make_problem: MakeProblem) -> None:
    """Area 1 - Beta(a, a): mean 1/2, second moment (a + 1) / (4 a + 2); whole pixels move them < 0.005."""
    problem = make_problem(shape=(1, 64, 64), num_classes=10)
    for alpha in (0.3, 3.0):
        area = pasted(alpha, problem, 2000)[1].float().mean(dim=(1, 2))
        bound = 0.064  # 2 exp(-2 * 2000 * bound^2) = 1.5e-7
        assert abs(float(area.mean()) - 0.5) < bound
        assert abs(float(area.square().mean()) - (alpha + 1) / (4 * alpha + 2)) < bound
        wrong = (1.0 / alpha + 1) / (4.0 / alpha + 2)
        assert abs(float(area.square().mean()) - wrong) > bound  # alpha upside down would be seen


def test_boxes_lie_anywhere_that_fits(make_problem: MakeProblem) -> None:
    """Boxes are as likely in a corner as in the mirrored one: signs of N rows in {-1, 0, 1} within 2 E of even."""
    _, foreign = pasted(1.0, make_problem(shape=(1, 8, 8)), N)
    share = foreign.float()
    for a, b in ((share[:, 0, 0], share[:, 7, 7]), (share[:, 0, 7], share[:, 7, 0]), (share[:, 2, 3], share[:, 5, 4])):
        assert abs(float((a - b).double().mean())) < 2 * E
    # given its size s of 8, a box covers the first place with probability 1 / (9 - s), never less than 1/8
    assert float(share[:, 0, 0].mean()) > 0.05


def test_names_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="alpha: expected a number > 0, found -1"):
        CutMix(Uniform(), alpha=-1)
