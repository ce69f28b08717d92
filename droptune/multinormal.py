"""A normal distribution of several variables, from rows with gaps; what it says of the last.

Pure functions of numbers; used by paired.py.

Sources: expectation and maximization over gaps, Dempster, Laird, Rubin 1977, as in Little, Rubin,
Statistical Analysis with Missing Data, 3rd edition, 11.2; a prior of so many observations with
given correlations, ridge-like, the same, 11.2.3, and Schäfer, Strimmer 2005,
https://doi.org/10.2202/1544-6115.1175; the predictive t distribution, Gelman et al., Bayesian
Data Analysis, 3rd edition, 3.6 and 14.3.
"""

import math
from dataclasses import dataclass

import numpy as np

#: Rounds of expectation and maximization. They begin with the rows that have the last variable,
#: whose regressions hold for rows cut short by what is seen, so few are needed.
_ROUNDS = 5
#: Spread that rounding alone may have, of the largest value.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Normal:
    """Centre and scale of the variables, and how they vary together on that scale.

    Attributes:
        centre: what z is measured from, of shape `(variables,)`.
        scale: the unit of z, of shape `(variables,)`.
        mean: of z, of shape `(variables,)`.
        covariance: of z, of shape `(variables, variables)`.
        weight: observations that the prior counts as.
    """

    centre: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    weight: float

    def predicted(self, row: np.ndarray, seen: int) -> tuple[float, float, float]:
        """Predict the last variable from those of the others that a row has.

        The variance is that of regression, `1 + 1 / n + d² / (n + weight)` times that given
        the row: a row unlike those seen, at squared distance d², is predicted with less
        certainty. The degrees of freedom are n + weight.

        Args:
            row: of shape `(variables,)`, the last one NaN; NaN where nothing is known.
            seen: rows that have the last variable, n.

        Returns:
            Location, scale (positive) and degrees of freedom of a t distribution.
        """
        known = ~np.isnan(row)
        off = ((row - self.centre) / self.scale - self.mean)[known]
        among, across = self.covariance[np.ix_(known, known)], self.covariance[known, -1]
        slopes, unlike = np.linalg.solve(among, np.stack([across, off], 1)).T
        freedom = seen + self.weight
        rest = max(self.covariance[-1, -1] - across @ slopes, _ROUNDING**2)
        spread = math.sqrt(rest * (1 + 1 / seen + off @ unlike / freedom))
        location = self.centre[-1] + self.scale[-1] * (self.mean[-1] + off @ slopes)
        return float(location), float(self.scale[-1] * spread), freedom


def fitted(rows: np.ndarray, prior: np.ndarray, weight: float) -> Normal:
    """Fit a normal distribution to rows with gaps.

    What is missing may depend on what is there, as when a trial is stopped for its curve.

    Args:
        rows: of shape `(rows, variables)`, NaN where a value is missing; some have the last.
        prior: correlations, of shape `(variables, variables)`.
        weight: observations that they count as, positive.
    """
    there = ~np.isnan(rows)
    count = np.maximum(there.sum(0), 1)
    values = np.where(there, rows, 0.0)
    centre = values.sum(0) / count
    off = np.where(there, rows - centre, 0.0)
    scale = np.maximum(np.sqrt((off**2).sum(0) / count), _ROUNDING * np.abs(values).max(0))
    scale[scale == 0] = 1.0
    z = off / scale
    patterns, which = np.unique(there, axis=0, return_inverse=True)
    members = [np.flatnonzero(which.ravel() == n) for n in range(len(patterns))]
    told = z[there[:, -1]]
    mean, covariance = _moments(told, np.zeros_like(prior), prior, weight)
    for _ in range(_ROUNDS):
        full, gaps = _expected(z, patterns, members, mean, covariance)
        mean, covariance = _moments(full, gaps, prior, weight)
    return Normal(centre, scale, mean, covariance, weight)


def _moments(
    full: np.ndarray, gaps: np.ndarray, prior: np.ndarray, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of filled rows, with the prior's on the scale of theirs."""
    mean = full.mean(0)
    total = (full - mean).T @ (full - mean) + gaps
    spread = np.sqrt(np.maximum(np.diag(total) / len(full), _ROUNDING**2))
    return mean, (total + weight * prior * np.outer(spread, spread)) / (len(full) + weight)


def _expected(
    z: np.ndarray,
    patterns: np.ndarray,
    members: list[np.ndarray],
    mean: np.ndarray,
    covariance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows with their gaps filled as expected, and the covariance of what is filled."""
    full, gaps = z.copy(), np.zeros_like(covariance)
    for there, rows in zip(patterns, members, strict=True):
        if there.all():
            continue
        known, missing = np.ix_(there, there), np.ix_(there, ~there)
        slopes = np.linalg.solve(covariance[known], covariance[missing])
        full[np.ix_(rows, ~there)] = mean[~there] + (z[np.ix_(rows, there)] - mean[there]) @ slopes
        left = covariance[np.ix_(~there, ~there)] - covariance[missing].T @ slopes
        gaps[np.ix_(~there, ~there)] += len(rows) * left
    return full, gaps
