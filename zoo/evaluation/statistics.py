"""Means with intervals: bootstrap over rows, or over clusters of rows that share a context; Student's t over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
SEED = 20_251_100  # of the resampling; fixed, so that the same rows give the same interval
AT_ONCE = 1 << 22  # counts held at a time


@dataclass(frozen=True)
class Estimate:
    """A weighted mean over rows, its standard error, and a 95% percentile interval, all from the bootstrap.

    stderr, low and high are None where a single row or cluster says nothing about the spread.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    rows: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {"value": self.value, "stderr": self.stderr, "low": self.low, "high": self.high, "rows": self.rows}


def bootstrap(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    clusters: Sequence[object] | None = None,
    share: bool = False,
) -> Estimate:
    """The weighted mean of `values` and how far it may be off.

    clusters: rows of one cluster are drawn together, since rows that share a context are not independent; None, as a
    cluster, is a row of its own.
    share: the values are between 0 and 1. Where all are 0, or all are 1, every resample is alike and shows no spread,
    so the interval is the exact one of that many draws (Clopper-Pearson): none right of 100 is 0% to 3.6%.
    Raises ValueError without values.
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        raise ValueError("bootstrap: no values")
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)
    value = float((w * x).sum() / w.sum())
    totals_C2 = _cluster_totals(np.stack((w * x, w), 1), clusters)
    n = len(totals_C2)
    if n < 2:
        return Estimate(value, None, None, None, len(x))
    rng = np.random.default_rng(SEED)
    means, at_once = [], max(1, AT_ONCE // n)
    for start in range(0, RESAMPLES, at_once):
        counts_RC = rng.multinomial(n, np.full(n, 1 / n), size=min(at_once, RESAMPLES - start))
        sums_R2 = counts_RC @ totals_C2
        means.append(sums_R2[:, 0] / np.maximum(sums_R2[:, 1], 1e-300))
    means_R = np.concatenate(means)
    low, high = np.percentile(means_R, (2.5, 97.5))
    if share and (x.max() == 0 or x.min() == 1):
        reach = 1 - 0.025 ** (1 / n)
        low, high = (0.0, reach) if value == 0 else (1 - reach, 1.0)
    return Estimate(value, float(means_R.std(ddof=1)), float(low), float(high), len(x))


def _cluster_totals(rows_N2: np.ndarray, clusters: Sequence[object] | None) -> np.ndarray:
    if clusters is None or all(cluster is None for cluster in clusters):
        return rows_N2
    keys = [("row", i) if cluster is None else ("cluster", cluster) for i, cluster in enumerate(clusters)]
    index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    totals = np.zeros((len(index), 2))
    np.add.at(totals, [index[key] for key in keys], rows_N2)
    return totals


def t_interval(
    values: Sequence[float], level: float = 0.95, rounding: float = 0.0
) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of independent values, such as one of each seed; (None, None) below two.

    rounding: variance that each value has by `rounding_variance`, which equal values do not show.
    """
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    mean, error = _mean_and_error(values, rounding)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def t_test(values: Sequence[float], rounding: float = 0.0) -> float:
    """Two-sided p of a mean of 0; 1 if all values are 0.  rounding: as of `t_interval`.

    Raises ValueError below two values.
    """
    if len(values) < 2:
        raise ValueError(f"t_test: needs two values; found {len(values)}")
    from scipy.stats import t

    mean, error = _mean_and_error(values, rounding)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / error, len(values) - 1))


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation of two or more values; exactly 0 if they are equal."""
    mean = statistics.mean(values)  # rounded once, so that equal values have their own value as mean
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def rounding_variance(step: float) -> float:
    """Variance of the error of a number that is known to the nearest multiple of `step`: step^2 / 12.

    The share of n rows is a multiple of 1 / n. A few seeds often have the same share; this does not show that the seed
    has no influence.
    """
    return step**2 / 12


def _mean_and_error(values: Sequence[float], rounding: float) -> tuple[float, float]:
    return statistics.mean(values), math.sqrt((deviation(values) ** 2 + rounding) / len(values))
