"""What the numbers support, in words: who is best, and whether that is more than chance."""

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from numpy.typing import NDArray

from dfkd.fidelity import statistics
from dfkd.fidelity.corruptions import parse_corruption

from .run import Run
from .words import listed, number, spread

__all__ = ["verdict"]

SAME_ROWS = ("test", "uniform")  # and the damaged test set


def verdict(run: Run) -> list[Markup]:
    """Sentences, escaped; the first names the best data-free sampler or says that there is none."""
    summary, where = run.summary, run.summary.headline
    scored = [s for s in run.order if where and summary.cell(s, where, "agreement").mean is not None]
    sentences = []
    if where is None or not scored:
        sentences.append(Markup("No student has an agreement score, so nothing can be said about fidelity."))
        return sentences + _failures(run)
    free = [s for s in scored if summary.data_free(s)]
    saw_test = [s for s in scored if _saw_test(run, s)]
    with_data = [s for s in scored if not summary.data_free(s) and s not in saw_test]
    if where != "test":
        sentences.append(
            Markup("There is no labelled test set; samplers are ranked on <em>{}</em>, not a test score.").format(where)
        )
    if free:
        sentences.append(_best(run, where, free[0]))
        sentences.append(_lead(run, where, free))
    else:
        sentences.append(Markup("No data-free sampler has a score."))
    reference = next((s for s in with_data if summary.of(s)[0].kind == "real"), next(iter(with_data), None))
    if reference is not None:
        sentences.append(_reference(run, where, reference, free[0] if free else None))
    if saw_test:
        text = "No reference, as {} learned from the test rows: <strong>{}</strong>."
        sentences.append(Markup(text).format("it" if len(saw_test) == 1 else "they", listed(saw_test)))
    if free:
        sentences += _excess(run, where, free[0])
    return sentences + _presets(run) + _failures(run)


def _saw_test(run: Run, sampler: str) -> bool:
    """Whether a part of the sampler reads the rows that students are scored on, by its settings in the manifest."""
    about = run.section("samplers").get(sampler)
    settings = about.get("settings", "") if isinstance(about, Mapping) else ""
    return re.search(r"\bsplit\W{1,4}test\b", str(settings)) is not None


def _score(run: Run, where: str, sampler: str) -> str:
    cell = run.summary.cell(sampler, where, "agreement")
    around = spread(cell.spread, "percent").replace("±", "± ")
    return f"{number(cell.mean, 'percent')} {around}".strip().replace(" ", "\u00a0") + "\u00a0%"


def _best(run: Run, where: str, best: str) -> Markup:
    cell, rows = run.summary.cell(best, where, "agreement"), run.test_rows
    seeds = f"mean ± sample standard deviation over {cell.n} seeds" if cell.n > 1 else "one seed, so no spread"
    return Markup(
        "Without data, <strong>{}</strong> does best: its student names the teacher's class on <strong>{}</strong> of "
        "the {} ({})."
    ).format(best, _score(run, where, best), _rows(where, rows), seeds)


def _rows(where: str, rows: int | None) -> str:
    count = f"{rows} " if rows else ""
    return f"{count}test rows" if where == "test" else f"{count}rows of {where}"


def _lead(run: Run, where: str, free: list[str]) -> Markup:
    best, others = free[0], free[1:]
    if not others:
        return Markup("No other data-free sampler has a score, so there is no lead to speak of.")
    cell, second = run.summary.cell(best, where, "agreement"), run.summary.cell(others[0], where, "agreement")
    gap = (cell.mean or 0.0) - (second.mean or 0.0)
    ahead = Markup("The next, <strong>{}</strong>, is {} points behind").format(others[0], f"{100 * gap:.1f}")
    if cell.n < 2:
        return ahead + Markup("; with one seed the spread is unknown and no lead is claimed.")
    rows = _rows_of(run, where, free)
    if best not in rows or len(rows) < 2:
        return ahead + Markup("; scores per row are missing, so no lead is claimed.")
    found = statistics.leads(rows, same_rows=_same_rows(where))
    if found.best != best:  # seeds that some lack are left out, which may change who is best
        return ahead + Markup("; on the seeds that all have, <strong>{}</strong> is best: no lead is claimed.").format(
            found.best
        )
    left_out = [s for s in others if s not in rows]
    tied = [s for s in others if s in found.over and s not in found.ahead]
    nearest = found.over.get(others[0])
    interval = f" (95 % interval {_points(nearest.low)} to {_points(nearest.high)})" if nearest else ""
    reach = _detectable(others[0], nearest, len(rows)) if nearest else Markup("")
    size = _against_spread(gap, cell.spread, second.spread)
    tail = Markup(" Not compared, for lack of the same seeds: {}.").format(listed(left_out)) if left_out else Markup("")
    method = "paired bootstrap over rows and seeds, Holm's correction over all pairs"
    if others[0] in left_out:
        return ahead + Markup("; it lacks some of the seeds, so no lead over it is claimed.")
    if not tied:
        claim = Markup("{}, {}. <strong>The lead over {} holds</strong> ({}).")
        return ahead + claim.format(interval, size, _all(rows, len(left_out)), method) + reach + tail
    beaten = (
        Markup(" It is ahead beyond chance of {} only.").format(listed(list(found.ahead)))
        if found.ahead
        else Markup("")
    )
    claim = Markup("{}, {}. <strong>No lead over {} is supported</strong> ({}).")
    return ahead + claim.format(interval, size, listed(tied), method) + beaten + reach + tail


