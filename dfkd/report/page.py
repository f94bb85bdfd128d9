"""The report: one HTML file with everything in it, made from a run folder.

Numbers and names are gathered here into plain dataclasses; the templates beside this file lay them out. Every text goes
through Jinja's autoescape; only the style sheet and the script, which are ours, are put in as they are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from .charts import cost_scatter, learning_curves
from .colour import LEVELS, stylesheet
from .matrix import DIAGNOSTIC_COLUMN, failed_words, panels
from .pictures import Picture, pictures
from .run import Run, load_run
from .verdict import verdict
from .words import DIAGNOSTICS, MODES, QUALITY, Form, describe, duration, large, number, spread

__all__ = ["render", "write_report"]


@dataclass(frozen=True)
class SamplerView:
    """key: its number in all charts, by rank. series: its colour."""

    label: str
    key: int
    series: int
    data_free: bool
    kind: str
    paper: str
    sources: str
    preset: str


@dataclass(frozen=True)
class Entry:
    """A cell of the sorted table. sort: what to sort by, None last."""

    text: str
    small: str = ""
    why: str = ""
    sort: float | str | None = None


@dataclass(frozen=True)
class Drawn:
    sampler: str
    pictures: tuple[Picture, ...]
    aimed: bool


def write_report(folder: Path) -> Path:
    """Reads a run folder and writes its report.html."""
    run = load_run(Path(folder))
    path = Path(folder) / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(render(run), encoding="utf-8")
    partial.replace(path)  # a reader never sees half a page
    return path


def render(run: Run) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("dfkd.report", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    samplers = _samplers(run)
    return environment.get_template("template.html").render(
        run=run,
        style=Markup(_asset("style.css") + stylesheet() + _switch_rules(len(panels(run.summary, run.order)))),
        script=Markup(_asset("script.js")),
        samplers=samplers,
        by_label={sampler.label: sampler for sampler in samplers},
        subtitle=_subtitle(run),
        verdict=verdict(run),
        panels=panels(run.summary, run.order),
        levels=range(LEVELS),
        heads=_heads(run),
        table=[(sampler, _entries(run, sampler)) for sampler in samplers],
        charts=learning_curves(run),
        scatter=cost_scatter(run),
        drawn=_drawn(run),
        diagnostics=_diagnostics(run),
        quality=_quality(run),
        facts=_facts(run),
        resolution=_resolution(run),
    )


def _asset(name: str) -> str:
    """A file of ours beside this one, safe inside its element."""
    text = files("dfkd.report").joinpath(name).read_text(encoding="utf-8")
    if "</" in text:
        raise ValueError(f"{name}: expected no closing tag in it, found one")
    return text


def breakable(text: str) -> Markup:
    """A name that may be broken after - _ + where a column is narrow, and inside a word of over a dozen letters."""
    parts = [word[i : i + 12] for word in re.findall(r"[^-_+\s]*[-_+\s]?", text) for i in range(0, len(word), 12)]
    return Markup("<wbr>").join(parts)


def _switch_rules(count: int) -> str:
    """The metric switch needs no script: a chosen radio button shows its panel and marks its label."""
    chosen = [f"#metric{i}:checked~.panel{i}" for i in range(count)]
    marked = [f"#metric{i}:checked~.switch .for{i}" for i in range(count)]
    focused = [f"#metric{i}:focus-visible~.switch .for{i}" for i in range(count)]
    if not count:
        return ""
    return (
        f"{','.join(chosen)}{{display:block}}\n"
        f"{','.join(marked)}{{background:var(--ink);color:var(--page);border-color:var(--ink)}}\n"
        f"{','.join(focused)}{{outline:3px solid var(--link);outline-offset:2px}}\n"
    )


def _samplers(run: Run) -> list[SamplerView]:
    about = run.section("samplers")
    views = []
    for position, label in enumerate(run.order):
        known = about.get(label)
        found: Mapping[str, Any] = known if isinstance(known, Mapping) else {}
        sources = found.get("sources") or []
        views.append(
            SamplerView(
                label=label,
                key=position + 1,
                series=position % 8,
                data_free=run.summary.data_free(label),
                kind=run.summary.of(label)[0].kind,
                paper=str(found.get("paper") or ""),
                sources=", ".join(str(source) for source in sources) if isinstance(sources, list) else str(sources),
                preset=str(found.get("preset") or ""),
            )
        )
    return views


def _subtitle(run: Run) -> str:
    teacher, data = run.section("teacher"), run.section("data")
    free = sum(run.summary.data_free(sampler) for sampler in run.order)
    parts = [f"{len(run.order)} samplers, {free} of them data-free", _seeds(run)]
    if data.get("name"):
        parts.append(f"data: {data['name']}")
    if teacher.get("reference"):
        parts.append(f"teacher: {teacher['reference']}")
    if isinstance(teacher.get("accuracy"), float):
        parts.append(f"teacher accuracy {number(teacher['accuracy'], 'percent')} %")
    return " · ".join(parts)


def _seeds(run: Run) -> str:
    seeds = run.summary.seeds
    named = ", ".join(str(seed) for seed in seeds)
    return f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''} ({named})"


# -- the sorted table --------------------------------------------------------------------------------------------------


def _scores(run: Run) -> list[tuple[str, str]]:
    """(evaluation, metric) of the table's columns that have a number."""
    where = run.summary.headline or ""
    modes = [f"agreement_{mode}" for mode in MODES if f"agreement_{mode}" in run.summary.metrics]
    wanted = [(where, metric) for metric in ("agreement", *modes, "kl", "excess_agreement", "accuracy")]
    wanted += [(name, "agreement") for name in run.summary.evaluations if name.startswith("worst_case")]
    return [(e, m) for e, m in wanted if any(run.summary.cell(s, e, m).n for s in run.order)]


