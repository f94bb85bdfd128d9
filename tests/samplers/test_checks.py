"""Settings that are refused, each with its name, what was expected and what was found."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from dfkd.interfaces import Sampler
from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.registry import SAMPLERS, find
from dfkd.types import InputSpec
from samplers import CMI, DFAD, Adversarial, DeepInversion, Energy, Pooled, Robust, Uniform
from samplers.checks import INSTEAD, at_least, between, one_of, positive, requires, whole_at_least

MakeProblem = Callable[..., Problem]
Check = Callable[..., None]


@pytest.mark.parametrize(
    ("check", "rule", "good", "bad"),
    [
        (whole_at_least, (2,), [2, 100], [1, 2.0, True, "2", None]),
        (at_least, (0.0,), [0, 0.0, 5.5], [-0.1, float("nan"), float("inf"), "1", True, None]),
        (positive, (), [1, 1e-9], [0, -1.0, float("nan"), float("inf"), "1", True]),
        (between, (0.0, 0.5), [0, 0.5], [-0.1, 0.6, float("nan"), "0", False]),
        (one_of, (("a", "b"),), ["a", "b"], ["c", None, 1]),
    ],
)
def test_takes_what_fits_and_names_what_does_not(check: Check, rule: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check(SimpleNamespace(other=value, setting=value), *rule, "other", "setting")
    for value in bad:
        with pytest.raises(ValueError, match=f"^setting: expected .*, found {value!r}$"):
            check(SimpleNamespace(other=good[0], setting=value), *rule, "other", "setting")


def test_what_is_named_instead_does_without() -> None:
    for need, names in INSTEAD.items():
        for name in names:
            assert need not in find("sampler", name, SAMPLERS).needs


def test_names_the_need_and_who_does_without(
    make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]
) -> None:
    problem = make_problem(teacher=brightness)
    requires(problem, "logits", "input_grad", who="toy")
    said = "^toy: needs a teacher with batchnorm; this teacher has logits, input_grad; dfad, zskt, energy do without$"
    with pytest.raises(UnsupportedProblem, match=said):
        requires(problem, "input_grad", "batchnorm", who="toy")
    with pytest.raises(UnsupportedProblem, match=r"; dfad, zskt do without$"):
        requires(problem, "batchnorm", who="energy")
    problem.student._capabilities = frozenset({"logits"})
    requires(problem, "input_grad", who="toy")
    with pytest.raises(UnsupportedProblem, match=r"a student with input_grad; .*; smoothed, shader, dead_leaves do w"):
        requires(problem, "input_grad", who="toy", of_student=True)
    with pytest.raises(UnsupportedProblem, match=r"with features; this teacher has logits, input_grad$"):
        requires(problem, "features", who="toy")


@pytest.mark.parametrize(
    "sampler",
    [
        DFAD(batch=16),
        Energy(buffer=16, batch=16),
        Pooled(DeepInversion(steps=1)),
        Adversarial(Uniform()),
        Robust((CMI(steps=1, batch=16), Uniform())),
    ],
    ids=lambda sampler: sampler.name,
)
def test_a_teacher_that_rounds_its_pixels_gives_no_search_a_slope(sampler: Sampler, make_problem: MakeProblem) -> None:
    class Rounding(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net((x * 255).round() / 255)
            return logits

    problem = make_problem()
    problem.teacher = Probe(Rounding(problem.teacher.module), problem.spec)
    with pytest.raises(
        UnsupportedProblem, match=r"needs a teacher with input_grad; .* 0 all over noise, .*; smoothed, "
    ):
        sampler.init(problem, 1)
    problem.teacher, problem.student = problem.student, problem.teacher  # of a student that may be what it has become
    sampler.init(problem, 1)
