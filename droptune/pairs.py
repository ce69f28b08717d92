"""The pairs of two arms, block by block: mean difference, interval and p-value.

Pure functions of numbers; verdict.py says what follows from them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from droptune import sequential
from droptune.errors import StudyError


@dataclass(frozen=True)
class Difference:
    """The mean paired difference, arm minus control, in the objective's unit.

    Attributes:
        mean: over the pairs; NaN without one.
        low, high: ends of the confidence interval of the mean, valid at every look; None where
            the pairs say nothing about the spread (too few, or all differences equal).
        p_value: two-sided, of no difference, valid at every look; None with too few pairs.
        n: number of pairs.
        level: of the interval.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    level: float = 0.95


@dataclass(frozen=True)
class Look:
    """The pairs of an arm with the control, at one look.

    Attributes:
        mean: of the differences; NaN without a pair.
        n: number of pairs.
        lacks: blocks in which the control has a value and the arm has none.
        error: standard error of the mean; None if it is not known.
        t: the mean over its error, or what stands for it; None with too few pairs.
        bar: what |t| must reach; None with too few pairs.
    """

    mean: float
    n: int
    lacks: int = 0
    error: float | None = None
    t: float | None = None
    bar: float | None = None

    def beyond(self, sign: float) -> bool:
        """Tell whether there is a difference on the side of `sign`."""
        return self.t is not None and sign * self.t >= self.bar

    def end(self, sign: float) -> float:
        """Return the end of the interval on the side of `sign`; infinite where it has none."""
        if self.error is None or self.bar is None:
            return sign * math.inf
        return self.mean + sign * self.bar * self.error

    @property
    def flat(self) -> bool:
        """Whether all pairs are equal."""
        return self.n > 1 and self.error == 0.0


def look(
    arm: Sequence[float], control: Sequence[float], level: float = 0.95, planned: int | None = None
) -> Look:
    """Return what the pairs of an arm and its control say now.

    A pair with a value that is not finite is left out. Differences that are all equal (to
    rounding) have no spread to measure: it is more likely that the objective is coarse, say an
    accuracy on few samples, than that it has no noise. All zero: there is no difference.
    Otherwise t is what gives the p-value of the sign test, 2 / 2^n, which uses the signs alone.

    Args:
        arm: the objective by block.
        control: the objective by block, in the same order.
        level: of the interval, in (0, 1).
        planned: number of blocks that the budget had when confirmation began; None: this is
            the one look.

    Raises:
        StudyError: the two do not have the same number of blocks.
    """
    x, y = np.asarray(arm, dtype=float), np.asarray(control, dtype=float)
    if x.shape != y.shape:
        raise StudyError(
            f"an arm has {x.size} blocks and its control {y.size}; give a value, or NaN, for"
            " every block"
        )
    both = np.isfinite(x) & np.isfinite(y)
    lacks = int(np.isfinite(y).sum() - both.sum())
    x, y = x[both], y[both]
    d, n = x - y, int(x.size)
    mean = float(d.mean()) if n else math.nan
    if n < (2 if planned is None else sequential.first_look(planned)):
        return Look(mean, n, lacks)
    spread = float(d.std(ddof=1))
    if planned is None:
        bar = float(stdtrit(n - 1, 0.5 + level / 2))
    else:
        bar = sequential.critical(n, planned, level)
    if spread > 8 * np.finfo(float).eps * max(np.abs(x).max(), np.abs(y).max()):
        error = spread / math.sqrt(n)
        return Look(mean, n, lacks, error, mean / error, bar)
    if not d.any():
        return Look(0.0, n, lacks, 0.0, 0.0, bar)
    by_signs = math.copysign(float(stdtrit(n - 1, 1 - 2.0**-n)), mean)
    return Look(mean, n, lacks, None, by_signs, bar)


def paired_difference(
    arm: Sequence[float], control: Sequence[float], level: float = 0.95, planned: int | None = None
) -> Difference:
    """Return the mean of `arm - control` over blocks with its t interval and p-value.

    With `planned` they are valid at all looks; without it they are those of the paired t test,
    as `scipy.stats.ttest_rel`. Arguments and errors as in `look`.
    """
    return difference_of(look(arm, control, level, planned), level, planned)


def difference_of(one: Look, level: float, planned: int | None) -> Difference:
    """Return a look with its interval and p-value."""
    if one.t is None:
        return Difference(one.mean, None, None, None, one.n, level)
    if planned is None:
        p_value = float(2 * stdtr(one.n - 1, -abs(one.t)))
    else:
        p_value = sequential.p_value(one.t, one.n, planned)
    if one.error is None:
        return Difference(one.mean, None, None, p_value, one.n, level)
    return Difference(one.mean, one.end(-1.0), one.end(1.0), p_value, one.n, level)