def _heads(run: Run) -> list[str]:
    heads = []
    for evaluation, name in _scores(run):
        metric = describe(name)
        unit = f", {metric.unit}" if metric.unit in ("%", "nats") else ""
        title = f"worst case ε {evaluation.partition('@')[2]}/255" if evaluation.startswith("worst") else metric.title
        heads.append(title + unit)
    return [*heads, "steps", "teacher images", "time", "BatchNorm modes"]


def _entries(run: Run, sampler: SamplerView) -> list[Entry]:
    summary, entries = run.summary, []
    for evaluation, name in _scores(run):
        cell, form = summary.cell(sampler.label, evaluation, name), describe(name).form
        if cell.mean is None and cell.failures:
            entries.append(Entry(cell.status))
        else:
            text, small = number(cell.mean, form), spread(cell.spread, form, cell.mean)
            entries.append(Entry(text, small, failed_words(cell, len(summary.of(sampler.label))), cell.mean))
    for field in ("steps", "teacher_images"):
        cost = summary.cost(sampler.label, field)
        entries.append(Entry(large(cost), sort=cost))
    seconds = summary.cost(sampler.label, "seconds")
    modes = summary.modes(sampler.label)
    return [*entries, Entry(duration(seconds), sort=seconds), Entry(modes, sort=modes)]


# -- pictures, diagnostics, settings -----------------------------------------------------------------------------------


def _drawn(run: Run) -> list[Drawn]:
    return [
        Drawn(label, tuple(pictures(run.banks[label], run.class_names)), run.banks[label].target is not None)
        for label in run.order
        if label in run.banks
    ]


