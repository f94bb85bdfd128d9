"""The comparison as a table in the terminal; plain text of a fixed width where the output is not a terminal."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dfkd.results import Cell, Summary, read

from .matrix import failed_words
from .run import reasons
from .words import MODES, duration, large, number, spread

__all__ = ["print_table"]

WIDTH = 100
_HEADS = {"eval": "in\neval", "batch": "in\nbatch", "recalibrated": "recali-\nbrated"}  # of MODES, as narrow as numbers


def print_table(source: Path | str | Summary, console: Console | None = None) -> None:
    """The samplers by agreement, best first. source: a run folder, which also says why some have no score, or a
    summary."""
    summary = source if isinstance(source, Summary) else Summary(read(Path(source) / "results.jsonl"))
    if console is None:
        console = Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH, no_color=True, force_terminal=False, highlight=False)
    console.print(_table(summary, console.is_terminal))
    if not isinstance(source, Summary):
        for sampler, reason in reasons(Path(source), summary).items():
            console.print(Text(f"{sampler} is unsupported: {reason}"))
    diverged = [name for name in summary.ranked() if "diverged" in summary.failed.get(name, {}).values()]
    if diverged:
        console.print(Text(f"not finite, so given up: {', '.join(diverged)}; a smaller learning rate may help"))


def _table(summary: Summary, rich_terminal: bool) -> Table:
    where = summary.headline
    worst = next((name for name in reversed(summary.evaluations) if name.startswith("worst_case")), None)
    table = Table(box=box.SIMPLE_HEAD if rich_terminal else box.ASCII2, pad_edge=False, caption=_caption(summary))
    table.caption_style = "dim"
    table.add_column("sampler", overflow="fold", min_width=12)
    table.add_column("data", no_wrap=True)
    table.add_column(f"agreement %\n{'test' if where == 'test' else 'not a test'}", justify="right", no_wrap=True)
    modes = [mode for mode in MODES if any(summary.cell(s, where or "", _in(mode)).n for s in summary.samplers)]
    for mode in modes:
        table.add_column(_HEADS[mode], justify="right", no_wrap=True)
    table.add_column("KL", justify="right", no_wrap=True)
    if worst is not None:
        table.add_column(f"worst\n@{worst.partition('@')[2] or '?'}", justify="right", no_wrap=True)
    table.add_column("teacher\nimages", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("status", overflow="fold", max_width=14)
    for sampler in summary.ranked():
        cell = summary.cell(sampler, where or "", "agreement")
        row = [
            sampler,
            "free" if summary.data_free(sampler) else "reads",
            f"{number(cell.mean, 'percent')} {spread(cell.spread, 'percent')}".rstrip(),
            *(number(summary.cell(sampler, where or "", _in(mode)).mean, "percent") for mode in modes),
            number(summary.cell(sampler, where or "", "kl").mean, "nats"),
        ]
        if worst is not None:
            row.append(number(summary.cell(sampler, worst, "agreement").mean, "percent"))
        row += [large(summary.cost(sampler, "teacher_images")), duration(summary.cost(sampler, "seconds"))]
        table.add_row(
            *(Text(part) for part in [*row, _status(cell, len(summary.of(sampler)))]),
            style="" if cell.status == "ok" else "dim",
        )
    return table


def _in(mode: str) -> str:
    """Agreement in a BatchNorm mode beside the one that the students are compared in."""
    return f"agreement_{mode}"


def _status(cell: Cell, runs: int) -> str:
    if not cell.failures:
        return "ok"
    return cell.status if len(cell.failures) == len(cell.seeds) else failed_words(cell, runs)


def _caption(summary: Summary) -> Text:
    seeds = len(summary.seeds)
    text = f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed: no spread is known"
    where = summary.headline
    if where is None:
        return Text("no student has a score")
    if any(_in(mode) in summary.metrics for mode in MODES):
        text += "; in eval, in batch, recalibrated: agreement % in other BatchNorm modes than the one compared in"
    if where != "test":
        text += f"; agreement and KL on {where!r}, which is not a test score"
    return Text(text)
