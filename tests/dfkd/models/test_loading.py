"""Weights in and out: what is accepted, what comes back, and one line for each thing that does not fit."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd.models import Normalised, build, load, load_teacher, read_card, read_spec, save
from dfkd.models.weights import METADATA_KEY
from dfkd.rng import initialised
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 10, class_names=tuple("0123456789"))
X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(seed: int = 0, **options: Any) -> nn.Module:
    """A network whose buffers have moved, too."""
    with initialised(seed):
        module = build("digits_cnn", SPEC, **options)
        module.train()(torch.rand(16, 1, 8, 8))
    return module.eval()


def write(path: Path, how: str, state: dict[str, Tensor]) -> None:
    if how == "plain":
        torch.save(state, path)
    elif how == "safetensors":
        save_file(state, path)
    elif how == "module.":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    elif how == "no counters":
        torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    else:
        torch.save({"epoch": 3, how: {f"module.{key}": value for key, value in state.items()}}, path)


@pytest.mark.parametrize("how", ["plain", "safetensors", "module.", "no counters", "state_dict", "model"])
def test_teacher_answers_as_the_network_that_was_written(how: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pth")
    module = trained()
    write(path, how, module.state_dict())
    teacher = load_teacher("digits_cnn", SPEC, weights=path)
    assert not any(part.training for part in teacher.modules())
    assert torch.equal(teacher(X), module(X))


def test_teacher_may_be_a_network_or_a_factory() -> None:
    module = trained().train()
    teacher = load_teacher(module, SPEC)
    assert teacher is module
    assert not teacher.training
    assert load_teacher(lambda: module, SPEC) is module
    with pytest.raises(ValueError, match=r"options: a network that is built already takes none, found \['width'\]"):
        load_teacher(module, SPEC, width=3)


def test_normalise_is_wrapped_around() -> None:
    module = trained()
    teacher = load_teacher(module, SPEC, normalise=((0.5,), (0.25,)))
    torch.testing.assert_close(teacher(X), module((X - 0.5) / 0.25))
    with pytest.raises(ValueError, match="normalise: the network given is Normalised already"):
        load_teacher(teacher, SPEC, normalise=((0.5,), (0.25,)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_saved_comes_back_bit_for_bit(wrapped: bool, tmp_path: Path) -> None:
    module = trained(width=5)
    module = Normalised(module, (0.5,), (0.3,)) if wrapped else module
    card = {"agreement": 0.98, "teacher": "resnet<56>", "seeds": [0, 1]}
    path = tmp_path / "deeper" / "student.safetensors"
    save(path, module.train(), reference="digits_cnn", spec=SPEC, options={"width": 5}, card=card)
    back = load(path)
    assert not any(part.training for part in back.modules())
    assert torch.equal(back(X), module.eval()(X))
    assert back.state_dict().keys() == module.state_dict().keys()
    assert read_card(path) == card
    assert read_spec(path) == SPEC
    for reference in (None, "digits_cnn"):
        assert torch.equal(load_teacher(reference, SPEC, weights=path)(X), module(X))
    assert torch.equal(load_teacher(build("digits_cnn", SPEC, width=5), SPEC, weights=path)(X), module(X))
    assert [entry.name for entry in path.parent.iterdir()] == ["student.safetensors"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_what_no_name_builds_needs_model(tmp_path: Path) -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    module, path = factory(), tmp_path / "student.safetensors"
    save(path, module, reference=None, spec=SPEC)
    with pytest.raises(
        ValueError, match=r"student.safetensors does not say how its network is built; pass it as model="
    ):
        load(path)
    assert torch.equal(load(path, model=factory)(X), module(X))
    assert torch.equal(load(path, model=factory())(X), module(X))


def test_two_names_of_one_tensor_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.second(self.first(x.flatten(1)))
            return found

    module = Tied()
    save(tmp_path / "tied.safetensors", module, reference=None, spec=SPEC)
    assert torch.equal(load(tmp_path / "tied.safetensors", model=Tied)(X), module(X))


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    save(path, trained(), reference="digits_cnn", spec=SPEC)
    before = path.read_bytes()

    def cut_short(tensors: object, filename: str, metadata: object) -> None:
        del tensors, metadata
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dfkd.models.loading.save_file", cut_short)
    with pytest.raises(ValueError, match=r"save: cannot write .*student.safetensors: No space left on device"):
        save(path, trained(1), reference="digits_cnn", spec=SPEC)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_save_replaces_the_file_at_once(tmp_path: Path) -> None:
    """Who has the old file open reads it to its end; a file written in place would change under them."""
    path = tmp_path / "student.safetensors"
    save(path, trained(), reference="digits_cnn", spec=SPEC)
    before = path.read_bytes()
    with path.open("rb") as reader:
        save(path, trained(1), reference="digits_cnn", spec=SPEC)
        assert reader.read() == before
    assert path.read_bytes() != before


def test_pickled_modules_are_refused_without_running_them(tmp_path: Path) -> None:
    for name, content in (("module.pt", trained()), ("inside.pt", {"model": trained()})):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} holds pickled objects, which can run code; save .*state_dict"):
            load_teacher("digits_cnn", SPEC, weights=tmp_path / name)


def faulty(name: str, tmp_path: Path) -> Path:
    """A weights file with one thing wrong."""
    state = trained().state_dict()
    path = tmp_path / name
    match name:
        case "missing.pth":
            for key in ("conv1.weight", "bn2.bias", "bn2.running_var", "linear.bias"):
                del state[key]
            torch.save(state, path)
        case "unexpected.pth":
            torch.save({**state, "head.weight": torch.zeros(2)}, path)
        case "shape.pth":
            torch.save({**state, "linear.weight": torch.zeros(100, 32)}, path)
        case "short.pth":
            torch.save(state, path)
            path.write_bytes(path.read_bytes()[:-500])
        case "short.safetensors":
            save_file(state, path)
            path.write_bytes(path.read_bytes()[:-500])
        case "text.pth":
            path.write_text("not weights")
        case "text.safetensors":
            path.write_text("not weights")
        case "list.pth":
            torch.save([1, 2], path)
        case "number.pth":
            torch.save({"epoch": 3, "lr": 0.1}, path)
        case "empty.pth":
            torch.save({}, path)
        case "folder":
            path.mkdir()
        case "metadata.safetensors":
            save_file(state, path, metadata={METADATA_KEY: json.dumps({"reference": "digits_cnn"})})
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pth", "does not fit digits_cnn; missing: conv1.weight, bn2.bias, bn2.running_var and 1 more$"),
        ("unexpected.pth", "does not fit digits_cnn; unexpected: head.weight$"),
        ("shape.pth", r"other shapes: linear.weight \(expected \(10, 32\), found \(100, 32\)\)$"),
        ("short.pth", "short.pth is not a readable weights file"),
        ("short.safetensors", "short.safetensors is not a readable safetensors file, perhaps cut short"),
        ("text.pth", "text.pth (is not a readable weights file|holds pickled objects)"),
        ("text.safetensors", "text.safetensors is not a readable safetensors file"),
        ("list.pth", "expected named tensors in .*list.pth, found a list"),
        ("number.pth", "expected named tensors in .*number.pth, found a int at 'epoch'"),
        ("empty.pth", "expected named tensors in .*empty.pth"),
        ("folder", "weights: expected a file, found a folder at .*folder"),
        ("nowhere.pth", "weights: expected a file, found nothing at .*nowhere.pth"),
        ("metadata.safetensors", "weights: expected reference, options, .* in the metadata of .*metadata.safetensors"),
    ],
)
def test_one_line_for_weights_that_do_not_fit(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_teacher("digits_cnn", SPEC, weights=faulty(name, tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_of_another_problem_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save(path, Normalised(trained(), (0.5,), (0.3,)), reference="digits_cnn", spec=SPEC)
    other = InputSpec((1, 8, 8), 9)
    with pytest.raises(ValueError, match=r"student.safetensors is for num_classes 10, the data has 9"):
        load_teacher(None, other, weights=path)
    with pytest.raises(ValueError, match=r"normalise: .*student.safetensors has its own normalisation"):
        load_teacher(None, SPEC, weights=path, normalise="mnist")


def test_a_name_must_come_from_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: expected a name, as no weights file says how the network is built"):
        load_teacher(None, SPEC)
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"expected a name, as .*w.pth does not say how the network is built"):
        load_teacher(None, SPEC, weights=tmp_path / "w.pth")
    save_file(trained().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w.safetensors: expected a file written by dfkd.models.save"):
        load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("card", [{"value": float("nan")}, {"value": torch.zeros(1)}])
def test_a_card_is_json(card: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="card, options: expected values that JSON can hold, found:"):
        save(tmp_path / "w.safetensors", trained(), reference="digits_cnn", spec=SPEC, card=card)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"save: cannot write .*w.safetensors"):
        save(tmp_path / "file" / "w.safetensors", trained(), reference="digits_cnn", spec=SPEC)
