"""Public code beside ours: what is timed of theirs is a step, and a folder that is not theirs is said to be none."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import data

from dfkd.types import InputSpec
from experiments.bench import public, synthesis

REGISTRY = """
from torch import nn
NORMALIZE_DICT = {"cifar10": {"mean": (0.5,), "std": (0.5,)}}
made = {}
def get_model(name, num_classes):
    made[name] = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return made[name]
"""
DATAFREE = """
from contextlib import nullcontext
from types import SimpleNamespace
import torch
class Normalizer:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std
rounds = []
class Inverted:
    def __init__(self, teacher, student, iterations, synthesis_batch_size, img_size, **settings):
        assert settings["num_classes"] == 10 and settings["device"] == "cpu"
        self.teacher, self.steps, self.shape = teacher, iterations, (synthesis_batch_size, *img_size)
    def synthesize(self):
        rounds.append(self.steps)
        for _ in range(self.steps):
            self.teacher(torch.rand(self.shape)).sum().backward()
    def sample(self):
        return torch.rand(self.shape).cuda()
class KLDiv:
    def __init__(self, T=1.0):
        self.temperature = T
utils = SimpleNamespace(Normalizer=Normalizer, dummy_ctx=nullcontext)
synthesis = SimpleNamespace(DeepInvSyntheiszer=Inverted)
criterions = SimpleNamespace(KLDiv=KLDiv)
models = SimpleNamespace(generator=SimpleNamespace(Generator=lambda **sizes: None))
"""
SCRIPT = """
import torchvision.models.utils
steps = []
def train(synthesizer, models, criterion, optimizer, args):
    assert criterion.temperature == 20.0 and args.kd_steps == 1
    student, teacher = models
    loss = (student(synthesizer.sample()) - teacher(synthesizer.sample())).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    steps.append(loss.item())
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the shape of theirs, for digits."""
    for name, text in {"registry": REGISTRY, "datafree": DATAFREE, "datafree_kd": SCRIPT}.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(synthesis, "NETS", ("digits_cnn", "digits_cnn"))
    monkeypatch.setattr(synthesis, "SPEC", InputSpec((1, 8, 8), 10))
    monkeypatch.setattr(synthesis, "BATCH", 10)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "torchvision.models.utils", sys)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return tmp_path


def test_times_steps_of_theirs_and_of_ours(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader, cuda = data.DataLoader, torch.Tensor.cuda
    with torch.random.fork_rng():
        assert public.main([str(checkout), "deepinv", "--pairs", "3"]) == 0
    assert (data.DataLoader, torch.Tensor.cuda) == (loader, cuda)  # nothing is left in ours' way
    line = json.loads(capsys.readouterr().out)
    kinds = ("theirs", "ours", "ours_bfloat16", "ours_compiled")
    sides = (*(f"student_{kind}" for kind in kinds), "synthesis_theirs", "synthesis_ours")
    assert all(line[side] > 0.0 for side in sides)
    for step in ("student", "synthesis"):
        share = line[f"{step}_ours"] / line[f"{step}_theirs"]
        assert line[f"{step}_ours / theirs"] == pytest.approx(share, abs=2e-3, rel=0.02)
    # three that count and one that does not; a step of synthesis ends where the next begins
    assert len(sys.modules["datafree_kd"].steps) == 4
    assert sys.modules["datafree"].rounds == [5]
    assert line["pairs"] == 3
    assert not (checkout / "images").exists()


def test_a_folder_that_is_not_theirs_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert public.main([str(tmp_path), "dfq"]) == 2
    assert capsys.readouterr().err == f"error: folder: expected a checkout with datafree_kd.py, found {tmp_path}\n"
