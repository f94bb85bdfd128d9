"""What the protocol for a GPU wrote, for people: a table, and accuracy against minutes beside published accuracies.

no paper. Published accuracies are lines across the panel: their hours are of other machines and of synthesis alone, so
that they have no place on this axis. Only rows of one device and size are shown together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PUBLISHED", "chart", "runs", "table", "there"]

Curve = list[tuple[float, float]]
Rows = Sequence[Mapping[str, Any]]

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "resnet34 to resnet18": {"CMI (19 h)": 94.84, "DFQ (8.8 h)": 94.61, "FastDFKD-10 (0.28 h)": 94.05},
    "wrn-40-2 to wrn-16-1": {"CMI (13 h)": 90.01, "FastDFKD-10 (0.15 h)": 89.29, "DFQ (0.75 h)": 86.14},
}
"""Accuracy in % on CIFAR-10, and hours of synthesis alone (CMI, arXiv:2105.08584; FastDFKD, arXiv:2112.06253). Of other
data and pairs there are none, as they are not measured here."""


def there(rows: Rows, where: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Those of this device and size, whatever the commit."""
    return [row for row in rows if all(row.get(key) == where[key] for key in ("on", "size"))]


# -- accuracy ----------------------------------------------------------------------------------------------------------


def runs(rows: Rows) -> dict[str, dict[tuple[str, int], Curve]]:
    """By pair, then recipe and seed: minutes and accuracy in % at each point.

    A run that was begun anew is that of its last try; one that went on has all its points, each once.
    """
    found: dict[str, dict[tuple[str, int], Curve]] = {}
    for row in rows:
        if "pair" not in row:
            continue
        own = found.setdefault(row["pair"], {})
        key = (row["recipe"], row["seed"])
        if "teacher_accuracy" in row:
            own[key] = own.get(key, []) if row["continued"] else []
        elif "curve" in row:
            own[key] = [(seconds / 60.0, 100.0 * right) for seconds, right in row["curve"] if right is not None]
        elif row.get("accuracy") is not None and "ended" not in row:
            minutes = row["queued_seconds"] / 60.0  # until the last row has the engine's
            # what was redone since the checkpoint comes twice
            own[key] = [
                *(point for point in own.get(key, []) if point[0] < minutes),
                (minutes, 100.0 * row["accuracy"]),
            ]
    return {pair: kept for pair, own in found.items() if (kept := {key: curve for key, curve in own.items() if curve})}


def chart(rows: Rows, file: Path) -> None:
    """A panel for each pair. ValueError where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = runs(rows)
    if not drawn:
        raise ValueError("chart: expected accuracies in the lines, found none; did their parts end?")
    recipes = list(dict.fromkeys(recipe for own in drawn.values() for recipe, _ in own))
    figure, panels = pyplot.subplots(1, len(drawn), figsize=(4.6 * len(drawn), 3.6), squeeze=False)
    for panel, (pair, own) in zip(panels[0], drawn.items(), strict=True):
        named = set[str]()
        for (recipe, _), curve in own.items():
            colour = f"C{recipes.index(recipe) % 10}"
            label = None if recipe in named else recipe  # seeds share a colour
            named.add(recipe)
            panel.plot(*zip(*curve, strict=True), marker=".", color=colour, label=label)
        for name, accuracy in PUBLISHED.get(pair, {}).items():
            panel.axhline(accuracy, linestyle=":", linewidth=0.9, color="grey")
            across = panel.get_yaxis_transform()  # the panel's width, the data's accuracy
            panel.text(1.0, accuracy, f"{name} {accuracy}", transform=across, ha="right", fontsize=6)
        panel.set_title(pair, fontsize=9)
        panel.set_xlabel("minutes, synthesis and all")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=7, loc="best")
    panels[0][0].set_ylabel("accuracy on test, %")
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


# -- a table -----------------------------------------------------------------------------------------------------------

NAMES = (
    *("student", "of", "loss", "sampler", "check", "switches", "precision", "compile", "kind", "processes", "copy"),
    *("product", "limit", "recipe", "seed", "teacher"),
)
"""What tells the rows of a part apart, in this order."""

RESULTS = ("close", "fine", "none", "ok")
"""Words of rows that are as they should be; of checks these are counted, and only the others are listed."""

COUNTS = ("cudagraph_skips", "graph_breaks")
"""Not shown where they are 0."""


def table(rows: Rows) -> str:
    """Each part's last try: how it ended and what it took; a line for each row that was timed or is not well."""
    tries: dict[str, list[Mapping[str, Any]]] = {}
    ended = set[str]()
    for row in rows:
        part = str(row.get("part"))
        if part == "about":
            continue
        if part in ended:
            ended.discard(part)
            tries.pop(part)
        tries.setdefault(part, []).append(row)
        if "status" in row:
            ended.add(part)
    lines = [f"{'':48} {'seconds':>9} {'to plain':>8} {'to limit':>8}"]
    for part, own in tries.items():
        last = own[-1] if "status" in own[-1] else {"status": "was broken off"}
        took = f"{last['took']:.0f} s" if "took" in last else ""
        why = last.get("error") or last.get("why") or ""
        lines.append(f"{part}: {last['status']}{', ' * bool(took)}{took}{': ' * bool(why)}{why}")
        well = sum(row.get("result") in RESULTS and "seconds" not in row for row in own)
        if well:
            lines.append(f"  {well} as they should be")
        lines += [text for row in own if (text := _text(row))]
    return "\n".join(lines)


