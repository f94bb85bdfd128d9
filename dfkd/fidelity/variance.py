"""How uncertain a mean over crossed seeds and rows is: its standard error and degrees of freedom.

Owen: The pigeonhole bootstrap. 2007. arXiv:0712.1111. Smyth: Linear models and empirical Bayes methods for assessing
differential expression. 2004. doi:10.2202/1544-6115.1027. Changed: seeds and rows are resampled apart, so that what
they do together is counted once where the plain crossed bootstrap counts it up to three times, and each part is
unbiased; Smyth's shared prior is put on the variance over seeds of all pairs of labels of a comparison.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

__all__ = ["standard_errors"]

Array = NDArray[np.float64]

_CHUNK: Final = 2_000_000  # resampled row numbers held at a time
_FEW: Final = 6  # pairs from which a shared prior is worth estimating: four labels


def standard_errors(
    d: Array, same_rows: bool, resamples: int, rng: np.random.Generator, labels: int
) -> tuple[Array, Array]:
    """d (pairs, S, n) -> the standard error of each mean and its degrees of freedom (Satterthwaite), (pairs,) each.

    The mean over seeds and rows has the variance  seeds / S + rows / n + both / (S n).  Seed means resampled give the
    first and third part, row means the second and third.
    """
    pairs, count, n = d.shape
    mean = d.mean(axis=(1, 2), keepdims=True)
    seed_effect, row_effect = d.mean(axis=2, keepdims=True) - mean, d.mean(axis=1, keepdims=True) - mean
    if count == 1:
        return np.sqrt(resampled_variance(row_effect[:, 0], resamples, rng)), np.full(pairs, n - 1.0)
    over_seeds = resampled_variance(seed_effect[:, :, 0], resamples, rng)
    if same_rows:
        within = resampled_variance(row_effect[:, 0], resamples, rng)
        rest = d - mean - seed_effect - row_effect
        both = (rest**2).sum(axis=(1, 2)) / ((count - 1) * (n - 1)) / (count * n)
        rows_alone = np.maximum(within - both, 0.0)
    else:  # every seed has rows of its own, and its mean carries their noise already
        both = within = d.var(axis=2, ddof=1).sum(axis=1) / n / count**2
        rows_alone = np.zeros(pairs)
    over_seeds, seed_freedom = shared(over_seeds, count - 1.0, both, (labels - 1.0) * (count - 1.0))
    total = np.maximum(over_seeds + rows_alone, within)  # three seed means may be alike by luck, many rows are not
    parts = over_seeds**2 / seed_freedom + np.maximum(total - over_seeds, 0.0) ** 2 / (n - 1)
    freedom = np.divide(total**2, parts, out=np.full(pairs, n - 1.0), where=parts > 0.0)
    return np.sqrt(total), np.minimum(freedom, n * count - 1.0)


def resampled_variance(effects: Array, resamples: int, rng: np.random.Generator) -> Array:
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
    variance: Array = (np.concatenate(means) ** 2).mean(axis=0) * m / (m - 1)
    return variance


def shared(variance: Array, freedom: float, least: Array, most_freedom: float) -> tuple[Array, float]:
    """Variances (pairs,) of few degrees of freedom, each drawn to what all pairs have in common; and the new freedom.

    The more alike the variances are, the more is shared. least (pairs,): what the noise of the rows alone makes of a
    variance over seeds; a value far below it is luck, and its logarithm would drown the others. most_freedom: there
    are no more independent seed effects than this, however many pairs.
    """
    if len(variance) < _FEW or not (np.maximum(variance, least) > 0.0).all():
        return variance, freedom
    logs = np.log(np.maximum(variance, 0.05 * least)) - digamma(freedom / 2.0) + np.log(freedom / 2.0)
    surplus = logs.var(ddof=1) - polygamma(1, freedom / 2.0)  # beyond what so few seeds make of equal variances
    if surplus <= 0.0:
        return np.full_like(variance, np.exp(logs.mean())), most_freedom
    prior = 2.0 * _trigamma_inverse(float(surplus))
    common = np.exp(logs.mean() + digamma(prior / 2.0) - np.log(prior / 2.0))
    drawn: Array = (prior * common + freedom * variance) / (prior + freedom)
    return drawn, min(prior + freedom, most_freedom)


def _trigamma_inverse(value: float) -> float:
    """The y with trigamma(y) = value > 0, by Newton's method on 1 / trigamma, which is nearly straight."""
    y = 0.5 + 1.0 / value
    for _ in range(50):
        now = float(polygamma(1, y))
        y += now * (1.0 - now / value) / float(polygamma(2, y))
    return y
