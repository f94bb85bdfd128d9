"""`dfkd synthesize`: what a bank holds, that an interrupted one goes on to the same bytes, and what is refused."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dfkd import bank, models
from dfkd.data import load, read_unlabelled
from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.schemes.offline import make_problem
from dfkd.synthesis import Settings, synthesize
from dfkd.types import Batch, InputSpec, whole
from samplers import DeepInversion, Pooled, Uniform

Command = Callable[..., Any]
Teachers = tuple[Path, Path]
INVERTED = "sampler={pooled: {base: {deep_inversion: {steps: 2, batch: 8}}, round: 8}}"
SPEC = InputSpec((1, 8, 8), 4)


@pytest.fixture
def words(teachers: Teachers) -> list[str]:
    """A bank of 20 inverted images in shards of 8."""
    return ["synthesize", INVERTED, f"teacher={teachers[0]}", "rows=8", "--n", "20", "--out"]


def content(folder: Path) -> dict[str, bytes]:
    """All that a bank consists of; the manifest has the hour of nothing, but the folder's history."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(said: Any, *parts: str) -> None:
    assert (said.status, said.out) == (2, ""), said
    line = said.err.splitlines()[-1]
    assert line.startswith("dfkd: "), said.err
    for part in parts:
        assert part in line, line


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_bank_holds_draws_and_what_the_teacher_says_of_them(
    run: Command, tmp_path: Path, words: list[str], teachers: Teachers
) -> None:
    out = tmp_path / "bank"
    said = run(*words, out)
    assert said.status == 0, said.err
    index = json.loads((out / "index.json").read_text())
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "manifest.json", "index.json", "contact.png",
        *(f"shard-0000{i}.safetensors" for i in range(3)),
    }  # fmt: skip
    shards = [load_file(out / shard["file"]) for shard in index["shards"]]
    assert [len(shard["x"]) for shard in shards] == [8, 8, 4]
    x, logits, label, target = (torch.cat([s[name] for s in shards]) for name in ("x", "logits", "label", "target"))
    assert (x.dtype, x.shape, logits.shape, target.dtype) == (torch.uint8, (20, 1, 8, 8), (20, 4), torch.int64)
    teacher = models.load(teachers[0])
    with torch.no_grad():
        torch.testing.assert_close(teacher(x / 255.0), logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits.argmax(dim=1), label)
    assert index["counts"] == torch.bincount(label, minlength=4).tolist()
    assert index["as_aimed"] == int((target == label).sum())
    assert (index["rows"], index["wanted"], index["shape"], index["seed"]) == (20, 20, [1, 8, 8], 0)
    assert (index["label"], index["class_names"], index["labelling"]) == ("pooled-deep_inversion", list("abcd"), "eval")
    assert index["sampler"]["pooled"]["base"]["deep_inversion"]["steps"] == 2
    assert (index["data_free"], index["sources"], index["read"]) == (True, [], None)
    assert index["teacher"]["digest"] == json.loads((out / "manifest.json").read_text())["teacher"]["digest"]
    assert "torch" in index["versions"]
    # three draws of one round of 8: a step asks the teacher forward and backward, and each kept row once more
    assert index["teacher_images"] >= 3 * 8 * 2 * 2 + 20
    assert f"20 images, {index['teacher_images']} teacher images" in said.out


def test_draws_are_those_of_the_sampler_labelled_as_it_says(tmp_path: Path, network: Callable[..., Any]) -> None:
    """Noise is labelled by the statistics of the draw; the rows are those that the sampler gives, in order."""
    problem = make_problem(network(), network(1), SPEC, device="cpu")
    index = synthesize(Uniform(), problem, Settings(10, rows=6, seed=3), tmp_path, about())
    state = Uniform().init(problem, derive(3, "sampler"))
    for number, n in enumerate((6, 4)):
        drawn = Uniform().draw(state, problem, n, learn=False)
        shard = bank.read_shard(tmp_path, index, number)
        assert torch.equal(shard["x"], (drawn.x * 255).round().to(torch.uint8))
        assert drawn.mode == "batch"
        expected = problem.teacher(shard["x"] / 255.0, "batch").logits.detach()
        torch.testing.assert_close(shard["logits"], expected)
        assert (expected - problem.teacher(shard["x"] / 255.0).logits).abs().max() > 1e-3
    assert (index["labelling"], index["as_aimed"], "target" in shard) == ("batch", None, False)


