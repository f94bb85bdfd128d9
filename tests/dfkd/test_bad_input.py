"""Bad input, each kind of it: one line that names what and where, exit status 2, and nothing overwritten."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from dfkd import models
from dfkd.types import InputSpec
from samplers import Real

Command = Callable[..., Any]
Network = Callable[..., nn.Module]

MODELS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, k, how):
        super().__init__()
        self.how, self.head = how, nn.Linear(64, k)
    def forward(self, x):
        z = self.head(x.flatten(1))
        if self.how == "nan": return z * float("nan")
        if self.how == "pair": return z, z
        if self.how == "maps": return z[:, :, None]
        if self.how == "rounded": return self.head(x.detach().flatten(1))
        return z
def fine(): return Net(4, "")
def seven(): return Net(7, "")
def nan(): return Net(4, "nan")
def pair(): return Net(4, "pair")
def maps(): return Net(4, "maps")
def rounded(): return Net(4, "rounded")
def nothing(): return 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with networks of the user's beside it."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "their_nets.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refused(said: Any, *parts: str) -> None:
    """Status 2, nothing on stdout, and a last line that names all parts; before it only what was printed on the way."""
    assert said.status == 2, said
    assert said.out == ""
    *before, line = said.err.splitlines()
    assert all(word.startswith(("teacher: ", "control_teacher: ", "student: ", "model: ")) for word in before), said.err
    assert line.startswith("dfkd: ")
    for part in parts:
        assert part in line, line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


QUICK = ("sampler=uniform", "budget.steps=2", "budget.batch=8")


# -- teachers ----------------------------------------------------------------------------------------------------------


def weights_of(kind: str, network: Network, place: Path) -> Path:
    path = place.parent / f"{kind}.pt"
    if kind == "pickled":
        torch.save(network(), path)
    elif kind == "text":
        path.write_text("these are not weights")
    elif kind == "short":
        torch.save(network().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "wide":
        torch.save(network(width=6).state_dict(), path)
    elif kind == "other":
        torch.save(nn.Linear(3, 4).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("wide", ("teacher: weights:", "wide.pt does not fit digits_cnn", "other shapes:", ".weight (expected (4,")),
        ("other", ("teacher: weights:", "other.pt does not fit digits_cnn", "missing: ", "unexpected: weight, bias")),
        ("pickled", ("pickled.pt holds pickled objects, which can run code", "save the network's state_dict()")),
        ("text", ("text.pt",)),
        ("short", ("short.pt is not a readable weights file",)),
        ("absent", ("weights: expected a file, found nothing at", "absent.pt")),
    ],
)
def test_weights_that_cannot_be_used(
    run: Command, place: Path, network: Network, kind: str, parts: tuple[str, ...]
) -> None:
    path = weights_of(kind, network, place)
    teacher = [f"teacher.weights={path}", "teacher.model=digits_cnn", "teacher.options.width=4"]
    said = run("distill", *teacher, "teacher.shape=[1,8,8]", "teacher.classes=4", *QUICK, "--out", "out")
    refused(said, *parts)
    assert files(place) == {}
    assert not (place / "out").exists()


def test_weights_of_ours_cut_short(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    (place.parent / "w.safetensors").write_bytes(teachers[0].read_bytes()[:-9])
    refused(run("distill", f"teacher={place.parent / 'w.safetensors'}", *QUICK, "--out", "out"), "perhaps cut short")
    assert files(place) == {}


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("nodir", "found nothing at nodir"),
        ("mein", "found nothing at mein; the nearest is 'mine.safetensors'"),
        ("digit_cnn", "found nothing at digit_cnn; the nearest is 'digits_cnn'"),
        ("kept", "found a folder at kept; it holds one.safetensors, two.pt"),
        ("bare", "found a file; say teacher.weights=bare"),
    ],
)
def test_a_teacher_that_is_neither_weights_nor_a_model(
    run: Command, place: Path, teachers: tuple[Path, Path], word: str, part: str
) -> None:
    (place / "kept").mkdir()
    for name in ("mine.safetensors", "bare", "kept/one.safetensors", "kept/two.pt", "kept/card.json"):
        shutil.copyfile(teachers[0], place / name)
    said = run("distill", f"teacher={word}", *QUICK, "--out", "out")
    refused(said, f"teacher: expected a weights file, or a model with its data, {part}")
    assert not (place / "out").exists()


def test_weights_that_are_not_there_name_the_nearest(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    shutil.copyfile(teachers[0], place / "teacher.safetensors")
    shutil.copyfile(teachers[0], place / "other.safetensors")
    said = run("distill", "teacher=taecher.pt", "teacher.model=digits_cnn", *QUICK, "--out", "out")
    refused(said, "expected a file, found nothing at taecher.pt; the nearest is 'teacher.safetensors'")
    said = run("distill", "teacher=zzz.safetensors", *QUICK, "--out", "out")
    assert said.err.endswith("found nothing at zzz.safetensors\n")  # that the ends are alike is no likeness


def teacher_words(place: Path, function: str, **changed: str) -> list[str]:
    import importlib

    path = place.parent / f"{function}.pt"
    made = getattr(importlib.import_module("their_nets"), function)()
    torch.save({} if isinstance(made, int) else made.state_dict(), path)
    settings = {"model": f"their_nets:{function}", "weights": str(path), "shape": "[1,8,8]", "classes": "4"} | changed
    return [f"teacher.{key}={value}" for key, value in settings.items()]


@pytest.mark.parametrize(
    ("function", "changed", "parts"),
    [
        ("seven", {}, ("teacher: expected logits of shape (n, 4) for 4 classes, found (2, 7)",)),
        ("maps", {}, ("teacher: expected logits of shape (n, 4)", "found (2, 4, 1)")),
        ("pair", {}, ("teacher: expected a tensor of logits (n, k), found tuple",)),
        ("nan", {}, ("teacher: expected finite logits, found NaN",)),
        ("fine", {"shape": "[1,9,9]"}, ("teacher: cannot be asked images of shape (1, 9, 9): ",)),
        ("fine", {"shape": "[1,8]"}, ("teacher.shape: expected a list of 3 or null, found [1, 8]",)),
        ("fine", {"shape": "[0,8,8]"}, ("teacher: shape: expected (channels, height, width), each >= 1",)),
        ("fine", {"classes": "1"}, ("teacher: num_classes: expected an integer >= 2, found 1",)),
        ("fine", {"model": "their_nets:fien"}, ("teacher: model: 'their_nets' has no 'fien'", "nearest is 'fine'")),
        ("fine", {"model": "their_nest:fine"}, ("teacher: model: cannot import 'their_nest'",)),
        ("fine", {"model": "their_nets:nothing"}, ("expected a function that returns an nn.Module, found int",)),
        ("fine", {"model": "digit_cnn"}, ("teacher: model: unknown 'digit_cnn'; the nearest is 'digits_cnn'",)),
        ("fine", {"options": "{widht: 4}"}, ("teacher: their_nets:fine: option: unknown 'widht'",)),
        ("fine", {"normalise": "imagent"}, ("teacher: ", "'imagent'; the nearest is 'imagenet'")),
        (
            "fine",
            {"normalise": "[1,2]"},
            ("teacher.normalise: expected a name or [[mean...], [std...]]",),
        ),
        ("fine", {"normalise": "[[0.5],[0]]"}, ("teacher: ", "std")),
    ],
)
def test_teachers_that_cannot_teach(
    run: Command, place: Path, function: str, changed: dict[str, str], parts: tuple[str, ...]
) -> None:
    words = [*teacher_words(place, function, **changed), "student.model=lenet5"]
    refused(run("distill", *words, *QUICK, "student.model=their_nets:fine", "--out", "out"), *parts)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("student.model=digits_cn",), ("student: model: unknown 'digits_cn'; the nearest is 'digits_cnn'",)),
        (("student.model=digits_cnn", "student.options.widht=4"), ("option: unknown 'widht'; the nearest is 'width'",)),
        (("student.model=their_nets:seven",), ("student: expected logits of shape (n, 4)", "found (2, 7)")),
        (("student.model=their_nets:nothing",), ("student: ", "found int")),
        (("student={}",), ("student: expected a model, found none",)),
        (("student.weights=nowhere.safetensors",), ("expected a file, found nothing at nowhere.safetensors",)),
        (("device=gpu",), ("device: expected cpu, cuda or cuda:N, found 'gpu'",)),
        (("device=cuda:77",), ("device: found 'cuda:77', but this machine has ",)),
    ],
)
def test_students_and_devices_that_are_not_there(
    run: Command, place: Path, teachers: tuple[Path, Path], words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(run("distill", f"teacher={teachers[0]}", *words, *QUICK, "--out", "out"), *parts)
    assert not (place / "out").exists()


LOSSES = {
    "student's tap": (
        {"features": {"pairs": [["convv1", "conv1"]]}},
        "objective.features: module path of the student: unknown 'convv1'; the nearest is 'conv1'",
    ),
    "teacher's tap": (
        {"fkd": {"teacher": "conv9"}},
        "objective.fkd: module path of the teacher: unknown 'conv9'; the nearest is 'conv",
    ),
    "shapes": (
        {"features": {"pairs": [["conv1", "linear"]]}},
        "objective.features: cannot fit the map (4, 8, 8) of the student's 'conv1' to the vector (4,) of the teacher's",
    ),
    "no map": ({"attention": {"pairs": [["linear", "conv1"]]}}, "objective.attention: cannot fit the vector (4,)"),
    "no member": (
        {"kl": {"members": [1]}},
        "objective.kl of member 1: module path of the teacher: unknown 'members.1'",
    ),
    "cycle": (
        {"peers": {"edges": [["conv1", "conv2"], ["conv2", "conv1"]], "attached": True}},
        "objective.peers: edges: a cycle without a detach, conv1 -> conv2 -> conv1; leave attached false",
    ),
    "memory": (
        {"rkd_angle": {"max_bytes": 5000}},
        "objective.rkd_angle: the angles of 16 rows need 10752 bytes for each row, more than max_bytes=5000; set",
    ),
    "no sources": ({"kl": {"sources": [0]}}, "sources: expected inputs from several parts, such as a mixture's"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_that_cannot_be_used(run: Command, place: Path, teachers: tuple[Path, Path], kind: str) -> None:
    objective, part = LOSSES[kind]
    words = [f"objective={objective!r}", "budget.steps=2", "budget.batch=16", "student=digits_cnn"]
    words.append("student.options.width=4")
    refused(run("distill", f"teacher={teachers[0]}", "sampler=uniform", *words, "--out", "out"), part)
    said = run("compare", f"teacher={teachers[0]}", "samplers=[uniform]", *words, "--out", "out", "--workers", 1)
    refused(said, part)
    assert (place / "out").exists() == (kind == "no sources")  # which a batch alone shows


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("student's tap", ""),
        ("teacher's tap", ""),
        ("shapes", ""),
        ("memory", ""),
        ("student's tap", "[{}, {seed: 1}]"),
    ],
)
def test_no_teacher_is_trained_for_losses_that_cannot_be_used(
    run: Command, place: Path, quadrants: Path, kind: str, members: str
) -> None:
    objective, part = LOSSES[kind]
    words = [f"teacher.data={quadrants}", "teacher.model=digits_cnn", "teacher.options.width=4", "budget.batch=16"]
    words += [f"objective={objective!r}", "student={model: digits_cnn, options: {width: 4}}", "budget.steps=2"]
    words += [f"teacher.members={members}"] if members else []
    for command, inputs in (("distill", "sampler=uniform"), ("compare", "samplers=[uniform]")):
        said = run(command, *words, inputs, "--out", "out")
        refused(said, part)
        assert "training" not in said.err
        assert not (place / "out").exists()


def test_a_source_that_a_mixture_has_not(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    words = [f"teacher={teachers[0]}", "objective={kl: {sources: [2]}}", "budget.steps=2", "--out", "out"]
    mixture = "{mixture: {samplers: [uniform, gaussian]}}"
    part = "objective.kl.sources: expected places from 0 to 1, found [2], while mixture has 2 parts"
    refused(run("distill", *words, f"sampler={mixture}"), part)
    refused(run("compare", *words, f"samplers=[{mixture}]", "student=digits_cnn"), part)
    assert not (place / "out").exists()


def test_slopes_of_a_teacher_that_has_none(run: Command, place: Path) -> None:
    settings = ", ".join(word.removeprefix("teacher.").replace("=", ": ") for word in teacher_words(place, "rounded"))
    words = [f"teacher={{{settings}}}", "student=digits_cnn", "budget.steps=2", "--out", "out"]
    for loss in ("jacobian", "class_gradient"):
        part = f"{loss}: needs a teacher with input_grad; this teacher has logits, features, penultimate; kl, logit_mse"
        refused(run("distill", *words, f"objective={{{loss}: {{}}}}", "sampler=uniform"), part)
        refused(run("compare", *words, f"objective={{{loss}: {{}}}}", "samplers=[uniform]", "--workers", 1), part)
    assert not (place / "out").exists()


def test_members_with_other_classes(
    run: Command, place: Path, teachers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "five.safetensors"
    spec = InputSpec((1, 8, 8), 5)
    models.save(other, models.build("digits_cnn", spec), reference="digits_cnn", spec=spec)
    said = run("distill", f"teacher={{members: [{teachers[0]}, {other}]}}", *QUICK, "--out", "out")
    refused(
        said, "teacher.members: expected images of one shape with one number of classes, found (1, 8, 8) with 4 of m"
    )
    assert not (place / "out").exists()


def test_layers_to_compare_that_are_not_there(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    words = [f"teacher={teachers[0]}", "samplers=[uniform]", "student=digits_cnn", "--out", "out"]
    for pairs, part in (
        ("[[conv1, conv7]]", "module path of the teacher: unknown 'conv7'; the nearest is 'conv"),
        ("[[conv1]]", "evaluate.features: expected a list, each a list"),
        ("conv1", "evaluate.features: expected a list"),
    ):
        refused(run("compare", *words, f"evaluate.features={pairs}", "--workers", 1), part)
    assert not (place / "out").exists()


def test_a_model_to_evaluate_that_gives_no_logits(run: Command, place: Path, quadrants: Path) -> None:
    for function, part in (("seven", "found (2, 7)"), ("nan", "found NaN"), ("pair", "found tuple")):
        words = [word.removeprefix("teacher.") for word in teacher_words(place, function)[:2]]
        refused(run("evaluate", *words, f"data={quadrants}", "--json"), "model: expected", part)


def test_inversion_of_a_teacher_without_batchnorm(run: Command, place: Path) -> None:
    words = [*teacher_words(place, "fine"), "student.model=their_nets:fine", "budget.steps=2"]
    refused(run("distill", *words, "sampler=deep_inversion", "--out", "out"), "deep_inversion: needs a teacher with ")
    assert not (place / "out").exists()


# -- data --------------------------------------------------------------------------------------------------------------


def npz(path: Path, **changed: Any) -> Path:
    arrays: dict[str, Any] = {
        "x_train": np.zeros((8, 8, 8), np.uint8),
        "y_train": np.arange(8) % 4,
        "x_test": np.zeros((4, 8, 8), np.uint8),
        "y_test": np.arange(4),
        "classes": np.array(list("abcd")),
    }
    np.savez(path, **{key: value for key, value in (arrays | changed).items() if value is not None})
    return path


def bad_data(kind: str, folder: Path) -> str:
    folder.mkdir()
    path = folder / "d.npz"
    if kind == "empty":
        return str(folder)
    if kind == "no images":
        for name in ("a", "b"):
            (folder / name).mkdir()
            (folder / name / "x.txt").write_text("no image")
        return str(folder)
    if kind == "broken image":
        for name in ("a", "b"):
            (folder / name).mkdir()
            for number in range(5):
                (folder / name / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        return str(folder)
    if kind == "short":
        path.write_bytes(npz(path).read_bytes()[:-300])
    elif kind == "label":
        npz(path, y_train=np.array([0, 1, 2, 3, 4, 0, 0, 0]))
    elif kind == "negative label":
        npz(path, y_test=np.array([0, -1, 2, 3]))
    elif kind == "misspelt":
        npz(path, x_train=None, x_trian=np.zeros((8, 8, 8), np.uint8))
    elif kind == "pickled":
        npz(path, y_train=np.array([{}] * 8, dtype=object))
    elif kind == "classes":
        npz(path, classes=np.array(list("abcde")))
    elif kind == "shape":
        npz(path, x_train=np.zeros((8, 9, 9), np.uint8), x_test=np.zeros((4, 9, 9), np.uint8))
    return str(path)


DATA = {
    "empty": ("data: ",),
    "no images": ("data: ",),
    "broken image": ("data: ", ".png"),
    "absent": ("data: no such file or folder: ", "d.npz"),
    "short": ("d.npz is not a readable .npz file: perhaps cut short",),
    "label": ("expected labels from 0 to 3 in y_train of ", "found 4"),
    "negative label": ("expected labels from 0 to 3 in y_test of ", "found -1"),
    "misspelt": ("has no array 'x_train'; the nearest is 'x_trian'",),
    "pickled": ("it holds pickled objects",),
}


@pytest.mark.parametrize("kind", DATA)
def test_data_that_cannot_be_read(run: Command, place: Path, teachers: tuple[Path, Path], kind: str) -> None:
    source = bad_data(kind, place.parent / "data")
    refused(run("evaluate", f"weights={teachers[0]}", f"data={source}"), *DATA[kind])
    words = [f"teacher={teachers[0]}", f"sampler={{real: {{data: '{source}'}}}}", "budget.steps=2"]
    refused(run("distill", *words, "--out", "out"), *DATA[kind])
    words = [f"teacher={{weights: {teachers[0]}, data: '{source}'}}", "student=digits_cnn", "samplers=[uniform]"]
    refused(run("compare", *words, "--out", "out", "--workers", 1), *DATA[kind])
    assert files(place) == {}
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("kind", "part"), [("classes", "is for num_classes 4, the data has 5"), ("shape", "is for shape (1, 8, 8), the")]
)
def test_data_that_does_not_fit_the_weights(
    run: Command, place: Path, teachers: tuple[Path, Path], kind: str, part: str
) -> None:
    source = bad_data(kind, place.parent / "data")
    refused(run("evaluate", f"weights={teachers[0]}", f"data={source}"), "model: weights: ", part)
    words = [f"teacher={teachers[0]}", f"sampler={{real: {{data: '{source}'}}}}", "budget.steps=2"]
    refused(run("distill", *words, "--out", "out"), "data: expected images (1, 8, 8) of 4 classes, as the teacher")
    assert not (place / "out").exists()


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_with_other_files_is_left_alone(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("years of work")
    for name in ("teacher.safetensors", "student.safetensors", "results.jsonl"):
        (place / "out" / name).write_text("someone's")
    before = files(place)
    refused(run("distill", f"teacher={teachers[0]}", *QUICK, "--out", "out"), "out: out is not empty (it holds results")
    refused(run("compare", "budget.steps=1", "--out", "out"), "out: out is not empty", "holds no run; name another")
    assert files(place) == before


def test_a_folder_of_another_run_is_left_alone(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    assert run("distill", f"teacher={teachers[0]}", *QUICK, "--out", "out").status == 0
    before = files(place)
    for word, part in (
        ("budget.steps=3", "differs in budget.steps;"),
        ("sampler={uniform: {labelling: eval}}", "differs in sampler.uniform.labelling;"),
        ("sampler=gaussian", "differs in sampler.uniform, sampler.gaussian;"),
        (f"teacher={teachers[1]}", "differs in teacher.weights;"),
        ("optimiser.learning_rate=1e-3", "differs in optimiser.learning_rate;"),
    ):
        said = run("distill", f"teacher={teachers[0]}", *QUICK, word, "--out", "out")
        refused(said, "out: out holds another run, which ", part)
        assert files(place) == before
    said = run("compare", "budget.steps=1", "--out", "out")
    refused(said, "out: out holds another run, one of `dfkd distill`; name another folder")
    said = run("synthesize", "uniform", f"teacher={teachers[0]}", "--n", 2, "--out", "out")
    refused(said, "out: out holds another run, one of `dfkd distill`; name another folder")
    words = ["budget.steps=9", "budget.batch=9", "optimiser={name: sgd, learning_rate: 1, weight_decay: 0.5}", "seed=9"]
    said = run("distill", f"teacher={teachers[1]}", "sampler=uniform", *words, "--out", "out")
    refused(said, "which differs in teacher.weights, ", " and 1 more; name another folder")
    assert said.err.count(", ") == 5
    assert files(place) == before


def test_a_file_that_changed_under_its_name_is_found(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    shutil.copyfile(teachers[0], "t.safetensors")
    words = ["distill", "teacher=t.safetensors", *QUICK, "--out", "out"]
    assert run(*words).status == 0
    shutil.copyfile(teachers[1], "t.safetensors")
    before = files(place)
    refused(run(*words), "out: out was begun with another teacher of the same name")
    assert files(place) == before


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "\xff\x00", ""])
def test_a_folder_whose_settings_cannot_be_read(
    run: Command, place: Path, teachers: tuple[Path, Path], content: str
) -> None:
    (place / "out").mkdir()
    (place / "out" / "config.yaml").write_bytes(content.encode("latin-1"))
    before = files(place)
    refused(run("distill", f"teacher={teachers[0]}", *QUICK, "--out", "out"), "config.yaml", "name another folder")
    assert files(place) == before


@pytest.mark.parametrize("out", ["file/out", "file", "/proc/nowhere/out"])
def test_a_folder_that_cannot_be_written(run: Command, place: Path, teachers: tuple[Path, Path], out: str) -> None:
    (place / "file").write_text("a file")
    before = files(place)
    refused(run("distill", f"teacher={teachers[0]}", *QUICK, "--out", out), f"{out}: cannot make this folder")
    refused(run("compare", "budget.steps=1", "--out", out), f"{out}: cannot make this folder")
    if out != "file":
        said = run("teach", "data=digits", "budget.steps=1", "--out", f"{out}/t.safetensors")
        refused(said, "cannot make this folder")
    assert files(place) == before


@pytest.mark.usefixtures("place")
def test_settings_that_fail_leave_the_folder_free_for_better_ones(run: Command, teachers: tuple[Path, Path]) -> None:
    words = ["distill", f"teacher={teachers[0]}", "budget.steps=2", "budget.batch=8", "--out", "out"]
    refused(run(*words, "sampler={real: {data: nowhere.npz}}"), "no such file or folder: 'nowhere.npz'")
    assert run(*words, "sampler=uniform").status == 0


@pytest.mark.usefixtures("place")
def test_data_and_warm_starts_that_changed_under_their_names_are_found(
    run: Command, teachers: tuple[Path, Path], quadrants: Path
) -> None:
    shutil.copyfile(teachers[0], "s.safetensors")
    shutil.copyfile(quadrants, "d.npz")
    words = ["distill", f"teacher={teachers[0]}", "budget.steps=1", "budget.batch=8", "sampler={real: {data: d.npz}}"]
    words += ["student.weights=s.safetensors", "--out", "out"]
    assert run(*words).status == 0
    shutil.copyfile(teachers[1], "s.safetensors")
    refused(run(*words), "out: out was begun with another student of the same name")
    shutil.copyfile(teachers[0], "s.safetensors")
    arrays = dict(np.load(quadrants))
    np.savez("d.npz", **(arrays | {"x_train": arrays["x_train"] ^ 1}))
    refused(run(*words), "out: out was begun with another data of the same name")


def test_a_control_teacher_is_looked_at_before_the_teacher_is_trained(
    run: Command, place: Path, quadrants: Path
) -> None:
    words = ["compare", f"teacher={{model: digits_cnn, options: {{width: 4}}, data: {quadrants}}}"]
    words += ["student=digits_cnn", "samplers=[uniform]", "budget.steps=1", "--out", "out"]
    for control, part in (("nowhere.safetensors", "nowhere.safetensors"), ("{data: digits, model: lenet5}", "classes")):
        said = run(*words, f"control_teacher={control}")
        assert (said.status, "training" in said.err) == (2, False)
        assert part in said.err
        assert files(place) == {}


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_this_runs(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    for name, steps in (("one", 2), ("two", 3)):
        words = ["distill", f"teacher={teachers[0]}", "sampler=uniform", f"budget.steps={steps}", "budget.batch=8"]
        assert run(*words, "--out", name).status == 0
    shutil.copyfile("one/checkpoint", "two/checkpoint")
    before = files(place)
    refused(run(*words, "--out", "two"), "checkpoint: two/checkpoint belongs to another run")
    assert files(place) == before


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_checkpoint_cut_short(run: Command, place: Path, teachers: tuple[Path, Path], keep: int) -> None:
    words = ["distill", f"teacher={teachers[0]}", *QUICK, "--out", "out"]
    assert run(*words).status == 0
    file = place / "out" / "checkpoint"
    file.write_bytes(file.read_bytes()[:keep])
    before = files(place)
    refused(run(*words), "checkpoint: out/checkpoint is cut short or damaged; delete it to start again")
    assert files(place) == before
    file.unlink()
    assert run(*words).status == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_checkpoint_of_any_bytes(run: Command, place: Path, teachers: tuple[Path, Path], seed: int) -> None:
    words = ["distill", f"teacher={teachers[0]}", *QUICK, "--out", "out"]
    assert run(*words).status == 0
    file = place / "out" / "checkpoint"
    file.write_bytes(np.random.default_rng(seed).bytes(5000))
    refused(run(*words), "checkpoint: out/checkpoint ", "; delete it to start again")


def test_a_checkpoint_with_code_in_it(run: Command, place: Path, teachers: tuple[Path, Path]) -> None:
    words = ["distill", f"teacher={teachers[0]}", *QUICK, "--out", "out"]
    assert run(*words).status == 0
    torch.save(nn.Linear(2, 2), place / "out" / "checkpoint")
    refused(run(*words), "holds a pickled object, which could run code on loading", "; delete it to start again")


@pytest.mark.usefixtures("place")
def test_a_run_that_diverges_says_so(run: Command, teachers: tuple[Path, Path]) -> None:
    words = ["distill", f"teacher={teachers[0]}", "sampler=uniform", "budget.steps=40", "budget.batch=8"]
    said = run(*words, "optimiser.learning_rate=1e18", "--out", "out")
    assert said.status == 1
    assert said.out.startswith("diverged after ")
    assert "Try a smaller learning rate" in said.err


def test_a_teacher_whose_training_diverges(run: Command, place: Path, quadrants: Path) -> None:
    words = ["teach", f"data={quadrants}", "options.width=4", "budget.steps=40", "optimiser.learning_rate=1e18"]
    refused(run(*words, "--out", "t.safetensors"), "teacher: training diverged at step", "try a smaller learning rate")
    assert files(place) == {}


def test_a_teacher_that_was_stopped_is_trained_on(
    run: Command, place: Path, quadrants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM on the way; the same words then make the weights of a run that was never stopped."""
    words = ["teach", f"data={quadrants}", "options.width=4", "budget.steps=12", "budget.batch=8", "--out"]
    assert run(*words, "whole.safetensors").status == 0
    with monkeypatch.context() as patch:
        draw, calls = Real.draw, list[int]()

        def stopping(self: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(self, *arguments, **options)

        patch.setattr(Real, "draw", stopping)
        assert run(*words, "t.safetensors").status != 0
    assert len(calls) < 12
    assert {path.name for path in place.iterdir()} >= {".t.checkpoint"}
    assert not (place / "t.safetensors").exists()
    refused(run(*words, "t.safetensors", "budget.steps=13"), "checkpoint: .t.checkpoint belongs to another run")
    assert run(*words, "t.safetensors").status == 0
    assert not (place / ".t.checkpoint").exists()
    first, second = (load_file(f"{name}.safetensors") for name in ("whole", "t"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("place")
def test_the_student_is_by_default_built_as_the_teacher(run: Command, teachers: tuple[Path, Path]) -> None:
    said = run("distill", f"teacher={teachers[0]}", "--dry-run")
    assert yaml.safe_load(said.out)["student"] | {"weights": None} == {
        "model": "digits_cnn", "options": {"width": 4}, "weights": None, "normalise": "auto"}  # fmt: skip
    said = run("distill", "teacher={model: lenet5, options: {a: 1}, data: digits}", "--dry-run")
    assert yaml.safe_load(said.out)["student"]["options"] == {"a": 1}
