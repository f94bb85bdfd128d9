"""The share of rows near a boundary, where the distance to it is known, and what the search leaves as it was."""

import pytest
import torch
from torch import Tensor, nn

from dfkd.fidelity import diagnose
from dfkd.fidelity.boundary import STEP, boundary_share
from dfkd.problem import Probe
from dfkd.types import InputSpec, whole

SPEC = InputSpec((1, 4, 4), 2)


def linear(spec: InputSpec = SPEC) -> tuple[Probe, Tensor]:
    """Two classes apart by a plane: logits (0, w x - 3) with w of both signs; and w."""
    w = torch.linspace(-1.0, 2.0, 16).roll(5)
    net = nn.Linear(16, 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([torch.zeros(16), w]))
        net.bias.copy_(torch.tensor([0.0, -3.0]))
    return Probe(nn.Sequential(nn.Flatten(), net), spec), w


def rows(w: Tensor, spec: InputSpec, distances: Tensor) -> Tensor:
    """Images inside the box, each at this L-infinity distance (of the box) from the plane w x = 3."""
    middle = torch.full((16,), spec.middle)
    on_plane = middle + (3.0 - w @ middle) * w / (w @ w)
    return (on_plane + spec.span * distances[:, None] * w.sign()).reshape(-1, 1, 4, 4)


@pytest.mark.parametrize("spec", [SPEC, InputSpec((1, 4, 4), 2, low=-1.0, high=3.0)])
@pytest.mark.parametrize("batch", [256, 3])
def test_counts_the_rows_nearer_to_the_plane_than_one_step(spec: InputSpec, batch: int) -> None:
    """One step by the signs of w is the shortest way there in L-infinity: |w x - 3| / |w|_1."""
    teacher, w = linear(spec)
    distances = STEP * torch.tensor([0.1, -0.5, 0.95, -0.98, 1.03, -1.05, 2.0, -4.0])
    x = rows(w, spec, distances)
    assert x.min() > spec.low
    assert x.max() < spec.high
    assert boundary_share(teacher, x, spec, whole(8, "eval"), batch) == 0.5
    assert boundary_share(teacher, x[4:], spec, whole(4, "eval"), batch) == 0.0
    assert boundary_share(teacher, x[:4], spec, whole(4, "eval"), batch) == 1.0
    assert diagnose(teacher, x, spec, batch=batch).values["boundary_share"] == 0.5


def test_a_step_ends_at_the_box() -> None:
    """A white image that a step beyond white would take to the other class."""
    net = nn.Linear(16, 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([torch.zeros(16), torch.ones(16)]))
        net.bias.copy_(torch.tensor([0.0, -16.01]))
    teacher = Probe(nn.Sequential(nn.Flatten(), net), SPEC)
    assert boundary_share(teacher, torch.ones(3, 1, 4, 4), SPEC, whole(3, "eval")) == 0.0


def test_the_runner_up_is_what_it_steps_towards() -> None:
    """Three classes: the second one is within a step, the third, whose slope is another, far away."""
    net = nn.Linear(16, 3)
    with torch.no_grad():
        net.weight.copy_(torch.stack([torch.zeros(16), torch.ones(16), -torch.ones(16)]))
        net.bias.copy_(torch.tensor([0.0, -8.05, 0.0]))
    teacher = Probe(nn.Sequential(nn.Flatten(), net), InputSpec((1, 4, 4), 3))
    assert boundary_share(teacher, torch.full((2, 1, 4, 4), 0.5), teacher.spec, whole(2, "eval")) == 1.0


def test_what_it_costs_and_leaves(teacher: Probe, spec: InputSpec) -> None:
    x = torch.randint(0, 256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = {key: value.clone() for key, value in teacher.module.state_dict().items()}
    teacher.precision = "bfloat16"
    found = boundary_share(teacher, x, spec, ((20, "batch"), (30, "eval")), batch=7)
    assert found is not None
    assert 0.0 <= found <= 1.0
    assert teacher.counts["evaluate"] == {"forward": 100, "backward": 50}
    assert teacher.precision == "bfloat16"
    assert teacher.images == 0
    assert all(torch.equal(value, before[key]) for key, value in teacher.module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in teacher.module.parameters())
    assert all(not part._forward_pre_hooks and not part._forward_hooks for part in teacher.module.modules())


class Rounded(nn.Module):
    """No slope reaches its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(5)[2].expand(len(x), 5)


def test_without_input_gradients_there_is_none(spec: InputSpec) -> None:
    x = torch.zeros(4, 1, 8, 8)
    assert boundary_share(Probe(Rounded(), spec), x, spec, whole(4, "eval")) is None
