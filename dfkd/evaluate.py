"""How good a network is on labelled images: accuracy, negative log-likelihood, calibration.

Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks. 2017. arXiv:1706.04599 for the expected
calibration error, with 10 bins of equal width: the one that comparisons give too.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfkd.fidelity.metrics import calibration_error
from dfkd.types import as_device

if TYPE_CHECKING:  # a data-free run must work where dfkd.data cannot be imported
    from dfkd.data import Dataset

__all__ = ["evaluate", "scores"]


def evaluate(
    model: nn.Module,
    dataset: "Dataset",
    batch: int = 500,
    device: torch.device | str | None = None,
    advance: Callable[[float], None] | None = None,
) -> dict[str, float | int]:
    """On the rows to test on: accuracy and ece in [0, 1], nll in nats, and how many rows.

    The model takes pixels and is asked in evaluation mode; its modes are put back afterwards. advance: told
    what part of the rows is done.
    """
    if batch < 1:
        raise ValueError(f"batch: expected an integer >= 1, found {batch!r}")
    device, test = as_device(device), dataset.require_test("evaluate")
    if test.y is None:
        raise ValueError(f"evaluate: {dataset.name} has no labels to test on")
    training = {part: part.training for part in model.modules()}
    model = model.to(device).eval()
    logits = []
    try:
        with torch.no_grad():
            for start in range(0, len(test), batch):
                x = test.pixels(slice(start, start + batch), dataset.spec)
                logits.append(model(x.to(device)).float())
                if advance is not None:
                    advance(min(1.0, (start + batch) / len(test)))
    finally:
        for part, mode in training.items():
            part.training = mode
    return scores(torch.cat(logits), test.y.to(device))


def scores(logits: Tensor, y: Tensor) -> dict[str, float | int]:
    """logits (n, k), y (n,) -> accuracy, nll, ece and rows."""
    n, k = logits.shape
    if int(y.max()) >= k:
        raise ValueError(f"y: expected labels from 0 to {k - 1}, found {int(y.max())}")
    log_q = logits.double().log_softmax(dim=1)
    return {
        "accuracy": float((log_q.argmax(dim=1) == y).double().mean()),
        "nll": float(-log_q.gather(1, y[:, None]).mean()),
        "ece": calibration_error(logits, y),
        "rows": n,
    }
