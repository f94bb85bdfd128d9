"""Terms that weigh rows by their worth, and the entropy, against slow references in Python floats."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.types import Outputs
from samplers.ingredients import OneHot, Views
from samplers.ingredients.entropy import Entropy
from samplers.ingredients.worth import Modulated, Reward
from samplers.state import State

MakeProblem = Callable[..., Problem]

STUDENT, TEACHER = 2.0 * torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([3, 3, 0, 9, 5])


def seen(teacher: Tensor, target: Tensor | None = TARGET, student: Tensor = STUDENT) -> Views:
    answers: dict[str, Any] = {"teacher": Outputs(teacher), "student": Outputs(student)}
    return cast(Views, SimpleNamespace(target=target, **answers))


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(z) for z in row]
    return [w / sum(weights) for w in weights]


def begun(term: Modulated, make_problem: MakeProblem, classes: list[int]) -> State:
    state: State = term.init(make_problem(), 1)
    state.classes = torch.tensor(classes, dtype=torch.int64)
    return state


@pytest.mark.parametrize("focus", [0.0, 2.0])
def test_modulated_equals_its_definition(make_problem: MakeProblem, focus: float) -> None:
    classes = [3, 3, 3, 0, 5, 5, 1]
    term = Modulated(focus=focus)
    state = begun(term, make_problem, classes)
    total = 0.0
    for row, y in zip(TEACHER.tolist(), TARGET.tolist(), strict=True):
        p = softmax(row)[y]
        most = max(classes.count(c) + 1 for c in range(10))
        total += (1.0 + math.log(most / (classes.count(y) + 1))) * (1.0 - p) ** focus * -math.log(p)
    assert term(state, seen(TEACHER)).item() == pytest.approx(total / 5, rel=1e-5)


def test_modulated_begins_as_the_plain_cross_entropy(make_problem: MakeProblem) -> None:
    term = Modulated(focus=0.0)
    plain = OneHot("target")(None, seen(TEACHER))
    torch.testing.assert_close(term(begun(term, make_problem, []), seen(TEACHER)), plain)


def test_its_factor_is_a_number_to_the_gradient(make_problem: MakeProblem) -> None:
    term, logits = Modulated(), TEACHER.clone().requires_grad_(True)
    state = begun(term, make_problem, [3, 3, 0])
    (slope,) = torch.autograd.grad(term(state, seen(logits)), logits)
    factors = term.factors(state, TEACHER, TARGET)
    plain = (TEACHER.softmax(dim=1) - torch.nn.functional.one_hot(TARGET, 10)) / 5
    torch.testing.assert_close(slope, factors[:, None] * plain)


def test_counts_what_the_last_images_are_taken_for(make_problem: MakeProblem) -> None:
    term = Modulated(memory=7)
    state = begun(term, make_problem, [8, 8, 8])
    expected = [8, 8, 8, *(row.index(max(row)) for row in TEACHER.tolist())]
    term.end_round(state, seen(TEACHER))
    assert state.classes.tolist() == expected[-7:]
    term.after_step(state)
    assert state.classes.tolist() == expected[-7:]


def test_stays_finite_when_certain_and_wrong(make_problem: MakeProblem) -> None:
    term, logits = Modulated(), (1e4 * torch.eye(10)[:5]).requires_grad_(True)
    loss = term(begun(term, make_problem, []), seen(logits))
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(1e4)  # all five rows are wrong, each by 1e4
    assert torch.isfinite(slope).all()


def test_reward_equals_its_definition() -> None:
    total = 0.0
    for teacher, student, y in zip(TEACHER.tolist(), STUDENT.tolist(), TARGET.tolist(), strict=True):
        total += softmax(teacher)[y] * (1.0 - softmax(student)[y])
    assert Reward()(None, seen(TEACHER)).item() == pytest.approx(-total / 5, rel=1e-5)


def test_the_reward_pulls_teacher_and_student_apart() -> None:
    teacher, student = (part.clone().requires_grad_(True) for part in (TEACHER, STUDENT))
    slopes = torch.autograd.grad(Reward()(None, seen(teacher, student=student)), [teacher, student])
    at = TARGET[:, None]
    assert (slopes[0].gather(1, at) < 0.0).all()  # less loss where the teacher accepts more
    assert (slopes[1].gather(1, at) > 0.0).all()  # and where the student accepts less


@pytest.mark.parametrize("term", [Modulated(), Reward()])
def test_need_a_target(term: Any, make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match="target: expected a class for each row, found None"):
        term(term.init(make_problem(), 1), seen(TEACHER, target=None))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"memory": 0}, "memory: expected an integer >= 1"), ({"focus": -1.0}, "focus: expected a number >= 0")],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Modulated(**given)


def test_entropy_equals_its_definition_and_its_extremes() -> None:
    slow = sum(-sum(p * math.log(p) for p in softmax(row)) for row in TEACHER.tolist()) / 5
    assert Entropy()(None, seen(TEACHER)).item() == pytest.approx(slow, rel=1e-5)
    assert Entropy()(None, seen(torch.zeros(2, 10))).item() == pytest.approx(math.log(10), rel=1e-6)
    certain = (1e4 * torch.eye(10)).requires_grad_(True)
    loss = Entropy()(None, seen(certain))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(torch.autograd.grad(loss, certain)[0]).all()
