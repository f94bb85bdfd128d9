"""BatchNorm as one multiplication and one addition: the layer's own answers and gradients, and only where it may."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from dfkd.affine import affine
from dfkd.problem import Probe, Problem
from dfkd.rng import initialised
from dfkd.types import InputSpec

LAYERS: tuple[tuple[type[Any], tuple[int, ...]], ...] = (
    (nn.BatchNorm1d, (6, 5)),
    (nn.BatchNorm1d, (6, 5, 7)),
    (nn.BatchNorm2d, (4, 5, 6, 7)),
    (nn.BatchNorm3d, (2, 5, 3, 4, 2)),
)


def layer(kind: type[Any] = nn.BatchNorm2d, **settings: Any) -> Any:
    part = kind(5, **settings).double()
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        part.running_mean.uniform_(-2.0, 2.0, generator=rng)
        part.running_var.uniform_(0.1, 3.0, generator=rng)
        for weight in part.parameters():
            weight.uniform_(-1.5, 1.5, generator=rng)
    return part.eval().requires_grad_(False)


def images(shape: tuple[int, ...] = (4, 5, 6, 7)) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=rng, dtype=torch.float64).add(1.0).requires_grad_(True)


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"eps": 0.3}], ids=str)
@pytest.mark.parametrize(("kind", "shape"), LAYERS)
def test_answers_and_gradients_are_the_layers_own(
    kind: type[Any], shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    part, x = layer(kind, **settings), images(shape)
    expected = part(x)
    (slope,) = torch.autograd.grad(expected.square().sum(), x)
    with affine([part]):
        found = part(x)
        assert found.grad_fn is not None
        assert "Addcmul" in found.grad_fn.name()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], slope)


def test_maps_stay_as_they_lie() -> None:
    part, x = layer(), images().detach().contiguous(memory_format=torch.channels_last)
    with affine([part]):
        assert part(x).is_contiguous(memory_format=torch.channels_last)


def test_hooks_see_what_they_always_see() -> None:
    part, x, seen = layer(), images(), []
    with affine([part]):
        part.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        part(x)
    assert seen[0] is x


def test_weights_that_a_hook_sets_at_each_call_are_those_of_the_call() -> None:
    part, x = layer(), images()
    prune.l1_unstructured(part, "weight", 0.4)
    with torch.no_grad():
        part.weight_orig.mul_(2.0)  # `weight` follows at the next call
        with affine([part]):
            found = part(x)
    torch.testing.assert_close(found, part(x))


def test_in_training_mode_statistics_are_those_of_the_batch() -> None:
    part, x = layer().train(), images()
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = (x - mean).square().mean(dim=(0, 2, 3), keepdim=True)
    weight, bias = (value[:, None, None] for value in (part.weight, part.bias))
    with affine([part]):
        torch.testing.assert_close(part(x), (x - mean) / (var + part.eps).sqrt() * weight + bias)


def test_maps_of_another_precision_stay_so() -> None:
    part, x = layer().float(), images().detach().bfloat16()
    expected = part(x)
    with affine([part]):
        assert part(x).dtype == torch.bfloat16
        torch.testing.assert_close(part(x), expected)


def test_afterwards_it_is_as_before_even_after_an_error() -> None:
    part = layer()
    with pytest.raises(ZeroDivisionError), affine([part]):
        raise ZeroDivisionError
    assert "forward" not in vars(part)


def test_blocks_may_stand_in_one_another() -> None:
    part, x = layer(), images()
    with affine([part]):
        with affine([part]):
            part(x)
        assert "forward" in vars(part)
    assert "forward" not in vars(part)


def test_other_layers_are_left_alone() -> None:
    class Clipped(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(-1, 1)

    own = layer()
    own.forward = lambda x: x + 1.0
    left = [layer(Clipped), own, nn.BatchNorm2d(5, track_running_stats=False)]
    before = [vars(part).get("forward") for part in left]
    with affine([*left, nn.Linear(2, 2)]):
        assert [vars(part).get("forward") for part in left] == before
    assert [vars(part).get("forward") for part in left] == before


# -- while searching ---------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 5, 3), layer().float(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))
        return logits


def problem(side: int) -> Problem:
    spec = InputSpec((1, side, side), 3)
    with initialised(4):
        teacher, student = Probe(Net(), spec), Probe(Net(), spec, name="student")
    return Problem(teacher, student, spec, torch.device("cpu"))


def test_on_a_device_that_was_not_measured_nothing_is_replaced() -> None:
    probe = Probe(Net(), InputSpec((1, 16, 16), 3), device="meta")
    with probe.quicker_batchnorm():
        assert "forward" not in vars(probe.module.norm)


@pytest.mark.parametrize(("side", "quicker"), [(16, True), (8, False)])
def test_both_models_are_quicker_while_searching_where_maps_are_large(side: int, quicker: bool) -> None:
    p = problem(side)
    x = torch.rand(4, *p.spec.shape, generator=torch.Generator().manual_seed(5)).requires_grad_(True)
    for probe in (p.teacher, p.student):
        expected = probe(x).logits
        (slope,) = torch.autograd.grad(expected.square().sum(), x)
        with p.searching():
            assert ("forward" in vars(probe.module.norm)) == quicker
            found = probe(x).logits
            batch = probe(x, "batch").logits
        assert "forward" not in vars(probe.module.norm)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], slope)
        torch.testing.assert_close(batch, probe(x, "batch").logits)
        assert not torch.allclose(batch, found)
