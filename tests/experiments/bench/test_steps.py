"""Steps in plain torch: each switch takes the plain step up to rounding, and recording leaves no trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.models import build
from dfkd.types import InputSpec
from experiments.bench import steps
from experiments.bench.steps import SWITCHES, Switches, quiet, recorded, sgd, stepper, take, warm

CPU = torch.device("cpu")


def nets() -> tuple[nn.Module, nn.Module]:
    spec = InputSpec((3, 8, 8), 10)
    return build("wrn-10-1", spec).eval(), build("wrn-10-1", spec)


def images() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [n for n, s in SWITCHES.items() if not s.possible(CPU) and not s.compiled])
def test_a_step_with_switches_is_the_plain_step_up_to_rounding(name: str) -> None:
    teacher, student = nets()
    plain, switched = (stepper(teacher, student, images(), s, 1e-2) for s in (Switches(), SWITCHES[name]))
    losses = [take(step, 4) for step in (plain, switched)]
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05 if "bf16" in name else 1e-3)


def test_a_step_leaves_both_models_as_they_were() -> None:
    teacher, student = nets()
    before = [p.clone() for model in (teacher, student) for p in model.state_dict().values()]
    stepper(teacher, student, torch.rand(4, 3, 8, 8), Switches())()
    after = [p for model in (teacher, student) for p in model.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_steps_that_are_taken_back_leave_no_trace() -> None:
    """Parameters, BatchNorm's statistics and momentum: the losses that follow are those of a fresh start."""
    teacher, student = nets()
    plain, warmed = (stepper(teacher, student, images(), Switches(), 0.1) for _ in range(2))
    optimiser = sgd(list(warmed.student.parameters()), 0.1)

    def step() -> Tensor:
        """With the optimiser at hand, which a stepper keeps to itself."""
        loss: Tensor = warmed.student(images()).square().sum() * 1e-3
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        optimiser.step()
        return loss.detach()

    tensors = [*warmed.student.parameters(), *warmed.student.buffers()]
    places = [tensor.data_ptr() for tensor in tensors]
    first = take(step, 3)
    warmed.student.load_state_dict(plain.student.state_dict())
    for kept in optimiser.state.values():
        kept["momentum_buffer"].zero_()
    warm(step, tensors, optimiser)
    assert all(
        torch.equal(a, b) for a, b in zip(tensors, [*plain.student.parameters(), *plain.student.buffers()], strict=True)
    )
    assert take(step, 3) == first
    assert [tensor.data_ptr() for tensor in tensors] == places


class Card:
    """torch.cuda as far as recording goes: notes which device is current; a graph is the step itself."""

    def __init__(self) -> None:
        self.current, self.recorded_on, self.watched = 0, list[int](), list[int]()

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        card = self

        class Graph:
            step: Callable[[], Any]

            def replay(self) -> None:
                card.recorded_on.append(card.current)

        @contextmanager
        def device(which: torch.device) -> Iterator[None]:
            before, card.current = card.current, which.index
            yield
            card.current = before

        @contextmanager
        def graph(made: Graph, stream: Any) -> Iterator[None]:
            del made, stream
            card.recorded_on.append(card.current)
            yield

        @contextmanager
        def stream(which: Any) -> Iterator[None]:
            del which
            yield

        class Stream:
            def __init__(self, which: Any = None) -> None: ...

            def wait_stream(self, other: Any) -> None: ...

        patch.setattr(torch.cuda, "device", device)
        patch.setattr(torch.cuda, "graph", graph)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", Stream)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "synchronize", lambda which: None)
        patch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: card.watched.append(card.current))


def test_the_device_that_is_meant_is_the_one_that_records_and_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    card, second = Card(), torch.device("cuda:1")
    card.patch(monkeypatch)
    weight = nn.Parameter(torch.ones(2))
    optimiser = sgd([weight], 0.1)

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=False)
        weight.square().sum().backward()
        optimiser.step()
        return weight.detach().sum()

    recorded(step, [weight], optimiser, second)()
    assert card.recorded_on == [1, 1]
    with quiet(second):
        assert card.current == 1
    assert card.watched == [1, 1]
    assert card.current == 0


def test_cudnn_looks_for_its_quickest_only_inside() -> None:
    names = [name for name, switches in SWITCHES.items() if switches.benchmark]
    assert names == ["benchmark", "channels_last, bf16, benchmark"]
    before = torch.backends.cudnn.benchmark
    for on in (True, False):
        with Switches(benchmark=on).applied():
            assert torch.backends.cudnn.benchmark is on
    assert torch.backends.cudnn.benchmark is before
    assert Switches(benchmark=True).possible(CPU) == "needs a GPU"


def test_losses_are_those_of_each_step_where_one_tensor_holds_them_all() -> None:
    place = torch.zeros(())

    def step() -> Tensor:
        return place.add_(1.0)

    assert take(step, 3) == [1.0, 2.0, 3.0]


def test_names_are_of_what_is_there() -> None:
    found: Sequence[str] = steps.__all__
    assert all(hasattr(steps, name) for name in found)
