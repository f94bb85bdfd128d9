"""Whether one student is better than another, over rows and seeds.

Owen: The pigeonhole bootstrap. 2007. arXiv:0712.1111 (rows and seeds are crossed, so both are resampled). Hesterberg:
What Teachers Should Know about the Bootstrap. 2014. arXiv:1411.5279 (Student's t with the bootstrap's standard error,
since percentiles of few values are too narrow). Holm: A simple sequentially rejective multiple test procedure. 1979.
doi:10.2307/4615733. Changed: seed effects are widened by S / (S - 1) and what rows and seeds do together is counted
once, where the plain crossed bootstrap of S seeds counts the first too low and the second up to three times.

What few seeds mean: the difference of two students that are each trained S times is known no better than S numbers
allow. Where seeds matter more than rows, three of them leave two degrees of freedom, and a difference of four standard
errors just excludes zero. Resampling cannot invent seeds: the interval gets wide, and that is the truth. With one seed
it covers the rows only, and no lead is claimed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

__all__ = ["Difference", "Spread", "Verdict", "holm", "leads", "paired_difference", "spread"]

Rows = Mapping[int, NDArray[Any]]
"""One metric's value for each evaluation row (n,), by seed."""

_CHUNK = 2_000_000  # resampled row numbers held at a time


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
    return _compare(stacked[:1] - stacked[1:], seeds, same_rows, resamples, level, seed)[0]


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
    those with the best: of many equal labels the best and the worst always look different.
    """
    if len(rows) < 2:
        raise ValueError(f"rows: expected at least two labels, found {list(rows)!r}")
    seeds, stacked = _stack(rows)
    sign = 1.0 if higher_is_better else -1.0
    labels, pairs = list(rows), list(combinations(range(len(rows)), 2))
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    compared = _compare(sign * (stacked[first] - stacked[second]), seeds, same_rows, resamples, level, seed)
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
    d: NDArray[np.float64], seeds: list[int], same_rows: bool, resamples: int, level: float, seed: int
) -> list[Difference]:
    """d (pairs, seeds, n) -> a Difference for each pair."""
    if resamples < 100:
        raise ValueError(f"resamples: expected an integer >= 100, found {resamples!r}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number between 0 and 1, found {level!r}")
    mean, by_seed = d.mean(axis=(1, 2)), d.mean(axis=2)
    error, freedom = _errors(d, same_rows, resamples, np.random.default_rng(seed))
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


def _errors(
    d: NDArray[np.float64], same_rows: bool, resamples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """d (pairs, S, n) -> the standard error of its mean and the degrees of freedom (Satterthwaite), (pairs,) each.

    The mean over seeds and rows has the variance  seeds / S + rows / n + both / (S n).  Seed means resampled give the
    first and third part, row means the second and third.
    """
    pairs, count, n = d.shape
    mean = d.mean(axis=(1, 2), keepdims=True)
    seed_effect, row_effect = d.mean(axis=2, keepdims=True) - mean, d.mean(axis=1, keepdims=True) - mean
    if count == 1:
        within = _resampled_variance(row_effect[:, 0], resamples, rng)
        return np.sqrt(within), np.full(pairs, n - 1.0)
    over_seeds = _resampled_variance(seed_effect[:, :, 0], resamples, rng)
    if same_rows:
        within = _resampled_variance(row_effect[:, 0], resamples, rng)
        rest = d - mean - seed_effect - row_effect
        both = (rest**2).sum(axis=(1, 2)) / ((count - 1) * (n - 1)) / (count * n)
        rows_alone = np.maximum(within - both, 0.0)
    else:  # every seed has rows of its own, and its mean carries their noise already
        within = d.var(axis=2, ddof=1).sum(axis=1) / n / count**2
        rows_alone = np.zeros(pairs)
    total = np.maximum(over_seeds + rows_alone, within)  # three seed means may be alike by luck, many rows are not
    from_rows = total - over_seeds
    parts = over_seeds**2 / (count - 1) + np.maximum(from_rows, 0.0) ** 2 / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(parts > 0.0, total**2 / parts, n - 1.0)
    return np.sqrt(total), np.minimum(freedom, n * count - 1.0)


def _resampled_variance(effects: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """effects (pairs, m), each centred -> the variance of their resampled means, times m / (m - 1).

    All pairs see the same resamples. The factor makes it unbiased: m values lie closer to their own mean than to the
    true one.
    """
    m = effects.shape[1]
    means, at_a_time = [], max(1, _CHUNK // m)
    for start in range(0, resamples, at_a_time):
        b = min(at_a_time, resamples - start)
        drawn = rng.integers(0, m, size=(b, m)) + m * np.arange(b)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=b * m).reshape(b, m)
        means.append(weights @ effects.T / m)
    resampled = np.concatenate(means)
    variance: NDArray[np.float64] = (resampled**2).mean(axis=0) * m / (m - 1)
    return variance
