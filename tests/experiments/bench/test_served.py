"""Parts in processes of their own: what dies, hangs or fails there leaves the next one alone, and loses no row."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.bench.protocol import Part, Row, run
from experiments.bench.served import Served

from . import odd_parts

MARKS = {"on": "here", "size": "small", "commit": "abc"}
PARTS = {part.name: part for part in odd_parts.made({})}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served("tests.experiments.bench.odd_parts:made", {}, tmp_path / "log")
    yield found
    found.close()


def alive(process: int) -> bool:
    """Whether it still runs; one that has ended and is not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_each_ends_as_it_does_and_the_next_one_goes_on(served: Served, tmp_path: Path) -> None:
    names = ("dies", "fails", "good")
    rows = run([PARTS[name] for name in names], 60.0, tmp_path / "rows.jsonl", {}, MARKS, served, show=lambda _: None)
    ends = {row["part"]: row for row in rows if "status" in row}
    assert [ends[name]["status"] for name in names] == ["failed", "failed", "ok"]
    assert ends["dies"]["error"] == "process: ended with -9; the last words"
    assert ends["fails"]["error"] == "RuntimeError: out of memory at all"
    assert [row["part"] for row in rows if row.get("value")] == ["dies", "fails"]
    lost = next(row for row in rows if "told" in row)
    assert (lost["loss"], lost["result"], lost["not_finite"]) == (None, "not finite", ["loss: nan"])


def test_what_hangs_is_ended_with_what_it_began(served: Served) -> None:
    rows = list[Row]()
    began = time.monotonic()
    status = served(PARTS["hangs"], 4.0, rows.append)
    assert status == {"status": "no time", "why": "was broken off"}
    assert 3.5 < time.monotonic() - began < 9.0
    assert rows[0]["told"] < 3.6  # less what it has to save, and what the start took
    assert not alive(rows[0]["process"])
    for _ in range(50):
        if not alive(rows[0]["child"]):
            break
        time.sleep(0.05)
    assert not alive(rows[0]["child"])


def test_what_listens_is_told_before_its_limit(served: Served) -> None:
    rows = list[Row]()
    status = served(PARTS["saves"], 6.0, rows.append)
    assert rows[-1] == {"saved": True}
    assert status == {"status": "ok"}


def test_what_is_closed_with_patience_may_save(served: Served) -> None:
    rows = list[Row]()

    def stop(row: Row) -> None:
        rows.append(row)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served(PARTS["saves"], 60.0, stop)
    began = time.monotonic()
    os.kill(rows[0]["process"], 0)
    served.close(10.0)
    assert time.monotonic() - began < 9.0
    assert not alive(rows[0]["process"])


def test_a_run_saves_where_who_asked_was_killed(tmp_path: Path) -> None:
    """Nobody reads its rows any more, which is no reason not to save."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from experiments.bench.served import Served\n"
        "from tests.experiments.bench import odd_parts\n"
        "folder = Path(sys.argv[1])\n"
        "given = {'file': str(folder / 'saved')}\n"
        "part = next(part for part in odd_parts.made(given) if part.name == 'keeps')\n"
        "served = Served('tests.experiments.bench.odd_parts:made', given, folder / 'log')\n"
        "served(part, 60.0, lambda row: print(row['process'], flush=True))\n"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True
    )
    assert asking.stdout is not None
    process = int(asking.stdout.readline())
    asking.kill()
    asking.communicate()
    for _ in range(200):
        if not alive(process):
            break
        time.sleep(0.05)
    assert not alive(process)
    assert (tmp_path / "saved").exists()


def test_a_group_shares_a_process_until_one_does_not_end_well(served: Served) -> None:
    found = []
    for name, group in (("good", "a"), ("good", "a"), ("good", "b"), ("fails", "b"), ("good", "b"), ("good", "")):
        rows = list[Row]()
        part: Part = replace(PARTS[name], group=group)
        served(part, 30.0, rows.append)
        found.append(rows[0].get("process"))
    first, second, third, _, fifth, last = found
    assert first == second
    assert len({first, third, fifth, last}) == 4


def test_a_row_that_is_an_error_ends_its_process(served: Served) -> None:
    """The part itself ended well, but the next one of its group begins in a new process."""
    found = []
    for name in ("good", "poisoned", "good"):
        rows = list[Row]()
        assert served(replace(PARTS[name], group="a"), 60.0, rows.append) == {"status": "ok"}
        found.append(rows[0]["process"])
    assert found[0] == found[1] != found[2]
    assert not alive(found[0])
