"""The fidelity matrix as a picture, for a README."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .colour import LEVELS, ink, ramp
from .matrix import Panel, panels
from .run import load_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["matrix_picture"]


def matrix_picture(folder: Path, path: Path, metric: str = "agreement") -> Path:
    """Draws one metric's matrix of a run folder into a .png or .svg file."""
    from matplotlib import rc_context  # a second to import
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"path: expected a name that ends in .png or .svg, found {path.name!r}")
    run = load_run(Path(folder))
    panel = next((panel for panel in panels(run.summary, run.order) if panel.name == metric), None)
    if panel is None:
        raise ValueError(f"metric: expected one that {folder} has, found {metric!r}")
    height, width = len(panel.rows), len(panel.columns)
    names = [f"{row.sampler}{'' if run.summary.data_free(row.sampler) else '  (data)'}" for row in panel.rows]
    longest = max(len(name) for name in names)
    size = (0.085 * longest + 0.78 * width + 0.4, 0.46 * height + 2.6)
    with rc_context({"svg.hashsalt": "dfkd", "font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name may be in any script
        figure = Figure(figsize=size, dpi=160, facecolor="white")
        axes = figure.add_subplot()
        _draw(axes, panel, names)
        axes.text(0, height + 0.25, _caption(panel, len(run.summary.seeds)), fontsize=8, color="#566270", va="top")
        metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, bbox_inches="tight", pad_inches=0.15, metadata=metadata)
    return path


def _caption(panel: Panel, seeds: int) -> str:
    unit = f" in {panel.metric.unit}" if panel.metric.unit else ""
    over = f"mean over {seeds} seeds, ± sample standard deviation" if seeds > 1 else "one seed"
    title = panel.metric.title[:1].upper() + panel.metric.title[1:]
    return f"{title} of student and teacher{unit}: {over}. Rows: what the student learned from."


def _literal(text: str) -> str:
    """Dollar signs would start a formula."""
    return text.replace("$", r"\$")


def _draw(axes: "Axes", panel: Panel, names: list[str]) -> None:
    height, width = len(panel.rows), len(panel.columns)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for y, row in enumerate(panel.rows):
        for x, cell in enumerate(row.cells):
            _cell(axes, x, y, cell.paint, cell.text, cell.spread, cell.status)
    axes.set_yticks([y + 0.5 for y in range(height)], [_literal(name) for name in names], fontsize=9)
    titles = [_short(column.group, column.title) for column in panel.columns]
    axes.set_xticks(
        [x + 0.5 for x in range(width)], titles, fontsize=8.5, rotation=35, ha="left", rotation_mode="anchor"
    )
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(group: str, title: str) -> str:
    prefix = {"draws of": "draws of ", "worst case, ε / 255": "worst case ε = "}.get(group, "")
    suffix = "/255" if group.startswith("worst") else ""
    return _literal(f"{prefix}{title}{suffix}")


def _cell(axes: "Axes", x: int, y: int, paint: str, text: str, spread: str, status: str) -> None:
    from matplotlib.patches import Rectangle

    kind, level = paint[:3], paint[3:]
    colour = ramp(kind, "light", int(level) / (LEVELS - 1)) if paint else "#f1f2f2"
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.2))
    if status != "ok":
        axes.add_patch(
            Rectangle(
                (x, y), 1, 1, facecolor="none", edgecolor="#00000045" if paint else "#9aa3ad", hatch="//", linewidth=0
            )
        )
    dark = ink(colour)
    if paint:
        axes.text(x + 0.5, y + (0.4 if spread else 0.5), text, ha="center", va="center", fontsize=9.5, color=dark)
        axes.text(x + 0.5, y + 0.74, spread, ha="center", va="center", fontsize=6.8, color=dark)
    else:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if status != "ok" else None
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=6.8, color="#17202b", bbox=box)
