"""The signal of a run: fixed banks, the sampler left as it was, nothing charged, and what its numbers are."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dfkd.engine import Budget, Optimiser, train
from dfkd.fidelity.selfcheck import Signal, unsearched
from dfkd.interfaces import Sampler
from dfkd.losses import KL, combine
from dfkd.problem import Probe, Problem
from dfkd.types import Batch, InputSpec
from samplers import (
    Adversarial,
    Augmented,
    DeepInversion,
    Generative,
    Mixture,
    Pooled,
    Smoothed,
    SpaceshipNet,
    Uniform,
)

INVERTED = Pooled(DeepInversion(steps=2, batch=8), round=8, every=3)
UNSEEN: dict[str, Sampler] = {"smoothed": Smoothed(labelling="eval"), "uniform": Uniform(labelling="eval")}
GENERATOR = Generative(latent=4, width="small", batch=5, student_steps=2)


@pytest.fixture
def problem(teacher: Probe, student: Probe, spec: InputSpec) -> Problem:
    return Problem(teacher, student, spec, torch.device("cpu"))


def test_what_stands_for_the_sampler() -> None:
    assert unsearched(INVERTED) is INVERTED
    assert unsearched(Adversarial(Adversarial(INVERTED))) is INVERTED
    for follows in (GENERATOR, Augmented(GENERATOR, crop=1), Adversarial(GENERATOR), Mixture((INVERTED, GENERATOR))):
        assert unsearched(follows) is None
    # it never asks the student, but one that nobody has drawn from has an untrained generator
    assert unsearched(SpaceshipNet()) is None


@dataclass(frozen=True)
class Counting:
    """Uniform noise; draws are counted in the class, the teacher is asked in `init` as some samplers do."""

    name: ClassVar[str] = "counting"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False
    draws: ClassVar[list[tuple[int, bool]]] = []

    def init(self, problem: Problem, seed: int) -> Any:
        with problem.searching():
            problem.teacher(torch.rand(5, *problem.spec.shape))
        return Uniform().init(problem, seed)

    def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
        self.draws.append((n, learn))
        return Uniform(labelling="eval").draw(state, problem, n, learn)

    def observe(self, state: Any, batch: Batch, loss: Tensor) -> None: ...


def test_banks_are_drawn_once_and_charged_to_nobody(problem: Problem) -> None:
    Counting.draws.clear()
    signal = Signal(Counting(), UNSEEN, rows=20, seed=3)
    first, again = signal(problem, None), signal(problem, None)
    assert Counting.draws == [(20, False)]
    assert first == again
    assert list(first) == [f"{kind}_{name}" for name in ("own", *UNSEEN) for kind in ("agreement", "signal")]
    assert problem.teacher.images == 0
    assert problem.teacher.counts["evaluate"]["forward"] == 5 + 3 * 20
    other = Signal(Counting(), UNSEEN, rows=20, seed=4)(problem, None)
    assert other != first
    assert Signal(Counting(), UNSEEN, rows=20, seed=3)(problem, None) == first  # as a continued run does


def test_equals_agreement_and_divergence_by_hand(problem: Problem) -> None:
    class Kept(Signal):
        def banks(self) -> dict[str, Tensor]:
            return {name: column.x for name, (column, _) in self._banks.items()}

    signal = Kept(Uniform(labelling="eval"), {"smoothed": UNSEEN["smoothed"]}, rows=30, seed=0)
    found = signal(problem, None)
    for name, x in signal.banks().items():
        with torch.no_grad():
            q, p = (m.module.eval()(x / 255.0).double().softmax(dim=1) for m in (problem.student, problem.teacher))
        assert found[f"agreement_{name}"] == pytest.approx(float((q.argmax(1) == p.argmax(1)).double().mean()))
        assert found[f"signal_{name}"] == pytest.approx(float((p * (p / q).log()).sum(dim=1).mean()), rel=1e-4)


@pytest.mark.parametrize("sampler", [GENERATOR, INVERTED, Adversarial(INVERTED, steps=1)])
def test_listening_does_not_change_the_run(sampler: Any, spec: InputSpec, teacher: Probe) -> None:
    """Student, sampler and counts to the last bit; the generator's rows are drawn from the state and it is put back."""
    states = []
    for listening in (False, True):
        torch.manual_seed(1)
        module = deepcopy(teacher.module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        problem = Problem(Probe(deepcopy(teacher.module), spec), Probe(module, spec), spec, torch.device("cpu"))
        signal = Signal(sampler, UNSEEN, rows=8, seed=0)
        training = train(
            problem,
            sampler,
            combine({"kl": (1.0, KL(4.0))}),
            Budget(batch=8, steps=8),
            Optimiser(),
            0,
            signal=partial(signal, problem) if listening else None,
            log_points=4,
        )
        assert all(("signal_own" in line) == listening for line in training.curve)
        costs = {phase: training.counts[phase] for phase in ("synthesise", "label")}
        states.append((module.state_dict(), training.sampler_state.state_dict(), costs))
    (ours, mine, spent), (theirs, other, also) = states
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert spent == also
    assert_same(mine, other)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, two in zip(a, b, strict=True):
            assert_same(one, two)
    else:
        assert a == b


def test_names_too_few_rows() -> None:
    with pytest.raises(ValueError, match="rows: expected an integer >= 1, found 0"):
        Signal(Uniform(), {}, rows=0, seed=0)
