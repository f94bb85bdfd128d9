"""The terminal table: sorted, plain where nobody looks at colours, never wider than 100 columns."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dfkd.report import print_table
from dfkd.report.table import _HEADS
from dfkd.report.words import MODES
from dfkd.results import Summary, append, read


def printed(source: Path | Summary) -> str:
    out = io.StringIO()
    print_table(source, Console(file=out, width=300))
    return out.getvalue()


def test_is_plain_and_narrow_in_a_pipe(folder: Path) -> None:
    text = printed(folder)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_holds_the_numbers_best_first(folder: Path) -> None:
    text = printed(Summary(read(folder / "results.jsonl")))
    rows = [line for line in text.splitlines() if "±" in line and "mean" not in line]
    shown = [float(line.split("±")[0].split()[-1]) for line in rows]
    assert len(shown) == 9
    assert shown == sorted(shown, reverse=True)
    assert "unsupported" in text
    assert "1 of 3" in text
    assert "over 3 seeds" in text
    assert "not finite, so given up: generative; a smaller learning rate may help" in text


def test_says_why_a_sampler_is_unsupported(folder: Path) -> None:
    assert "is unsupported:" not in printed(folder)  # nothing is written of it
    place = folder / "runs" / "no batchnorm-s0"
    place.mkdir(parents=True)
    (place / "student.json").write_text('{"status": "unsupported", "reason": "it: needs [b]BatchNorm[/b]"}')
    assert "no batchnorm is unsupported: it: needs [b]BatchNorm[/b]" in printed(folder)
    assert "is unsupported:" not in printed(Summary(read(folder / "results.jsonl")))


def test_brackets_in_names_are_no_markup(folder: Path) -> None:
    path = folder / "results.jsonl"
    path.write_text(path.read_text().replace('"mixup"', '"[red]x[/red]"'))
    assert "[red]x[/red]" in printed(folder)


def test_fits_a_terminal_too(folder: Path) -> None:
    out = io.StringIO()
    print_table(folder, Console(file=out, width=100, force_terminal=True, no_color=True, legacy_windows=False))
    assert "real" in out.getvalue()


def test_other_batchnorm_modes_stand_beside_agreement(folder: Path) -> None:
    """As in the report; only those that were asked for, and a gap where a sampler has no number in one of them."""
    assert "BatchNorm" not in printed(folder)
    path = folder / "results.jsonl"
    lines = [line for line in read(path) if (line.evaluation, line.metric) == ("test", "agreement") and line.value]
    added = [replace(line, metric="agreement_recalibrated", value=0.123) for line in lines if line.sampler != "mixup"]
    added += [replace(line, metric="agreement_eval", value=0.456) for line in lines]
    append(path, added)
    text = printed(folder)
    assert max(len(line) for line in text.splitlines()) <= 100
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]
    first, second = cells[:2]
    assert [" ".join(pair) for pair in zip(first, second, strict=True)][3:7] == [
        "agreement % test", "in eval", "recali- brated", " KL"
    ]  # fmt: skip
    rows = {row[1]: row for row in cells if row[2]}  # not what a long name goes on with
    assert rows["real"][4:6] == ["45.6", "12.3"]
    assert rows["mixup"][4:6] == ["45.6", "–"]
    assert "agreement % in other BatchNorm modes" in " ".join(text.split())
    assert set(_HEADS) == set(MODES)
