"""Published weights give their published accuracy, and the small teacher learns the digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from dfkd.data import Dataset, load
from dfkd.evaluate import evaluate
from dfkd.models import build, load_teacher
from dfkd.rng import initialised

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
TILES, SIDE = 50, 32  # the image sets are mosaics of 50 x 50 images

WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}


@pytest.fixture
def cifar10(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    """The first rows of the CIFAR-10 test set, by way of an .npz file, where the set is beside the checkout."""
    rows, folder = request.param, SHARED / "cifar10"
    if request.node.get_closest_marker("slow") and "slow" not in request.config.option.markexpr:
        pytest.skip("takes minutes; run with -m slow")
    if not folder.is_dir():
        pytest.skip("no CIFAR-10 beside the checkout")
    parts = []
    for file in sorted(folder.glob("test_*.webp"))[: -(-rows // TILES**2)]:
        mosaic = np.asarray(Image.open(file).convert("RGB")).reshape(TILES, SIDE, TILES, SIDE, 3)
        parts.append(mosaic.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3))
    x, y = np.concatenate(parts)[:rows], np.load(folder / "test_labels.npy")[:rows]
    classes = np.array(json.loads((folder / "classes.json").read_text()))
    np.savez(tmp_path / "cifar10.npz", x_train=x[:2], y_train=y[:2], x_test=x, y_test=y, classes=classes)
    return load(tmp_path / "cifar10.npz")


def accuracy(name: str, data: Dataset) -> float:
    weights = SHARED / "teachers" / WEIGHTS[name]
    teacher = load_teacher(name, data.spec, weights=weights, normalise="imagenet")
    return evaluate(teacher, data, device="cpu")["accuracy"]


@pytest.mark.shared
@pytest.mark.parametrize("cifar10", [1000], indirect=True)
def test_resnet20_on_a_thousand_images(cifar10: Dataset) -> None:
    assert len(cifar10.test) == 1000
    assert accuracy("resnet20", cifar10) == pytest.approx(0.9173, abs=0.02)
    unnormalised = load_teacher("resnet20", cifar10.spec, weights=SHARED / "teachers" / WEIGHTS["resnet20"])
    assert evaluate(unnormalised, cifar10, device="cpu")["accuracy"] < 0.9


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("cifar10", [10_000], indirect=True)
@pytest.mark.parametrize(("name", "published"), [("resnet20", 0.9173), ("resnet56", 0.9340)])
def test_whole_test_set(name: str, published: float, cifar10: Dataset) -> None:
    assert accuracy(name, cifar10) == pytest.approx(published, abs=0.0002 + 1e-9)


def test_digits_cnn_learns_the_digits() -> None:
    """300 steps of cross-entropy; a net or a split that is broken stays below 0.97 (median 0.989 over seeds)."""
    data = load("digits")
    assert data.train.y is not None
    with initialised(0):
        model = build("digits_cnn", data.spec)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.2, total_steps=300)
    generator = torch.Generator().manual_seed(0)
    x, y = data.train.pixels(None, data.spec), data.train.y
    for _ in range(300):
        rows = torch.randint(len(y), (128,), generator=generator)
        optimiser.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
        schedule.step()
    assert evaluate(model, data, device="cpu")["accuracy"] >= 0.97
