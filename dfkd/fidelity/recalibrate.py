"""A copy of a model whose BatchNorm statistics are exact means over given rows.

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson: Averaging Weights Leads to Wider Optima and Better Generalization. 2018.
arXiv:1803.05407 (statistics anew after the weights changed). Changed: layer by layer, each layer's mean and biased
variance over all rows with the layers before it already as they will be in evaluation, in place of a moving average
over batches. So the result does not depend on the batch size, and asking the copy the same rows in evaluation mode
gives every layer inputs with exactly the statistics that it stores.
"""

import copy
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.fidelity.columns import chunks, logits
from dfkd.pixels import to_pixels
from dfkd.problem import Probe
from dfkd.types import InputSpec

__all__ = ["SCORING", "Scoring", "recalibrated", "scored_logits"]

Scoring = Literal["eval", "batch", "recalibrated"]
SCORING: Final = ("eval", "batch", "recalibrated")


class _ReachedError(Exception):
    """Ends a forward pass at the layer that is being measured."""


class _Moments:
    """Sums of x and x^2 (c,) in float64 over everything a layer was given."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        axes = [d for d in range(x.ndim) if d != 1]
        x = x.double()
        self.count += x.numel() // x.shape[1]
        self.sum = self.sum.to(x.device) + x.sum(dim=axes)
        self.squares = self.squares.to(x.device) + x.square().sum(dim=axes)

    def store(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None  # only layers that store them are measured
        mean = self.sum / self.count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((self.squares / self.count - mean.square()).clamp_min(0.0))


def recalibrated(module: nn.Module, x: Tensor, spec: InputSpec, batch: int = 500) -> nn.Module:
    """x (n, c, h, w) uint8 or pixels -> a copy of `module` in evaluation mode; the original is not touched.

    Costs about half a pass over the rows for each BatchNorm layer: a pass ends at the layer it measures. A layer that
    is asked more than once per pass is measured at its first place. A model without BatchNorm is only copied.
    """
    if len(x) < 1:
        raise ValueError("x: expected at least one row, found none")
    result = copy.deepcopy(module).eval()
    layers = [m for m in result.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return result
    device = next(result.buffers()).device
    parts = chunks(len(x), batch, mixed=False)

    def pixels(part: Tensor) -> Tensor:
        return to_pixels(x[part.to(x.device)].to(device), spec)

    with torch.no_grad():
        for layer in _in_call_order(result, layers, pixels(parts[0][:1])):
            moments = _Moments()
            for part in parts:
                _measure(result, layer, pixels(part), moments)
            moments.store(layer)
    return result


def scored_logits(
    student: Probe,
    x: Tensor,
    spec: InputSpec,
    scoring: Scoring = "eval",
    over: Tensor | None = None,
    batch: int = 500,
) -> Tensor:
    """The student's answers (n, k) in a scoring mode, float32 on the CPU, counted under "evaluate".

    scoring: `eval`; `batch` (transductive: fixed mixed batches of at most `batch` rows, see `columns.logits`);
    `recalibrated` over the rows `over` (uint8 or pixels), whose passes are not counted.
    """
    if scoring not in SCORING:
        raise ValueError(f"scoring: expected one of {', '.join(SCORING)}, found {scoring!r}")
    if scoring != "recalibrated":
        return logits(student, x, spec, scoring, batch)
    if over is None:
        raise ValueError("over: expected the rows to recalibrate on, found None")
    twin = Probe(recalibrated(student.module, over, spec, batch), spec, student.device, student.name, student.precision)
    answers = logits(twin, x, spec, "eval", batch)
    student.charge(twin.counts["evaluate"], "evaluate")
    return answers


def _in_call_order(module: nn.Module, layers: list[_BatchNorm], x: Tensor) -> list[_BatchNorm]:
    """The layers that a forward pass reaches, in the order it first does: those before decide what those after get."""
    seen: list[_BatchNorm] = []
    handles = [layer.register_forward_pre_hook(lambda part, _: seen.append(part)) for layer in layers]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(seen))


def _measure(module: nn.Module, layer: _BatchNorm, x: Tensor, moments: _Moments) -> None:
    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments.add(args[0])
        raise _ReachedError

    handle = layer.register_forward_pre_hook(stop)
    try:
        module(x)
    except _ReachedError:
        pass
    finally:
        handle.remove()
