"""Recalibrated copies: exact statistics, independent of the batches, and the original as before."""

import copy

import pytest
import torch
from torch import nn

from dfkd.fidelity import columns, recalibrated, scored_logits
from dfkd.problem import Probe
from dfkd.types import InputSpec

X = torch.randint(0, 100, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_stores_what_its_layers_are_given(teacher: Probe, spec: InputSpec) -> None:
    """The fixed point: asked the same rows in evaluation mode, every layer's input has the statistics it stores."""
    twin = Probe(recalibrated(teacher.module, X, spec, batch=9), spec)
    with twin.batchnorm_inputs() as seen, torch.no_grad():
        twin(X / 255.0)
    assert len(seen) == 2
    for layer in seen:
        torch.testing.assert_close(layer.mean, layer.running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.var, layer.running_var, atol=1e-5, rtol=1e-4)


def test_equals_batch_mode_over_all_rows_at_once(teacher: Probe, spec: InputSpec) -> None:
    """Normalising with the statistics of all rows is what one batch of all rows does by itself."""
    with torch.no_grad():
        expected = teacher(X / 255.0, "batch").logits
    for batch in (40, 7):
        found = scored_logits(teacher, X, spec, "recalibrated", over=X, batch=batch)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scored_logits(teacher, X, spec, "eval"), expected, atol=1e-2)
    torch.testing.assert_close(scored_logits(teacher, X, spec, "batch"), expected)
    assert teacher.counts["evaluate"]["forward"] == 4 * 40


def test_the_original_is_untouched(teacher: Probe, spec: InputSpec) -> None:
    module = teacher.module.train()
    before = copy.deepcopy(module.state_dict())
    found = recalibrated(module, X, spec)
    assert module.training
    assert not found.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(not part._forward_pre_hooks for net in (module, found) for part in net.modules())
    assert not torch.equal(found.state_dict()["1.running_mean"], before["1.running_mean"])


class Crossed(nn.Module):
    """Its layers are defined in the reverse of the order in which they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early, self.unused = nn.BatchNorm1d(5), nn.BatchNorm2d(1), nn.BatchNorm1d(3)
        self.linear = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.late(self.linear(self.early(x).flatten(1)))
        return logits


def test_follows_the_order_of_the_calls(spec: InputSpec) -> None:
    twin = Probe(recalibrated(Crossed(), X, spec), spec)
    with twin.batchnorm_inputs() as seen, torch.no_grad():
        twin(X / 255.0)
    for layer in seen:
        torch.testing.assert_close(layer.mean, layer.running_mean, atol=1e-5, rtol=1e-4)
    assert torch.equal(twin.module.get_buffer("unused.running_mean"), torch.zeros(3))


def test_without_batchnorm_it_is_a_copy(plain: Probe, spec: InputSpec) -> None:
    found = recalibrated(plain.module, X, spec)
    assert found is not plain.module
    torch.testing.assert_close(found(X / 255.0), plain.module(X / 255.0))


def test_bad_settings_are_named(teacher: Probe, spec: InputSpec) -> None:
    with pytest.raises(ValueError, match="over: expected the rows to recalibrate on"):
        scored_logits(teacher, X, spec, "recalibrated")
    with pytest.raises(ValueError, match="scoring: expected one of eval, batch, recalibrated, found 'train'"):
        scored_logits(teacher, X, spec, "train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: expected at least one row"):
        recalibrated(teacher.module, X[:0], spec)
    with pytest.raises(ValueError, match="batch: expected an integer >= 1, found 0"):
        columns.logits(teacher, X, spec, batch=0)