def _diagnostics(run: Run) -> dict[str, Any]:
    """heads (title, meaning) and rows of text by sampler; empty where none were recorded."""
    names = [m for m in run.summary.metrics if m.removesuffix("_test") not in QUALITY]
    found = [m for m in names if any(run.summary.cell(s, DIAGNOSTIC_COLUMN, m).n for s in run.order)]
    found = [m for m in DIAGNOSTICS if m in found] + [m for m in found if m not in DIAGNOSTICS]
    rows = {}
    for sampler in run.order:
        cells = [run.summary.cell(sampler, DIAGNOSTIC_COLUMN, metric) for metric in found]
        rows[sampler] = [(number(cell.mean, "plain"), spread(cell.spread, "plain", cell.mean)) for cell in cells]
    return {"heads": [DIAGNOSTICS.get(m, (m.replace("_", " "), "")) for m in found], "rows": rows if found else {}}


def _quality(run: Run) -> dict[str, Any]:
    """The same of draws beside data. said: rows and k, how far off held-out rows are, what is missing."""
    names = [m for m in QUALITY if any(run.summary.cell(s, DIAGNOSTIC_COLUMN, m).n for s in run.order)]
    rows = {}
    for sampler in run.order:
        cells = [(metric, run.summary.cell(sampler, DIAGNOSTIC_COLUMN, metric)) for metric in names]
        forms: dict[str, Form] = {m: "percent" if m in _SHARES else "plain" for m in names}
        rows[sampler] = [(number(c.mean, forms[m]), spread(c.spread, forms[m], c.mean)) for m, c in cells]
    heads = [(title + (", %" if m in _SHARES else ""), meaning) for m in names for title, meaning in [QUALITY[m]]]
    return {"heads": heads, "rows": rows if names else {}, "said": _said_of_quality(run)}


_SHARES = ("feature_precision", "feature_recall", "coverage", "copies_pixels", "copies_features")


def _said_of_quality(run: Run) -> list[str]:
    """What the numbers were made of, so far as it was kept, and what a reader may compare them with."""
    said = []
    about = next(iter(run.quality.values()), {})
    if {"n", "k", "training_rows"} <= set(about):
        n = " or ".join(map(str, sorted({int(found["n"]) for found in run.quality.values() if "n" in found})))
        said.append(
            f"{n} draws beside as many held-out rows, and {about['training_rows']} training rows; a ball reaches to "
            f"the {_ordinal(int(about['k']))} nearest row of its own set. Other numbers of rows give other values."
        )
    far = []
    for kind in ("pixels", "features"):
        cells = [run.summary.cell(s, DIAGNOSTIC_COLUMN, f"nearest_{kind}_test") for s in run.order]
        means = [cell.mean for cell in cells if cell.mean is not None]
        far += [f"{number(means[0], 'plain')} in {kind}"] if means else []
    if far:
        said.append(f"Held-out rows lie {' and '.join(far)} from their nearest training row (median).")
    missing = {reason for found in run.quality.values() for reason in (found.get("reasons") or {}).values()}
    return [*said, *(f"Left out: {reason}." for reason in sorted(missing))]


def _ordinal(k: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(k, f"{k}th")


def _facts(run: Run) -> list[tuple[str, str]]:
    """The manifest as lines of name and value."""
    facts = [("seeds", ", ".join(str(seed) for seed in run.summary.seeds))]
    for name, value in run.manifest.items():
        if name in ("samplers", "seeds", "resolution"):  # said elsewhere on the page
            continue
        if name == "versions" and isinstance(value, Mapping):
            facts.append((name, ", ".join(f"{key} {part}" for key, part in value.items())))
        elif isinstance(value, Mapping):
            facts += [(f"{name} {key}".replace("_", " "), _plain(part)) for key, part in value.items()]
        else:
            facts.append((name.replace("_", " "), _plain(value)))
    return [(name, value) for name, value in facts if value]


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(part) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(part)}" for key, part in value.items() if part is not None)
    return str(value)


def _resolution(run: Run) -> str:
    """What one row is worth, as words."""
    rows, where = run.test_rows, run.summary.headline
    if not rows:
        return ""
    share = 100.0 / rows
    return f"{where} has {rows} rows: one row is {share:.2g} %, and no difference below that can be seen with one seed."