def about(**changed: Any) -> dict[str, Any]:
    return {"label": "toy", "sampler": {"toy": {}}, "data_free": True, "sources": [], "teacher": {}} | changed


def test_pictures_are_written_by_the_teachers_class(run: Command, tmp_path: Path, words: list[str]) -> None:
    out = tmp_path / "bank"
    assert run(*words, out, "--png").status == 0
    index = json.loads((out / "index.json").read_text())
    folders = sorted(path.name for path in (out / "png").iterdir())
    assert folders == ["0-a", "1-b", "2-c", "3-d"]
    data, row = load(str(out)), 0
    assert data.train.y is not None
    for path in sorted((out / "png").rglob("*.png"), key=lambda path: path.name):
        assert int(path.stem) == row
        assert folders.index(path.parent.name) == int(data.train.y[row])
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), data.train.x[row, 0].numpy())
        row += 1
    assert row == index["rows"] == 20
    with Image.open(out / "contact.png") as sheet:
        assert sheet.size[0] < 1400
    before = content(out)
    (out / "png" / folders[int(data.train.y[3])] / "03.png").write_bytes(b"cut short")
    assert run(*words, out, "--png").status == 0
    assert content(out) == before


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole_bank(run: Command, tmp_path: Path, words: list[str]) -> dict[str, bytes]:
    assert run(*words, tmp_path / "whole").status == 0
    return content(tmp_path / "whole")


class Full:
    """A disk that is full when a file of this name is written for the n-th time."""

    def __init__(self, name: str, turn: int = 1) -> None:
        self.name, self.turn, self.write = name, turn, Path.write_bytes

    def __call__(self, path: Path, data: bytes) -> int:
        if self.name in path.name:
            self.turn -= 1
            if not self.turn:
                self.write(path, data[:50])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.write(path, data)


def test_a_full_disk_leaves_what_was_written_and_the_same_command_goes_on(
    run: Command, tmp_path: Path, words: list[str], whole_bank: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bank"
    full = Full("shard-00001")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, data: full(path, data))
        refused(run(*words, out), "cannot write", "shard-00001.safetensors: No space left on device")
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "manifest.json", "index.json", "checkpoint", "shard-00000.safetensors",
    }  # fmt: skip
    with pytest.warns(UserWarning, match=r"holds 8 of the 20 rows that were asked for; the command that began it"):
        data = load(str(out))
    assert len(data.train) == 8
    assert run(*words, out).status == 0
    assert content(out) == whole_bank