def _detectable(second: str, difference: statistics.Difference, samplers: int) -> Markup:
    """What could have been seen at all: without it, no lead reads like no difference."""
    least = statistics.detectable(difference.error, difference.freedom, comparisons=samplers * (samplers - 1) // 2)
    if not 0.0 < least < 1.0:
        text = " With so few seeds no lead over {}, however large, would be found in four of five such comparisons."
        return Markup(text).format(second) if least else Markup("")
    text = " A lead over {} would have to be {} points to be found in four of five such comparisons."
    return Markup(text).format(second, f"{100 * least:.1f}")


def _all(rows: Mapping[str, Any], left_out: int) -> str:
    others = len(rows) - 1
    which = "compared" if left_out else "other"
    return "it" if others == 1 else f"all {others} {which} data-free samplers"


def _points(value: float) -> str:
    """An end of an interval; few seeds reach beyond what shares can differ by, and that is cut off."""
    return number(min(max(value, -1.0), 1.0), "points")


def _against_spread(gap: float, *spreads: float | None) -> str:
    widest = max((value for value in spreads if value is not None), default=0.0)
    return f"{'more' if gap > widest else 'no more'} than the larger spread of the two ({100 * widest:.1f})"


def _same_rows(where: str) -> bool:
    """Whether a row of the column is the same image for every sampler and seed; draws and worst cases are not."""
    if where in SAME_ROWS:
        return True
    try:
        parse_corruption(where)
    except ValueError:
        return False
    return True


def _rows_of(run: Run, where: str, samplers: list[str]) -> dict[str, dict[int, NDArray[Any]]]:
    """Scores per row of those samplers that have every seed of the first."""
    key = f"agreement|{where}"
    found = {
        sampler: {seed: arrays[key] for (name, seed), arrays in run.rows.items() if name == sampler and key in arrays}
        for sampler in samplers
    }
    needed = set(found[samplers[0]])
    return {sampler: by_seed for sampler, by_seed in found.items() if needed and needed <= set(by_seed)}


def _reference(run: Run, where: str, reference: str, best: str | None) -> Markup:
    sentence = Markup("The reference that reads data, <strong>{}</strong>, reaches {}").format(
        reference, _score(run, where, reference)
    )
    rows = _rows_of(run, where, [best, reference]) if best else {}
    if len(rows) == 2 and best and len(rows[best]) > 1:
        d = statistics.paired_difference(rows[reference], rows[best], same_rows=_same_rows(where))
        clear = "" if d.low > 0 or d.high < 0 else ", which does not tell them apart"
        sentence += Markup(": {} points against the best without data (95 % interval {} to {}{})").format(
            _points(d.mean), _points(d.low), _points(d.high), clear
        )
    return sentence + Markup(".")


def _excess(run: Run, where: str, best: str) -> list[Markup]:
    cell = run.summary.cell(best, where, "excess_agreement")
    if cell.mean is None:
        return []
    seeds = "one seed" if cell.n == 1 else f"{cell.n} seeds"
    text = (
        "With {} the student agrees with its teacher {} points {} than a control student of another teacher does ({})."
    )
    more = "more" if cell.mean >= 0 else "less"
    return [Markup(text).format(best, f"{100 * abs(cell.mean):.1f}", more, seeds)]


def _presets(run: Run) -> list[Markup]:
    """Whose students were trained in their own way: between those rows more differs than the inputs."""
    about = run.section("samplers")
    own = [s for s in run.order if isinstance(about.get(s), Mapping) and about[s].get("preset")]
    if not own:
        return []
    text = "Trained as their recipes' authors did, so more than the inputs differs between rows: <strong>{}</strong>."
    return [Markup(text).format(listed(own))]


def _failures(run: Run) -> list[Markup]:
    parts = []
    for sampler in run.order:
        failed = run.summary.failed[sampler]
        total = len(run.summary.of(sampler))
        for status in dict.fromkeys(failed.values()):
            count = sum(value == status for value in failed.values())
            how = "is unsupported here" if status == "unsupported" else "diverged"
            on = "" if total == 1 or status == "unsupported" else f" on {count} of {total} seeds"
            why = f" ({run.reasons[sampler]})" if status == "unsupported" and sampler in run.reasons else ""
            parts.append(f"{sampler} {how}{on}{why}")
    return [Markup("Without a score: {}.").format("; ".join(parts))] if parts else []
