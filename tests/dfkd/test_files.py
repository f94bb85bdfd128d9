"""Files are there whole or as they were, and one process at a time writes where it says so."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dfkd import files
from dfkd.files import alone_with, make_folder, replace_file, replacing

from .conftest import Alone


def test_replaces_at_once_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x"
    replace_file(path, b"one")
    with path.open("rb") as reader:
        replace_file(path, b"two")
        assert reader.read() == b"one"  # who has it open reads the old one to its end
    assert path.read_bytes() == b"two"
    assert [file.name for file in path.parent.iterdir()] == ["x"]


def half_written(path: Path, error: BaseException) -> None:
    with replacing(path, "thing") as draft:
        draft.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_after_an_error_the_old_file_stands(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x"
    replace_file(path, b"one")
    with pytest.raises(ValueError if isinstance(error, OSError) else type(error)):
        half_written(path, error)
    assert path.read_bytes() == b"one"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_says_what_could_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^thing: cannot write .*/x: No space left$"):
        half_written(tmp_path / "x", OSError(28, "No space left"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^file: cannot write .*/file/x: (Not a directory|File exists)$"):
        replace_file(tmp_path / "file" / "x", b"")
    with pytest.raises(ValueError, match=r"/file: cannot make this folder \(File exists\)$"):
        make_folder(tmp_path / "file")


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
    replace_file(tmp_path / "x", b"one")
    assert order[:2] == ["fsync", "replace"]


def test_has_the_rights_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    replace_file(tmp_path / "x", b"")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_files_of_writers_that_keep_to_themselves_are_as_readable_as_others(tmp_path: Path) -> None:
    """safetensors makes files that only their owner can read."""
    with replacing(tmp_path / "weights") as draft:
        save_file({"x": torch.zeros(1)}, draft)
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("weights", "other")]
    assert modes[0] == modes[1]


# -- alone -------------------------------------------------------------------------------------------------------------


def test_one_process_is_alone_with_a_file_until_it_ends(tmp_path: Path, other_process: Alone) -> None:
    file, linked = tmp_path / "deep" / "lock", tmp_path / "linked"
    file.parent.mkdir()
    linked.symlink_to(file.parent)
    with other_process(file) as process:
        for same in (file, tmp_path / "deep" / ".." / "deep" / "lock", linked / "lock"):
            with pytest.raises(BlockingIOError), alone_with(same):
                raise AssertionError("two are alone")
        process.kill()  # as by the system, with no time to let go
        with alone_with(file, wait=True):
            assert file.exists()
    with alone_with(file), alone_with(linked / "lock"), alone_with(tmp_path / "lock"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "linked"]


def test_who_waits_comes_in_when_the_other_has_left(tmp_path: Path, other_process: Alone) -> None:
    file, left = tmp_path / "lock", tmp_path / "left"
    with other_process(file, seconds=0.5, left=left), alone_with(file, wait=True):
        assert left.exists()
        with pytest.raises(subprocess.CalledProcessError), other_process(file):  # the other took its file away
            raise AssertionError("two are alone")
    with pytest.raises(RuntimeError, match="inside"), alone_with(file):
        raise RuntimeError("inside")
    with other_process(file):  # it was let go of
        pass


def test_it_is_held_until_the_last_has_left(tmp_path: Path, other_process: Alone) -> None:
    file = tmp_path / "lock"
    first, second = alone_with(file), alone_with(file)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as another thread would, not the one that came last
    with pytest.raises(subprocess.CalledProcessError), other_process(file):
        raise AssertionError("two are alone")
    second.__exit__(None, None, None)
    with other_process(file):
        pass


@pytest.mark.parametrize("without", ["module", "locks", "folder"])
def test_without_locks_nothing_is_held(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_process: Alone
) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    file = tmp_path / "lock"
    with other_process(file):
        if without == "module":
            monkeypatch.setattr(files, "_LOCKS", None)
        elif without == "locks":
            monkeypatch.setattr("fcntl.flock", refused)
        else:
            file = tmp_path / "missing" / "lock"
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        with alone_with(file):
            pass
        assert not before or len(os.listdir("/proc/self/fd")) == before
