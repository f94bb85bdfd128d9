"""Memory that was freed is there for the next step, in processes that are ours and that nobody has tuned."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dfkd import cli
from dfkd.allocator import keep_freed_memory
from dfkd.jobs import run_all

resource = pytest.importorskip("resource", reason="page faults are counted on Unix alone")
# mallopt is glibc's alone: elsewhere keep_freed_memory does nothing that could be measured
measured = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")

STEPS, BLOCKS, MIB = 10, 5, 48
PAGES = MIB * 2**20 // os.sysconf("SC_PAGE_SIZE")
FEW = 0.5 * STEPS * BLOCKS  # each costs its pages anew where nothing is kept


def tuned(name: str) -> bool:
    return name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"


def faults() -> float:
    """Page faults of so many steps that each make so many blocks, for as many pages as a block has."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        x = torch.ones(MIB * 2**18)
        for _ in range(BLOCKS - 1):
            x = x + 1.0
        del x
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / PAGES


@measured
def test_blocks_are_paid_for_in_the_first_steps_alone() -> None:
    clean = {name: value for name, value in os.environ.items() if not tuned(name)}
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean, timeout=120)
    assert float(done.stdout) < FEW


@pytest.mark.parametrize("accepts", [True, False])
def test_both_limits_or_none(accepts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old glibc refuses the first; the second alone would make every block cost its pages anew."""
    asked: list[tuple[int, int]] = []

    def mallopt(which: int, value: int) -> int:
        asked.append((which, value))
        return int(accepts)

    for name in filter(tuned, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert asked == [(-3, 80 * 2**20), (-1, 512 * 2**20)][: 2 if accepts else 1]


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_who_has_tuned_it_is_not_overruled(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked the allocator"))
    keep_freed_memory()


def job(settings: None, number: int) -> float:
    del settings, number
    return faults()


@measured
def test_workers_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(tuned, list(os.environ)):
        monkeypatch.delenv(name)
    assert max(run_all(None, [(job, (0,)), (job, (1,))], 2, lambda _: None)) < FEW


def test_a_command_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(True))
    monkeypatch.setattr(sys, "argv", ["dfkd", "list", "losses"])
    with pytest.raises(SystemExit):
        cli.main()
    assert asked == [True]


if __name__ == "__main__":
    keep_freed_memory()
    print(faults())
