"""Whether one student is better than another, over rows and seeds.

Hesterberg: What Teachers Should Know about the Bootstrap. 2014. arXiv:1411.5279 (Student's t with the bootstrap's
standard error, since percentiles of few values are too narrow). Holm: A simple sequentially rejective multiple test
procedure. 1979. doi:10.2307/4615733. Changed: rows and seeds are both resampled, see `variance`.

What few seeds mean: the difference of two students that are each trained S times is known no better than S numbers
allow. Where seeds matter more than rows, three of them leave two degrees of freedom, and a difference of four standard
errors just excludes zero. Resampling cannot invent seeds: the interval is wide, and that is the truth. What does help
is more labels: from four on, `leads` shares what all pairs say about the spread over seeds. With one seed an interval
covers the rows only, and no lead is claimed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, stdtr, stdtrit

from dfkd.fidelity.variance import standard_errors

__all__ = ["Difference", "Spread", "Verdict", "detectable", "holm", "leads", "paired_difference", "spread"]

Rows = Mapping[int, NDArray[Any]]
"""One metric's value for each evaluation row (n,), by seed."""


@dataclass(frozen=True)
class Spread:
    """mean over the seeds, std with S - 1 (None for one seed), seeds."""

    mean: float
    std: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """How much larger a's mean is than b's.

    low, high: a 95 % interval (unless another level was asked for). p_value: two-sided, against no difference.
    adjusted: after Holm's correction, where there was one. error: the standard error. freedom: its degrees of freedom,
    from S - 1 where seeds decide to n - 1 where rows do. per_seed: the difference for every seed.
    """

    mean: float
    low: float
    high: float
    p_value: float
    error: float
    freedom: float
    per_seed: Mapping[int, float]
    rows: int
    adjusted: float | None = None

    @property
    def seeds(self) -> int:
        return len(self.per_seed)


@dataclass(frozen=True)
class Verdict:
    """best: the label with the best mean. leads: whether it is ahead of every other one beyond chance.

    over: best against each other label (better is positive), `adjusted` for all pairs of labels. ahead: the labels it
    is ahead of beyond chance. note: one sentence for people.
    """

    best: str
    leads: bool
    ahead: tuple[str, ...]
    over: Mapping[str, Difference]
    note: str


def spread(values: Mapping[int, float] | Sequence[float]) -> Spread:
    """Mean and standard deviation over seeds."""
    found = np.asarray(list(values.values() if isinstance(values, Mapping) else values), dtype=np.float64)
    if not len(found):
        raise ValueError("values: expected at least one number, found none")
    return Spread(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None, len(found))


def paired_difference(
    a: Rows, b: Rows, *, same_rows: bool = True, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Mean of a - b over the seeds that both have, with its interval. Row i of a and of b must be the same input.

    same_rows: whether row i is the same input in all seeds too (the test set: yes; a bank drawn per seed: no).
    """
    seeds, stacked = _stack({"a": a, "b": b})
    return _compare(stacked[:1] - stacked[1:], seeds, 2, same_rows, resamples, level, seed)[0]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values -> as many, adjusted so that the chance of any false rejection is at most the level compared with."""
    found = np.asarray(p_values, dtype=np.float64)
    if not (np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()):
        raise ValueError(f"p_values: expected numbers from 0 to 1, found {list(p_values)!r}")
    order = np.argsort(found, kind="stable")
    stepped = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in adjusted]


def detectable(error: float, freedom: float, *, level: float = 0.95, power: float = 0.8, comparisons: int = 1) -> float:
    """The smallest true difference that is told from none in a share `power` of such experiments; in error's unit.

    error: the standard error of a difference, freedom: its degrees of freedom. comparisons: of how many the chance of
    any false claim is kept at 1 - level (each at its part of that, so what Holm's steps gain is left out). Cohen:
    Statistical Power Analysis for the Behavioral Sciences. 1988, with Student's t: how far it must be shifted.
    """
    if not (error >= 0.0 and freedom > 0.0 and comparisons >= 1 and 0.0 < level < 1.0 and 0.0 < power < 1.0):
        raise ValueError(
            "detectable: expected error >= 0, freedom > 0, comparisons >= 1, level and power between 0 and 1, found "
            f"{error!r}, {freedom!r}, {comparisons!r}, {level!r}, {power!r}"
        )
    threshold = -float(stdtrit(freedom, 0.5 * (1.0 - level) / comparisons))
    # t > threshold where a normal number, shifted, is larger than threshold times the root of a chi-square over freedom
    middles = (np.arange(4000) + 0.5) / 4000
    hurdles = threshold * np.sqrt(2.0 * gammaincinv(0.5 * freedom, middles) / freedom)
    low, high = 0.0, 10.0 + 4.0 * float(hurdles.max())
    for _ in range(60):  # power rises with the shift
        shift = 0.5 * (low + high)
        low, high = (low, shift) if ndtr(shift - hurdles).mean() > power else (shift, high)
    return error * high


