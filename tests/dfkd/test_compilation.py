"""torch.compile as a switch: what goes through it and what does not, that nothing else changes, and TF32."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.engine import Budget, Optimiser, train
from dfkd.interfaces import Sampler
from dfkd.losses import KL, Objective, combine
from dfkd.losses.derivatives import Jacobian
from dfkd.losses.features import Features
from dfkd.problem import PRECISIONS, Probe, Problem
from dfkd.rng import initialised
from dfkd.schemes.offline import distill, make_problem
from dfkd.types import Batch, InputSpec
from samplers import Adversarial, Balanced, Gaussian, Uniform
from samplers.state import State

SPEC = InputSpec((1, 4, 4), 3)
KL4 = combine({"kl": (1.0, KL(4.0))})
Calls = list[tuple[str, int]]


def net(seed: int) -> nn.Sequential:
    with initialised(seed):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )


def problem(precision: str = "float32") -> Problem:
    teacher, student = (
        Probe(net(1), SPEC, precision=precision),
        Probe(net(2), SPEC, name="student", precision=precision),
    )
    return Problem(teacher, student, SPEC, torch.device("cpu"))


def run(asked: Problem, sampler: Sampler, objective: Objective = KL4, **options: Any) -> list[Tensor]:
    """The student after six steps of eight rows."""
    budget = Budget(steps=6, batch=8)
    train(asked, sampler, objective, budget, Optimiser(learning_rate=0.1), 0, **{"compile": True} | options)
    return [value.detach().clone() for value in asked.student.module.state_dict().values()]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """torch.compile gives back what it was given; what goes through it is noted: BatchNorm's mode and rows."""
    noted: Calls = []

    def compile(module: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        assert options == {"mode": "default", "dynamic": False}

        def call(x: Tensor) -> Tensor:
            noted.append(("train" if module.training else "eval", x.shape[0]))
            out: Tensor = module(x)
            return out

        return call

    monkeypatch.setattr(torch, "compile", compile)
    return noted


def test_labelling_and_learning_of_whole_batches_go_through_it(calls: Calls) -> None:
    with torch.no_grad():
        expected = run(problem(), Uniform(), compile=False)
    assert calls == []
    found = run(problem(), Uniform())
    assert calls == [("eval", 8), ("train", 8)] * 6
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "sampler", [Adversarial(base=Uniform(), steps=2), Balanced(base=Gaussian())], ids=["search", "choice"]
)
def test_what_a_sampler_asks_does_not(calls: Calls, sampler: Sampler) -> None:
    asked = problem()
    run(asked, sampler)
    assert asked.teacher.images > 2 * 6 * 8  # it did ask
    assert sorted(set(calls)) == [("eval", 8), ("train", 8)]
    assert len(calls) == 12


@pytest.mark.parametrize(
    ("loss", "through"),
    [
        (Jacobian(), []),  # a gradient's gradient, which compiled code has not
        (Features(pairs=(("2", "2"),)), []),  # hooks, which it does not call
    ],
    ids=["slopes", "features"],
)
def test_losses_that_look_inside_do_without(calls: Calls, loss: Any, through: Calls) -> None:
    objective = combine({"only": (1.0, loss)})
    expected = run(problem(), Uniform(), objective, compile=False)
    for one, other in zip(run(problem(), Uniform(), objective), expected, strict=True):
        assert torch.equal(one, other)
    assert calls == through


def test_other_hooks_are_called(calls: Calls) -> None:
    probe = problem().teacher
    x = torch.rand(8, *SPEC.shape)
    with probe.compiled(8), probe.counting("label"):
        probe(x)
        assert len(calls) == 1
        with probe.batchnorm_inputs() as seen:
            probe(x)
            assert len(seen) == 1
        with probe.penultimate() as given:
            probe(x)
            assert len(given) == 1
        with probe.taps("2"):
            assert list(probe(x).features) == ["2"]
        assert len(calls) == 1
        probe(x[:7])
        assert len(calls) == 1
    with probe.counting("label"):
        probe(x)
    assert len(calls) == 1


def test_a_run_continues_exactly(calls: Calls, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop() -> dict[str, float]:
        raise Stopped

    expected = run(problem(), Uniform())
    file = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        run(problem(), Uniform(), checkpoint=file, checkpoint_seconds=0.0, monitor=stop, log_points=2)
    assert file.exists()
    found = run(problem(), Uniform(), checkpoint=file, log_points=2)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert calls


def test_where_it_cannot_be_compiled_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def compile(module: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        del module, options

        def call(*_: Tensor) -> Tensor:
            raise TorchDynamoException("no compiler found\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(
        ValueError, match=r"^compile: torch\.compile cannot compile the teacher here \(no compiler found\)"
    ):
        run(problem(), Uniform())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # its own modules warn of one another
def test_compiled_and_plain_students_agree() -> None:
    """In rounding: sums are taken in another order."""
    for one, other in zip(run(problem(), Uniform()), run(problem(), Uniform(), compile=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# -- TF32 --------------------------------------------------------------------------------------------------------------


def rounded() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


class Noting(Uniform):
    """Uniform noise that notes how float32 products are rounded."""

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        noted.append(rounded())
        return super().draw(state, problem, n, learn)


noted: list[tuple[bool, bool]] = []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_rounded_in_a_run_alone(precision: str) -> None:
    before = rounded()
    noted.clear()
    run(problem(precision), Noting(), compile=False)
    assert rounded() == before
    assert set(noted) == {(True, True) if precision == "tf32" else before}


def test_answers_say_so_in_all_phases() -> None:
    probe = problem("tf32").teacher
    x = torch.rand(2, *SPEC.shape)
    assert probe(x).precision == "tf32"
    with probe.counting("label"):
        assert probe(x).precision == "tf32"


def test_a_cpu_has_none() -> None:
    with pytest.raises(ValueError, match=r"^precision: tf32 is a GPU's, found device cpu; float32 is the nearest$"):
        make_problem(net(1), net(2), SPEC, device="cpu", precision="tf32")
    with pytest.raises(ValueError, match="tf32 is a GPU's"):
        distill(net(1), net(2), Uniform(), spec=SPEC, device="cpu", precision="tf32")
