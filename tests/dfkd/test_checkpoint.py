"""Written whole or not at all; refused in one line where it cannot be this run's."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd import checkpoint

STATE: dict[str, Any] = {
    "weights": torch.arange(5.0),
    "bytes": torch.arange(6, dtype=torch.uint8),
    "steps": 12,
    "curve": [{"loss": 0.5, "step": 3}],
    "nested": {"none": None, "list": [torch.ones(2), 3], "word": "x"},
}


def test_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.pt"
    checkpoint.save(path, STATE, "mine")
    found = checkpoint.load(path, "mine")
    assert torch.equal(found["weights"], STATE["weights"])
    assert found["bytes"].dtype == torch.uint8
    assert (found["steps"], found["curve"], found["nested"]["none"]) == (12, STATE["curve"], None)
    assert torch.equal(found["nested"]["list"][0], torch.ones(2))
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]


class FullOnce:
    """A file whose third write finds the disk full, and the later ones find room again: the writer of torch, which goes
    on to write the end of its file, then says so in words of its own."""

    def __init__(self, file: Any) -> None:
        self.file, self.writes = file, 0

    def __enter__(self) -> "FullOnce":
        return self

    def __exit__(self, *given: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        self.writes += 1
        if self.writes == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written: int = self.file.write(content)
        return written


def test_a_full_disk_is_one_line_whoever_notices_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, of = tmp_path / "run.pt", Path.open
    checkpoint.save(path, STATE, "mine")
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode: FullOnce(of(self, mode)))
        with pytest.raises(ValueError, match=r"^checkpoint: cannot write .*run.pt: No space left on device$"):
            checkpoint.save(path, STATE, "mine")
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, STATE, "mine")
    whole, save = path.read_bytes(), torch.save

    def cut(content: object, file: Any) -> None:
        save(content, file)
        file.truncate(100)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(ValueError, match=r"checkpoint: cannot write .*run.pt: No space left"):
        checkpoint.save(path, {**STATE, "steps": 99}, "mine")
    assert path.read_bytes() == whole
    assert checkpoint.load(path, "mine")["steps"] == 12


def test_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        order.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    checkpoint.save(tmp_path / "run.pt", STATE, "mine")
    assert order[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95, 0.999])
def test_refuses_one_that_is_cut_short(tmp_path: Path, share: float) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, STATE, "mine")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"checkpoint: .*run.pt (is cut short or damaged|is not a checkpoint)"):
        checkpoint.load(path, "mine")


def test_refuses_another_runs(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, STATE, "mine")
    with pytest.raises(ValueError, match=r"belongs to another run; expected 'yours', found 'mine'"):
        checkpoint.load(path, "yours")


def test_refuses_a_pickled_module(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"run.pt holds a pickled object, which could run code"):
        checkpoint.load(path, "mine")


@pytest.mark.parametrize("content", [{"weights": torch.ones(2)}, [1, 2], torch.ones(2)])
def test_refuses_what_is_no_run(tmp_path: Path, content: object) -> None:
    path = tmp_path / "run.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"run.pt is not a checkpoint of a run"):
        checkpoint.load(path, "mine")


def test_refuses_a_text_file_a_folder_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("step: 3\n")
    with pytest.raises(ValueError, match=r"text.pt (is not a checkpoint|is cut short or damaged)"):
        checkpoint.load(tmp_path / "text.pt", "mine")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        checkpoint.load(tmp_path, "mine")
    with pytest.raises(ValueError, match=r"cannot read .*none.pt: No such file"):
        checkpoint.load(tmp_path / "none.pt", "mine")


def test_names_a_folder_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/run.pt: (Not a directory|File exists)"):
        checkpoint.save(tmp_path / "file" / "run.pt", STATE, "mine")


def test_every_error_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError) as caught:
        checkpoint.load(path, "mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("threads", 64, "threads 64"),
        ("versions", {"torch": "1.0"}, "torch 1.0"),
        ("device", "cuda", "device cuda"),
    ],
)
def test_warns_where_steps_may_round_differently(tmp_path: Path, part: str, value: object, message: str) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, STATE, "mine")
    content: dict[str, Any] = torch.load(path, weights_only=True)
    torch.save({**content, part: value}, path)
    with pytest.warns(RuntimeWarning, match=message):
        found = checkpoint.load(path, "mine")
    weights: Tensor = found["weights"]
    assert torch.equal(weights, STATE["weights"])


@pytest.mark.parametrize("there", [False, True])
def test_what_was_on_another_gpu_goes_to_where_the_run_is(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be there one here or not; a machine of fewer must not take the file for a damaged one."""
    path = tmp_path / "run.pt"
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:5")
        checkpoint.save(path, STATE, "mine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    found = checkpoint.load(path, "mine", "cpu")
    assert found["weights"].device.type == "cpu"
    assert torch.equal(found["weights"], STATE["weights"])


def test_refuses_one_of_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, STATE, "mine")
    content: dict[str, Any] = torch.load(path, weights_only=True)
    torch.save({**content, "world": 4}, path)
    with pytest.raises(ValueError, match="was written by 4 processes, expected 1"):
        checkpoint.load(path, "mine")
