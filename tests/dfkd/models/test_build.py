"""References: names, a user's own functions, torchvision, and what misspelt ones get."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfkd.models import MODELS, SUMMARIES, build, reference_of
from dfkd.models.digits_cnn import digits_cnn
from dfkd.models.wrn import parse_wrn
from dfkd.types import InputSpec

DIGITS = InputSpec((1, 8, 8), 10)
CIFAR = InputSpec((3, 32, 32), 5)

MINE = """
from torch import nn

SCALE = 2
NETWORK = nn.Flatten()

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def sized(spec, hidden=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, spec.num_classes))

def classes(num_classes=1000):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def needy(hidden):
    return nn.Linear(64, hidden)

def open_ended(**options):
    return nn.Linear(64, options["out"])

def nothing():
    return None
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, which is not on the path of an installed command."""
    (tmp_path / "my_dfkd_nets.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield "my_dfkd_nets"
    sys.modules.pop("my_dfkd_nets", None)


def out(module: nn.Module) -> int:
    return int(module(torch.zeros(1, 1, 8, 8)).shape[1])


def test_every_model_has_a_summary() -> None:
    assert list(MODELS) == list(SUMMARIES)


@pytest.mark.parametrize("name", ["wrn-22-3", "wrn_22_3", "WRN-22-3"])
def test_reads_any_wide_resnet(name: str) -> None:
    assert parse_wrn(name) == (22, 3)
    assert build(name, CIFAR).get_submodule("linear").weight.shape == (5, 192)


def test_passes_options_on() -> None:
    assert build("digits_cnn", DIGITS, width=4).get_submodule("conv1").weight.shape == (4, 1, 3, 3)


def test_calls_a_function_of_the_user(mine: str) -> None:
    spec = InputSpec((1, 8, 8), 7)
    assert out(build(f"{mine}:plain", spec)) == 10
    assert out(build(f"{mine}:sized", spec)) == 7
    assert build(f"{mine}:sized", spec, hidden=9)[1].weight.shape == (9, 64)  # type: ignore[index]
    assert out(build(f"{mine}:classes", spec)) == 7
    assert out(build(f"{mine}:classes", spec, num_classes=3)) == 3
    assert build(f"{mine}:open_ended", spec, out=2).weight.shape == (2, 64)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("plian", {}, "model: 'my_dfkd_nets' has no 'plian'; the nearest is 'plain'"),
        ("SCALE", {}, "expected a function that builds a network, found 'my_dfkd_nets:SCALE', a int"),
        ("NETWORK", {}, "expected a function that builds a network, found 'my_dfkd_nets:NETWORK', a Flatten"),
        ("needy", {}, "my_dfkd_nets:needy: its parameter 'hidden' has no default; give it as an option"),
        ("sized", {"hiden": 3}, "my_dfkd_nets:sized: option: unknown 'hiden'; the nearest is 'hidden'"),
        ("nothing", {}, "expected a function that returns an nn.Module, found NoneType"),
    ],
)
def test_says_what_is_wrong_with_a_function(mine: str, function: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(f"{mine}:{function}", DIGITS, **options)


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("digit_cnn", {}, "model: unknown 'digit_cnn'; the nearest is 'digits_cnn'"),
        ("resnet21", {}, "model: unknown 'resnet21'; the nearest is 'resnet"),
        ("wrn-16", {}, "model: unknown 'wrn-16'; the nearest is 'wrn-16-"),
        ("digits_cnn", {"widht": 3}, "digits_cnn: option: unknown 'widht'; the nearest is 'width'"),
        ("resnet20", {"depth": 32}, "resnet20: option: unknown 'depth'"),
        ("no_such_module_here:net", {}, "model: cannot import 'no_such_module_here'"),
        (":net", {}, "model: cannot import ''"),
        ("torchvision:resnet19", {}, "torchvision model: unknown 'resnet19'; the nearest is 'resnet1"),
        ("torchvision:resnet18", {}, "torchvision:resnet18: expected images of 3 channels, found 1"),
    ],
)
def test_names_the_nearest(reference: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(reference, DIGITS, **options)


def test_builds_torchvision_models() -> None:
    module = build("torchvision:squeezenet1_1", CIFAR).eval()
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"torchvision:squeezenet1_1: .*'widht'"):
        build("torchvision:squeezenet1_1", CIFAR, widht=3)


def test_takes_a_factory_but_no_network() -> None:
    factory: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    first, second = build(factory, DIGITS), build(factory, DIGITS)
    assert first is not second
    with pytest.raises(ValueError, match="expected a name or a function that builds a network, found a network"):
        build(first, DIGITS)


def test_knows_how_another_process_finds_a_factory() -> None:
    assert reference_of(digits_cnn) == "dfkd.models.digits_cnn:digits_cnn"
    assert reference_of(lambda: nn.Flatten()) is None

    def local() -> nn.Module:
        return nn.Flatten()

    assert reference_of(local) is None