def _text(row: Mapping[str, Any]) -> str:
    """A row's line; empty for those that are well and have no number of their own."""
    if "status" in row or ("curve" not in row and "pair" in row and "result" not in row):
        return ""
    name = ", ".join(
        f"{key} {row[key]}" if isinstance(row[key], (bool, int)) else str(row[key]) for key in NAMES if _names(row, key)
    )
    result = row.get("result", "")
    said = "" if result in RESULTS else str(result)
    if row.get("why") or row.get("waits"):
        said = f"{said}{': ' * bool(said)}{row.get('why') or 'waits: ' + row['waits']}"
    if "curve" in row:
        right = row.get("accuracy")
        said = f"{said}{', ' * bool(said)}{row['ended']}, {'no accuracy' if right is None else f'{100 * right:.2f} %'}"
        said = f"{said}, {row['steps']} steps"
    if row.get("gap") is not None and "tolerance" in row:
        said = f"{said}{', ' * bool(said)}gap {row['gap']:.2g} of {row['tolerance']:g}"
    for key, unit, scale in (
        ("steps_per_second", "steps/s", 1.0),
        ("bytes_per_second", "GB/s", 1e9),
        ("operations_per_second", "TFLOP/s", 1e12),
        ("by_operations", "s by operations", 1.0),
        ("by_bytes", "s by bytes", 1.0),
        ("peak_bytes", "MiB", 2.0**20),
        ("compile_seconds", "s to compile", 1.0),
        ("cudagraph_skips", "graphs skipped", 1.0),
        ("graph_breaks", "breaks", 1.0),
    ):
        if row.get(key) is not None and (row[key] or key not in COUNTS):
            said = f"{said}{', ' * bool(said)}{row[key] / scale:.3g} {unit}"
    if not said and row.get("seconds") is None:
        return ""
    beside = row.get("speedup")
    if beside is None and row.get("engine_to_plain"):
        beside = 1.0 / row["engine_to_plain"]
    numbers = [_number(row.get("seconds"), 9, 5), _number(beside, 8, 2), _number(row.get("to_limit"), 8, 1)]
    return f"  {name:46} {' '.join(numbers)}  {said}".rstrip()


def _names(row: Mapping[str, Any], key: str) -> bool:
    """Whether it is a name here: the loss of a step, for one, is a number."""
    return row.get(key) is not None and not isinstance(row[key], float)


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'':{width}}" if value is None else f"{value:{width}.{digits}f}"