@pytest.mark.parametrize("name", ["index.json", "contact.png"])
def test_a_disk_that_is_full_later_on(
    run: Command,
    tmp_path: Path,
    words: list[str],
    whole_bank: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    full = Full(name, 2 if name == "index.json" else 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, data: full(path, data))
        refused(run(*words, tmp_path / "bank"), name, "No space left on device")
    assert run(*words, tmp_path / "bank").status == 0
    assert content(tmp_path / "bank") == whole_bank


class Killed(BaseException):
    """Nothing is caught and nothing is tidied up but what Python itself does."""


@pytest.mark.parametrize("moves", range(10))
def test_a_process_killed_anywhere_goes_on_to_the_same_bytes(
    run: Command,
    tmp_path: Path,
    words: list[str],
    whole_bank: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    moves: int,
) -> None:
    """After each of the files that a run moves into place: settings, manifest, then shard, index and checkpoint."""
    replace, calls = os.replace, list[str]()

    def once_more(source: Path, target: Path) -> None:
        if len(calls) == moves:
            raise Killed
        calls.append(target.name)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", once_more)
        with pytest.raises(Killed):
            run(*words, tmp_path / "bank")
    order = ["shard-00000.safetensors", "index.json", "checkpoint", "shard-00001.safetensors", "index.json"]
    order = ["config.yaml", "manifest.json", *order, "checkpoint", "shard-00002.safetensors", "index.json"]
    assert calls == order[:moves]
    assert run(*words, tmp_path / "bank").status == 0
    assert content(tmp_path / "bank") == whole_bank


def test_the_state_of_a_bank_that_was_deleted_is_not_taken_for_the_next_one(
    run: Command, tmp_path: Path, words: list[str], whole_bank: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after two draws, its index deleted, begun again and killed after the first draw was listed."""
    out, replace = tmp_path / "bank", os.replace

    def until(name: str, turn: int) -> Callable[[Path, Path], None]:
        left = [turn]

        def once_more(source: Path, target: Path) -> None:
            left[0] -= target.name == name
            if not left[0]:
                raise Killed
            replace(source, target)

        return once_more

    for name, turn in (("shard-00002.safetensors", 1), ("checkpoint", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", until(name, turn))
            with pytest.raises(Killed):
                run(*words, out)
        if name != "checkpoint":
            (out / "index.json").unlink()
    assert json.loads((out / "index.json").read_text())["rows"] == 8
    assert run(*words, out).status == 0
    assert content(out) == whole_bank


def test_a_process_killed_before_it_tidied_up(
    run: Command, tmp_path: Path, words: list[str], whole_bank: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "checkpoint" and path.exists():
            raise Killed
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            run(*words, tmp_path / "bank")
    assert run(*words, tmp_path / "bank").status == 0
    assert content(tmp_path / "bank") == whole_bank


def test_sigterm_ends_it_between_two_draws(
    run: Command, tmp_path: Path, words: list[str], whole_bank: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Pooled.draw

    def stopped(self: Any, *arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Pooled, "draw", stopped)
        said = run(*words, tmp_path / "bank")
    assert (said.status, said.err.splitlines()[-1]) == (130, "dfkd: interrupted; the same command continues")
    assert json.loads((tmp_path / "bank" / "index.json").read_text())["rows"] == 8
    assert run(*words, tmp_path / "bank").status == 0
    assert content(tmp_path / "bank") == whole_bank


def test_a_bank_that_is_whole_is_left_as_it_is(
    run: Command, tmp_path: Path, words: list[str], whole_bank: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Pooled, "draw", never)
    assert run(*words, tmp_path / "whole").status == 0
    assert content(tmp_path / "whole") == whole_bank


@dataclass(frozen=True)
class Learner:
    """Grey, the lighter the more it has learned from; or what `fault` says."""

    fault: str = ""
    seen: list[Any] = field(default_factory=list, hash=False, compare=False, repr=False)
    name: ClassVar[str] = "learner"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True

    def init(self, problem: Problem, seed: int) -> Stream:
        return Stream(seed, problem.device)

    def draw(self, state: Stream, problem: Problem, n: int, learn: bool = True) -> Batch:
        assert torch.is_grad_enabled()
        self.seen.append((n, learn))
        state.advance()
        shade = float("nan") if self.fault == "nan" and not learn else state.step / 100
        return Batch(torch.full((n, *problem.spec.shape), shade), labelling=whole(n, "eval"))

    def observe(self, state: Stream, batch: Batch, loss: Tensor) -> None:
        del state
        self.seen.append(len(batch) == len(loss))


def test_what_follows_the_student_learns_first_and_then_no_more(tmp_path: Path, network: Callable[..., Any]) -> None:
    learner, student = Learner(), network(1).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    problem = make_problem(network(), student, SPEC, device="cpu")
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    index = synthesize(learner, problem, Settings(5, rows=3, learn=2), tmp_path, about())
    assert learner.seen == [(8, True), True, (8, True), True, (3, False), (2, False)]
    assert index["learned_from"] == 2
    assert bank.read_shard(tmp_path, index, 0)["x"].unique().tolist() == [round(255 * 0.03)]
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training
    assert not any(p.grad is not None for p in student.parameters())


def test_draws_that_are_no_images(tmp_path: Path, network: Callable[..., Any]) -> None:
    problem = make_problem(network(), network(1), SPEC, device="cpu")
    with pytest.raises(ValueError, match="sampler: expected finite images, found others in draw 0; a lower"):
        synthesize(Learner("nan"), problem, Settings(5, learn=0), tmp_path, about())
    assert not list(tmp_path.iterdir())


# -- what it was made from ---------------------------------------------------------------------------------------------


def test_a_run_that_reads_a_bank_says_what_the_bank_was_made_from(
    run: Command, tmp_path: Path, words: list[str], teachers: Teachers, quadrants: Path
) -> None:
    """Of inverted images, and of a bank of real ones: neither makes the run that reads it data-free."""
    assert run(*words, tmp_path / "inverted").status == 0
    real = ["synthesize", "real", f"sampler.real.data={quadrants}", f"teacher={teachers[0]}", "--n", "12", "--out"]
    assert run(*real, tmp_path / "copied").status == 0
    for name, free in (("inverted", True), ("copied", False)):
        source = tmp_path / name
        short = [f"teacher={teachers[0]}", f"sampler={{real: {{data: {source}}}}}", "budget.steps=2", "budget.batch=8"]
        assert run("distill", *short, "--out", tmp_path / f"of {name}").status == 0
        manifest = json.loads((tmp_path / f"of {name}" / "manifest.json").read_text())
        assert (manifest["data_free"], manifest["sources"]) == (False, [str(source)])
        made = manifest["read"]["banks"][str(source)]
        assert (made["data_free"], made["rows"]) == (free, 20 if free else 12)
        assert made["teacher"] == {"digest": manifest["teacher"]["digest"]}
        if free:
            assert (made["label"], made["sources"], made["read"]) == ("pooled-deep_inversion", [], None)
        else:
            assert made["sources"] == [str(quadrants)]
            assert list(made["read"]["sources"]) == [str(quadrants)]
            assert made["read"]["digest"] == made["read"]["sources"][str(quadrants)]
    again = ["synthesize", "real", f"sampler.real.data={tmp_path / 'copied'}", f"teacher={teachers[0]}", "--n", "4"]
    assert run(*again, "--out", tmp_path / "copied twice").status == 0
    index = json.loads((tmp_path / "copied twice" / "index.json").read_text())
    inner = index["read"]["banks"][str(tmp_path / "copied")]
    assert (index["data_free"], inner["data_free"], inner["sources"]) == (False, False, [str(quadrants)])


def test_a_bank_that_is_another_one_now_is_found(
    run: Command, tmp_path: Path, words: list[str], teachers: Teachers
) -> None:
    source = tmp_path / "bank"
    assert run(*words, source).status == 0
    short = ["distill", f"teacher={teachers[0]}", f"sampler={{real: {{data: {source}}}}}", "budget.steps=1"]
    assert run(*short, "--out", tmp_path / "out").status == 0
    assert run(*words, source, "--png").status == 0  # pictures are no part of it
    assert run(*short, "--out", tmp_path / "out").status == 0
    shutil.rmtree(source)
    assert run(*words, source, "seed=1").status == 0
    refused(run(*short, "--out", tmp_path / "out"), "was begun with another data of the same name")


def test_a_bank_is_data_to_train_on_and_nothing_to_test_on(
    run: Command, tmp_path: Path, words: list[str], teachers: Teachers
) -> None:
    out = tmp_path / "bank"
    assert run(*words, out).status == 0
    index, data = json.loads((out / "index.json").read_text()), load(str(out))
    assert (len(data.train), len(data.test), data.spec.class_names) == (20, 0, tuple("abcd"))
    assert data.train.y is not None
    assert torch.bincount(data.train.y, minlength=4).tolist() == index["counts"]
    assert load(str(out), size=4, limit=5).train.x.shape == (5, 1, 4, 4)
    images, names = read_unlabelled(str(out), (3, 8, 8))
    assert (images.x.shape, names) == ((20, 3, 8, 8), tuple("abcd"))
    none = f"expected data with rows to test on, found none in {out}, a bank of draws"
    refused(run("evaluate", f"weights={teachers[0]}", f"data={out}"), f"evaluate: {none}")
    refused(run("teach", f"data={out}", "--out", tmp_path / "t.safetensors"), f"data: {none}")
    compared = ["compare", f"teacher={{data: {out}, model: digits_cnn}}", "student=digits_cnn", "samplers=[uniform]"]
    refused(run(*compared, "--out", tmp_path / "compared"), f"data: {none}")
    sampler = f"sampler={{real: {{data: {out}, split: test}}}}"
    refused(run("distill", f"teacher={teachers[0]}", sampler, "--out", tmp_path / "o"), "expected images in 'test'")
    assert not (tmp_path / "compared").exists()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        (["unifrom", "--n", "4"], ["sampler: unknown 'unifrom'; the nearest is 'uniform'"]),
        (["uniform", "--n", "0"], ["n: expected an integer >= 1, found 0"]),
        (["uniform", "--n", "-3"], ["n: expected an integer >= 1, found -3"]),
        (["uniform", "--n", "many"], ["--n", "integer"]),
        (["uniform"], ["--n: expected how many images, found none"]),
        (["--n", "4"], ["synthesize: expected a sampler, found none"]),
        (["uniform", "--n", "4", "rows=0"], ["rows: expected an integer >= 1, found 0"]),
        (["uniform", "--n", "4", "learn=-1"], ["learn: expected an integer >= 0, found -1"]),
        (["uniform", "n=2.5"], ["n: expected a whole number, found 2.5"]),
        (["uniform", "--n", "4", "sampler.uniform.labeling=eval"], ["unknown 'labeling'; the nearest is 'labelling'"]),
        (["uniform", "--n", "4", "sede=1"], ["settings: unknown 'sede'; the nearest is 'seed'"]),
        (["their_samplers:Stripes", "--n", "4"], ["sampler: cannot import 'their_samplers'"]),
        (["mine.yaml", "--n", "4"], ["mine.yaml: expected a YAML file or KEY=VALUE, found no such file"]),
        (["real", "--n", "4"], ["data: expected images (1, 8, 8) of 4 classes, as the teacher takes"]),
        (["uniform", "--n", "4", "reference=digts"], ["data: unknown 'digts'", "the nearest is 'digits'"]),
    ],
)
def test_settings_that_cannot_be(
    run: Command, tmp_path: Path, teachers: Teachers, changed: list[str], parts: list[str]
) -> None:
    said = run("synthesize", *changed, f"teacher={teachers[0]}", "--out", tmp_path / "bank")
    assert said.status == 2, said
    for part in parts:
        assert part in said.err.splitlines()[-1], said.err
    assert not (tmp_path / "bank").exists()


def test_a_folder_that_is_not_free(run: Command, tmp_path: Path, teachers: Teachers, words: list[str]) -> None:
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", Path("/proc/nowhere/bank")):
        refused(run(*words, out), f"{out}: cannot make this folder")
    refused(run(*words[:-1]), "--out: expected a folder to write to, found none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    refused(run(*words, tmp_path / "full"), "is not empty (it holds thesis.tex) and holds no run")
    assert (
        run("distill", f"teacher={teachers[0]}", "sampler=uniform", "budget.steps=1", "--out", tmp_path / "d").status
        == 0
    )
    before = content(tmp_path / "d")
    refused(run(*words, tmp_path / "d"), "holds another run, one of `dfkd distill`; name another folder")
    assert content(tmp_path / "d") == before
    assert run(*words, tmp_path / "bank").status == 0
    before = content(tmp_path / "bank")
    for word, part in (
        ("rows=7", "differs in rows;"),
        ("n=21", "differs in n;"),
        ("seed=1", "differs in seed;"),
        (f"teacher={teachers[1]}", "differs in teacher.weights;"),
        ("sampler.pooled.round=9", "differs in sampler.pooled.round;"),
    ):
        told = [w for w in words if not (word.startswith("n=") and w in ("--n", "20"))]
        refused(run(*told, tmp_path / "bank", word), "holds another run, which ", part)
        assert content(tmp_path / "bank") == before


def damaged(kind: str, out: Path) -> None:
    file = out / ("index.json" if kind.startswith("index") else "shard-00001.safetensors")
    raw = bytearray(file.read_bytes())
    if kind.endswith("short"):
        file.write_bytes(raw[:-30])
    elif kind == "shard missing":
        file.unlink()
    elif kind == "shard flipped":
        raw[-1] ^= 1
        file.write_bytes(raw)
    elif kind == "shard another's":
        shutil.copyfile(out / "shard-00000.safetensors", file)
    else:
        index = json.loads(raw)
        if kind == "index of another kind":
            index["format"] = "their bank"
        elif kind == "index without shards":
            del index["shards"]
        elif kind == "index that leads away":
            index["shards"][0]["file"] = "../secret"
        elif kind == "index of other images":
            index["shape"] = [3, 4, 4]
        file.write_text(json.dumps(index))


DAMAGES = {
    "shard short": "shard-00001.safetensors is damaged: it is not what the bank's index says; delete ",
    "shard missing": "shard-00001.safetensors cannot be read (No such file or directory); delete ",
    "shard flipped": "shard-00001.safetensors is damaged",
    "shard another's": "shard-00001.safetensors is damaged",
    "index short": "index.json cannot be read as the index of a bank",
    "index of another kind": "index.json: expected the index of a bank, 'dfkd bank 1', found 'their bank'",
    "index without shards": "index.json: expected shards as list, found None",
    "index that leads away": "index.json: expected shards beside it, found '../secret'",
    "index of other images": "shard-00000.safetensors: expected x as (torch.uint8, (8, 3, 4, 4)), found ",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_and_mended_as_it_says(
    run: Command, tmp_path: Path, teachers: Teachers, words: list[str], kind: str
) -> None:
    out = tmp_path / "bank"
    assert run(*words, out).status == 0
    before = content(out)
    damaged(kind, out)
    short = ["distill", f"teacher={teachers[0]}", f"sampler={{real: {{data: {out}}}}}", "budget.steps=1"]
    refused(run(*short, "--out", tmp_path / "out"), "data: ", DAMAGES[kind])
    refused(run(*words, out), "data: ", DAMAGES[kind])
    if kind.startswith("shard"):
        (out / "index.json").unlink()
        assert run(*words, out).status == 0
        assert content(out) == before


def test_a_bank_of_other_images_is_refused(run: Command, tmp_path: Path, teachers: Teachers) -> None:
    words = ["synthesize", "uniform", "teacher.model=digits_cnn", "teacher.data=digits", "teacher.budget.steps=2"]
    assert run(*words, "--n", 5, "--out", tmp_path / "bank").status == 0
    sampler = f"sampler={{real: {{data: {tmp_path / 'bank'}}}}}"
    said = run("distill", f"teacher={teachers[0]}", sampler, "budget.steps=1", "--out", tmp_path / "out")
    refused(said, "data: expected images (1, 8, 8) of 4 classes, as the teacher takes, found (1, 8, 8) of 10 classes")


def test_pictures_of_two_channels_are_refused_before_anything_is_drawn(run: Command, tmp_path: Path) -> None:
    spec = InputSpec((2, 8, 8), 4)
    network = models.build("digits_cnn", spec, width=4)
    models.save(tmp_path / "t.safetensors", network, reference="digits_cnn", spec=spec, options={"width": 4})
    words = ["synthesize", "uniform", f"teacher={tmp_path / 't.safetensors'}", "--n", "4", "--out", tmp_path / "bank"]
    refused(run(*words, "--png"), "--png: expected images of 1 or 3 channels, found 2")
    assert not (tmp_path / "bank").exists()
    assert run(*words).status == 0


def test_a_dry_run_and_files_of_other_commands(run: Command, tmp_path: Path, teachers: Teachers) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"teacher: {teachers[0]}\nsampler: gaussian\nbudget: {{steps: 3}}\n")
    said = run("synthesize", file, "--n", "3", "--dry-run")
    assert "not used here: budget" in said.err
    settings = yaml.safe_load(said.out)
    assert (settings["n"], list(settings["sampler"])) == (3, ["gaussian"])
    assert list(yaml.safe_load(run("synthesize", "uniform", file, "--n", "3", "--dry-run").out)["sampler"]) == [
        "gaussian"
    ]


def test_the_samplers_used_here_are_samplers() -> None:
    assert all(isinstance(s, Sampler) for s in (Learner(), DeepInversion(), Uniform()))
