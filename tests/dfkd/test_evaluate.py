"""Accuracy, NLL and calibration against loops over rows; modes put back."""

import math

import pytest
import torch
from torch import Tensor, nn

from dfkd.data import Dataset, ImageSet
from dfkd.evaluate import evaluate, scores
from dfkd.fidelity.metrics import calibration_error
from dfkd.models import build
from dfkd.rng import initialised
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 5)
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3.0 * torch.randn(203, 5, generator=GENERATOR)
Y = torch.randint(5, (203,), generator=GENERATOR)
IMAGES = ImageSet(torch.randint(256, (203, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8), Y)
DATA = Dataset("random", IMAGES, IMAGES, SPEC, "")


def slow_scores(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Row by row and bin by bin, in Python floats."""
    bins: list[list[tuple[float, int]]] = [[] for _ in range(10)]
    right, nll = 0, 0.0
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        weights = [math.exp(z) for z in row]
        q = [w / sum(weights) for w in weights]
        guess = max(range(len(q)), key=lambda c: q[c])
        right += guess == label
        nll -= math.log(q[label])
        bins[min(int(10 * q[guess]), 9)].append((q[guess], int(guess == label)))
    ece = sum(abs(sum(hit for _, hit in b) - sum(conf for conf, _ in b)) for b in bins) / len(y)
    return {"accuracy": right / len(y), "nll": nll / len(y), "ece": ece, "rows": len(y)}


def test_scores_equal_their_definition() -> None:
    assert scores(LOGITS, Y) == pytest.approx(slow_scores(LOGITS, Y))


def test_calibration_does_not_let_bins_make_up_for_each_other() -> None:
    """Right where unsure and mostly wrong where sure: the gaps have both signs."""
    confidence, guess = LOGITS.softmax(dim=1).max(dim=1)
    y = torch.where(confidence < 0.7, guess, Y)
    assert scores(LOGITS, y) == pytest.approx(slow_scores(LOGITS, y))


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_as_in_comparisons() -> None:
    """0.5 and right, 0.55 and wrong: in one bin the two would make up for each other."""
    sure = math.log(0.55 / 0.45)
    logits, y = torch.tensor([[0.0, 0.0], [sure, 0.0]], dtype=torch.float64), torch.tensor([0, 1])
    assert scores(logits, y)["ece"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.55)
    assert scores(logits, y)["ece"] == calibration_error(logits, y)


def test_certain_and_right_or_wrong() -> None:
    sure = 1e4 * torch.eye(5)
    assert scores(sure, torch.arange(5)) == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "rows": 5}
    wrong = scores(sure, (torch.arange(5) + 1) % 5)
    assert wrong == pytest.approx({"accuracy": 0.0, "nll": 1e4, "ece": 1.0, "rows": 5})


@pytest.mark.parametrize("batch", [1, 64, 500])
def test_is_the_same_in_any_batches(batch: int) -> None:
    with initialised(0):
        model = build("digits_cnn", SPEC)
    model.train()
    model.get_submodule("bn2").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = evaluate(model, DATA, batch=batch, device="cpu")
    assert model.training
    assert not model.get_submodule("bn2").training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    logits = model.eval()(IMAGES.pixels(None, SPEC))
    assert found == pytest.approx(slow_scores(logits, Y), rel=1e-5)


def test_needs_labels_in_range() -> None:
    unlabelled = Dataset("random", IMAGES, ImageSet(IMAGES.x), SPEC, "")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match="evaluate: random has no labels to test on"):
        evaluate(model, unlabelled)
    with pytest.raises(ValueError, match="y: expected labels from 0 to 3, found 4"):
        scores(LOGITS[:, :4], Y)
    with pytest.raises(ValueError, match="batch: expected an integer >= 1, found 0"):
        evaluate(model, DATA, batch=0)


def test_says_how_far_it_is() -> None:
    told: list[float] = []
    evaluate(build("digits_cnn", InputSpec((1, 8, 8), 5)), DATA, batch=100, advance=told.append)
    assert told == [100 / 203, 200 / 203, 1.0]
