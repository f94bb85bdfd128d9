"""Accuracy against minutes, out of the lines that the protocol for a GPU wrote, beside the published accuracies.

no paper. Published accuracies are lines across the panel: their hours are of other machines and of synthesis alone, so
that they have no place on this axis.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PUBLISHED", "chart", "runs"]

Curve = list[tuple[float, float]]

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "resnet34 to resnet18": {"CMI (19 h)": 94.84, "DFQ (8.8 h)": 94.61, "FastDFKD-10 (0.28 h)": 94.05},
    "wrn-40-2 to wrn-16-1": {"CMI (13 h)": 90.01, "FastDFKD-10 (0.15 h)": 89.29, "DFQ (0.75 h)": 86.14},
}
"""Accuracy in % on CIFAR-10, and hours of synthesis alone (CMI, arXiv:2105.08584; FastDFKD, arXiv:2112.06253)."""


def runs(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """By pair and recipe: minutes and accuracy in % at each point; of a part that was tried again the last try."""
    found: dict[str, dict[str, Curve]] = {}
    for row in rows:
        kind, _, about = str(row.get("part", "")).partition(", ")
        if kind != "accuracy":
            continue
        pair, _, recipe = about.rpartition(", ")
        if "teacher_accuracy" in row:
            found.setdefault(pair, {})[recipe] = []
        elif "step" in row:
            found[pair][recipe].append((row["seconds"] / 60.0, 100.0 * row["accuracy"]))
    return {pair: {recipe: curve for recipe, curve in own.items() if curve} for pair, own in found.items()}


def chart(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A panel for each pair. ValueError where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {pair: own for pair, own in runs(rows).items() if own}
    if not drawn:
        raise ValueError("chart: expected accuracies in the lines, found none; did their parts end?")
    figure, panels = pyplot.subplots(1, len(drawn), figsize=(4.6 * len(drawn), 3.6), squeeze=False)
    for panel, (pair, own) in zip(panels[0], drawn.items(), strict=True):
        for recipe, curve in own.items():
            panel.plot(*zip(*curve, strict=True), marker=".", label=recipe)
        for name, accuracy in PUBLISHED.get(pair, {}).items():
            panel.axhline(accuracy, linestyle=":", linewidth=0.9, color="grey")
            across = panel.get_yaxis_transform()  # the panel's width, the data's accuracy
            panel.text(1.0, accuracy, f"{name} {accuracy}", transform=across, ha="right", fontsize=6)
        panel.set_title(pair, fontsize=9)
        panel.set_xlabel("minutes, synthesis and all")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=7, loc="center right")
    panels[0][0].set_ylabel("accuracy on test, %")
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
