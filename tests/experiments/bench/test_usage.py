"""The most memory that a block needed, told where it was freed before the block ended."""

from pathlib import Path

import pytest
import torch

from experiments.bench import usage
from experiments.bench.usage import peak, resident

CPU = torch.device("cpu")
MIB = 2**20
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


@needs_proc
def test_what_was_freed_counts() -> None:
    with peak(CPU) as nothing:
        pass
    with peak(CPU) as found:
        before = resident(CPU)
        block = torch.ones(64 * MIB // 4)
        assert resident(CPU) - before > 50 * MIB
        del block
    assert nothing.bytes is not None
    assert found.bytes is not None
    assert nothing.bytes < 8 * MIB
    assert 60 * MIB < found.bytes < 80 * MIB
    assert found.total is not None
    assert found.total >= before + 50 * MIB
    with peak(CPU) as after:
        torch.ones(8)
    assert after.bytes is not None
    assert after.bytes < 8 * MIB  # the mark of the block before is forgotten


@needs_proc
def test_what_was_kept_for_later_counts() -> None:
    """Blocks too small to be given back one by one, freed before."""
    kept = [torch.ones(MIB // 64) for _ in range(64 * 16)]
    kept.clear()
    with peak(CPU) as found:
        kept = [torch.ones(MIB // 64) for _ in range(64 * 16)]
    assert found.bytes is not None
    assert found.bytes > 55 * MIB
    del kept


def test_where_it_cannot_be_told_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(usage, "PROCESS", tmp_path / "none")
    with peak(CPU) as found:
        torch.ones(8)
    assert (found.bytes, found.total) == (None, None)