def leads(
    rows: Mapping[str, Rows],
    *,
    higher_is_better: bool = True,
    same_rows: bool = True,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """The best label and whom it is ahead of beyond chance, over the seeds that all labels have.

    Which label is best is read off the same rows, so Holm's correction is over all pairs of labels and not only over
    those with the best: of many equal labels the best and the worst always look different. The intervals are each
    label's own, without that correction.
    """
    if len(rows) < 2:
        raise ValueError(f"rows: expected at least two labels, found {list(rows)!r}")
    seeds, stacked = _stack(rows)
    sign = 1.0 if higher_is_better else -1.0
    labels, pairs = list(rows), list(combinations(range(len(rows)), 2))
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    compared = _compare(sign * (stacked[first] - stacked[second]), seeds, len(rows), same_rows, resamples, level, seed)
    adjusted = holm([c.p_value for c in compared])
    best = int(np.argmax(sign * stacked.mean(axis=(1, 2))))
    over = {}
    for (i, j), difference, p in zip(pairs, compared, adjusted, strict=True):
        if best in (i, j):
            over[labels[j if best == i else i]] = replace(
                difference if best == i else _reversed(difference), adjusted=p
            )
    enough = len(seeds) > 1
    ahead = tuple(other for other, d in over.items() if enough and d.mean > 0 and (d.adjusted or 0.0) < 1.0 - level)
    return Verdict(labels[best], len(ahead) == len(over), ahead, over, _say(labels[best], ahead, over, len(seeds)))


def _say(best: str, ahead: tuple[str, ...], over: Mapping[str, Difference], seeds: int) -> str:
    if seeds == 1:
        return f"{best} has the best mean; one seed says nothing about the spread over seeds, so no lead is claimed."
    if len(ahead) == len(over):
        return f"{best} leads all {len(over)} others beyond what {seeds} seeds and these rows leave to chance."
    level = [other for other in over if other not in ahead]
    return (
        f"{best} has the best mean but no clear lead over {', '.join(level)}: "
        f"after Holm's correction {seeds} seeds and these rows do not exclude a tie."
    )


def _reversed(d: Difference) -> Difference:
    return replace(d, mean=-d.mean, low=-d.high, high=-d.low, per_seed={s: -v for s, v in d.per_seed.items()})


def _stack(rows: Mapping[str, Rows]) -> tuple[list[int], NDArray[np.float64]]:
    """The seeds all labels have, and (labels, seeds, n) float64."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in rows.values())))
    if not seeds:
        raise ValueError(f"rows: expected a seed that all of {', '.join(rows)} have, found none")
    shapes = {np.shape(by_seed[s]) for by_seed in rows.values() for s in seeds}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or next(iter(shapes))[0] < 2:
        raise ValueError(f"rows: expected arrays of one shape (n,) with n >= 2, found {sorted(shapes)!r}")
    stacked = np.array([[by_seed[s] for s in seeds] for by_seed in rows.values()], dtype=np.float64)
    if not np.isfinite(stacked).all():
        raise ValueError("rows: expected finite numbers, found NaN or infinity")
    return seeds, stacked


def _compare(
    d: NDArray[np.float64], seeds: list[int], labels: int, same_rows: bool, resamples: int, level: float, seed: int
) -> list[Difference]:
    """d (pairs, seeds, n), the pairs among so many labels -> a Difference for each pair."""
    if resamples < 100:
        raise ValueError(f"resamples: expected an integer >= 100, found {resamples!r}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number between 0 and 1, found {level!r}")
    mean, by_seed = d.mean(axis=(1, 2)), d.mean(axis=2)
    error, freedom = standard_errors(d, same_rows, resamples, np.random.default_rng(seed), labels)
    reach = error * stdtrit(freedom, 0.5 + 0.5 * level)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = stdtr(freedom, -np.abs(mean) / error)
    p_value = np.where(error > 0.0, 2.0 * tail, np.where(mean == 0.0, 1.0, 0.0))
    return [
        Difference(
            mean=float(mean[i]),
            low=float(mean[i] - reach[i]),
            high=float(mean[i] + reach[i]),
            p_value=float(p_value[i]),
            error=float(error[i]),
            freedom=float(freedom[i]),
            per_seed={s: float(v) for s, v in zip(seeds, by_seed[i], strict=True)},
            rows=d.shape[2],
        )
        for i in range(len(d))
    ]
