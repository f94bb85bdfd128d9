"""Every planted fault still has its line, and names tests that are there."""

import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAULTS = runpy.run_path(str(HERE / "faults.py"))["FAULTS"]


@pytest.mark.skipif(not (HERE.parent / "dfkd").is_dir(), reason="the sources are not beside the tests")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_can_be_planted(fault: object) -> None:
    file, right, wrong, tests = (getattr(fault, name) for name in ("file", "right", "wrong", "tests"))
    text = (HERE.parent / file).read_text(encoding="utf-8")
    assert right in text
    assert text.replace(right, wrong) != text
    for test in tests:
        path, _, name = test.partition("::")
        assert (HERE.parent / path).exists()
        name = name.partition("[")[0]  # without the row
        assert not name or f"def {name}(" in (HERE.parent / path).read_text(encoding="utf-8")


def test_there_are_enough_of_them() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 15
