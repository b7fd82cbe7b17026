"""What a study may conclude: the chosen point, means with intervals, differences paired by seed, Holm's correction.

Intervals are Student's t over seeds: with the handful of seeds that a study has, a percentile bootstrap is far too
narrow (three seeds have ten different resamples). Differences are t intervals of the differences seed by seed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zoo.evaluation.statistics import deviation, rounding_variance, t_interval, t_test

LEVEL = 0.95
EXPONENTS = (math.log(1e-2), math.log(5.0))  # logarithms of those that are tried for a curve


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95% interval; low and high are None with fewer than two seeds."""

    value: float
    low: float | None
    high: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float], step: float = 0.0) -> "Mean | None":
        """None without values.  step: values are multiples of it, as shares of rows are; 0 if they are not."""
        if not values:
            return None
        sd = deviation(values) if len(values) > 1 else None
        return cls(statistics.mean(values), *t_interval(values, LEVEL, rounding_variance(step)), sd, len(values))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """An architecture less the first one, seed by seed.

    low, high: 95% interval by itself.  holm_low, holm_high: interval at the level of Holm's step, so that all
    differences of the family are right together with 95%; it contains 0 exactly if the difference is undecided.
    p, p_holm: two-sided, before and after the correction.  None with fewer than two common seeds.
    A difference that is in no family has no corrected numbers, and is never decided.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    holm_low: float | None = None
    holm_high: float | None = None
    p_holm: float | None = None

    @property
    def decided(self) -> bool:
        """Whether the difference is more than chance, after the correction."""
        return self.p_holm is not None and self.p_holm < 1 - LEVEL

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"decided": self.decided}


def paired(first: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """The differences of `other` from `first`, seed -> value each, at the seeds that both have."""
    return [other[seed] - first[seed] for seed in first if seed in other]


def differences(
    pairs: Mapping[Any, Sequence[float]], steps: Mapping[Any, float] | None = None
) -> dict[Any, Difference]:
    """Each difference with its interval; all are one family for Holm's correction (Holm 1979).

    pairs: key -> the `paired` differences.  A key without common seeds is left out.  steps: as of `difference`, by key.
    """
    step_of = dict.fromkeys(pairs, 0.0) | dict(steps or {})
    found = {key: difference(values, step_of[key]) for key, values in pairs.items() if values}
    corrected = _holm({key: each.p for key, each in found.items() if each.p is not None})
    for key, (level, p_holm) in corrected.items():
        low, high = t_interval(pairs[key], level, _rounding(step_of[key]))
        found[key] = replace(found[key], holm_low=low, holm_high=high, p_holm=p_holm)
    return found


def difference(values: Sequence[float], step: float = 0.0) -> Difference:
    """One difference by itself, in no family: its interval is not corrected, and it is never decided.

    values: the `paired` differences, at least one.  step: what is compared are multiples of it, as shares of rows are.
    """
    mean = statistics.mean(values)
    if len(values) < 2:
        return Difference(mean, len(values))
    rounding = _rounding(step)
    return Difference(mean, len(values), *t_interval(values, LEVEL, rounding), t_test(values, rounding))


def _rounding(step: float) -> float:
    """Variance by rounding of the difference of two numbers."""
    return 2 * rounding_variance(step)


def _holm(p_values: Mapping[Any, float]) -> dict[Any, tuple[float, float]]:
    """Key -> (confidence level of its step, corrected p).

    The smallest of m p-values is compared with 5% / m, the next with 5% / (m - 1), and so on until one is not smaller:
    the rest then stays undecided, at the level of that step.
    """
    m, steps, worst, stopped = len(p_values), {}, 0.0, None
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        worst = max(worst, min(1.0, (m - rank) * p))
        level = 1 - (1 - LEVEL) / (m - rank)
        if stopped is None and worst >= 1 - LEVEL:
            stopped = level
        steps[key] = (stopped or level), worst
    return steps


@dataclass(frozen=True)
class Choice:
    """The point of the grid that an architecture is judged at.

    losses: point label -> mean validation loss over the choosing seeds, None where all runs diverged or failed.
    edges: keys whose chosen value is the smallest or largest that was tried, runs that diverged included.
    """

    label: str | None
    losses: dict[str, float | None]
    edges: list[str]


def choose(losses: Mapping[str, Sequence[float | None]], values: Mapping[str, Mapping[str, Any]]) -> Choice:
    """Choose the point with the lowest mean loss; of equal ones the first.

    losses: point label -> loss for each choosing seed, None for a run that diverged or failed: such a point is not
    chosen.  values: point label -> key -> value.  `label` is None if no point has a loss.
    """
    known = {label: [loss for loss in found if loss is not None] for label, found in losses.items()}
    whole = {label for label, found in losses.items() if found and None not in found}
    means = {label: statistics.mean(found) if label in whole else None for label, found in known.items()}
    usable = {label: mean for label, mean in means.items() if mean is not None}
    if not usable:
        return Choice(None, means, [])
    best = min(usable, key=usable.__getitem__)
    return Choice(best, means, _edges(best, values))


def _edges(best: str, values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Keys whose chosen value is the smallest or largest that was tried, the values of the other keys being equal."""
    found = []
    for key, chosen in values[best].items():
        # Runs that diverged are among them: such a value bounds the best one just as a worse one does.
        tried = [point[key] for point in values.values() if _same_but(point, values[best], key)]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried)
        if numbers and len(tried) > 1 and chosen in (min(tried), max(tried)):
            found.append(key)
    return found


def _same_but(point: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    """Whether two points have the same values, but for that of `key`."""
    return all(point[k] == other[k] for k in point if k != key)


@dataclass(frozen=True)
class Curve:
    """L(C) = E + A (C / C0)^-b, fitted to the loss of the first architecture against its training FLOPs.

    C0: the FLOPs of its last point, for numbers of a handy size.  error: root mean square of the residuals.
    """

    e: float
    a: float
    b: float
    c0: float
    first: float
    last: float
    error: float

    def flops_for(self, loss: float) -> float | None:
        """FLOPs at which the curve reaches a loss; None at and below its limit E, or where it does not fall.

        Infinite where a float cannot hold the number: a flat curve reaches a loss near its limit at 10^300 FLOPs.
        """
        if loss <= self.e or self.a <= 0:
            return None
        try:
            return self.c0 * ((loss - self.e) / self.a) ** (-1 / self.b)
        except OverflowError:
            return math.inf

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def fit_curve(flops: Sequence[float], losses: Sequence[float]) -> Curve | None:
    """Fit a power law with a limit to the points after the first tenth of the FLOPs; None with fewer than five.

    For a given exponent E and A are a linear problem, so the search has one dimension.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar, nnls

    last = max(flops, default=0.0)
    kept = [(c, loss) for c, loss in zip(flops, losses, strict=True) if c >= 0.1 * last and c > 0]
    if len(kept) < 5:
        return None
    c_N, y_N = np.array(kept).T

    def solve(log_b: float):
        terms_N2 = np.stack([np.ones_like(y_N), (c_N / last) ** -math.exp(log_b)], axis=1)
        return nnls(terms_N2, y_N)  # neither the limit nor the slope is below 0

    best = minimize_scalar(lambda log_b: solve(log_b)[1], bounds=EXPONENTS, method="bounded")
    (e, a), norm = solve(best.x)
    return Curve(float(e), float(a), math.exp(best.x), last, float(c_N.min()), last, norm / math.sqrt(len(kept)))
