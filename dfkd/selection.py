"""Which of several students to keep, where no labelled data says so: by how well they match where the data may lie.

No paper. Every student is asked about fresh rows of all the samplers, its own included, and its agreement with the
teacher is averaged over them, each weighted by the score that `dfkd scout` gives these rows: agreement on inputs that
the teacher takes for its data counts, agreement on noise hardly does. All are asked the same, so none is favoured but
by what its sampler is said to be worth. It is no test score, and no better than the scout's score is.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from dfkd.results import Line
from dfkd.scouting import Scouted, ranked

__all__ = ["preference"]

_PREFIX = "draws of "


def preference(lines: Sequence[Line]) -> dict[str, float]:
    """Weighted agreement in [0, 1] by sampler, best first, from a comparison's lines; means over its seeds.

    Samplers whose students were not trained to the end are left out, as are their draws. ValueError where none is left.
    """
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for line in lines:
        if line.status == "ok" and line.value is not None:
            found[line.sampler, line.evaluation, line.metric].append(line.value)
    means = {key: fmean(values) for key, values in found.items()}
    diagnosed = {label: _own(means, label) for label, evaluation, _ in means if evaluation == "own_draws"}
    weights = {one.label: one.score or 0.0 for one in ranked([Scouted(k, values=v) for k, v in diagnosed.items()])}
    scores = {}
    for label in diagnosed:
        asked = {bank: means.get((label, _PREFIX + bank, "agreement")) for bank in weights}
        known = {bank: value for bank, value in asked.items() if value is not None}
        total = sum(weights[bank] for bank in known)
        if total > 0.0:
            scores[label] = sum(weights[bank] * value for bank, value in known.items()) / total
    if not scores:
        raise ValueError("samplers: expected a student that was trained to the end and scored on draws, found none")
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


def _own(means: Mapping[tuple[str, str, str], float], label: str) -> dict[str, float | None]:
    return {metric: value for (who, where, metric), value in means.items() if (who, where) == (label, "own_draws")}
