"""The boundary of a t test that may stop after any block; pure functions of numbers.

Looking at the pairs after every block and stopping when they please is testing many times.
The error is kept at its level by spending it over the looks: by look n at most
`alpha * spent(n, planned)` of it (Lan & DeMets 1983, https://doi.org/10.1093/biomet/70.3.659),
up to the planned number of blocks by the power family (Kim & DeMets 1987,
https://doi.org/10.1093/biomet/74.1.149), which is sparing at first, when a t statistic of few
pairs is wild. What is left after the plan pays for the blocks that a user adds after
"undecided": however often the budget is raised, the sum never passes the level.

How high the bar must be at each look follows from the recursion of Armitage, McPherson & Rowe
1969 (https://doi.org/10.2307/2343787): the distribution of the statistic among the paths that
have not crossed yet is carried from look to look. Theirs takes the variance as known; with
three pairs it is not. For a t statistic the recursion is exact, too, for any spread (Jennison &
Turnbull 1991, https://doi.org/10.1093/biomet/78.1.133): with S the sum and Q the sum of squares
of n normal differences without an effect, U = S / sqrt(Q) is a Markov chain, for Q is
independent of the direction of the differences, hence of all U so far; and

    U' = (U + W) / sqrt(1 + W^2),    W sqrt(n) ~ t with n degrees of freedom.

So t = U sqrt((n - 1) / (n - U^2)) has a null distribution over all looks that has no parameter.
"""

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtrinc, ndtr, ndtri, stdtr, stdtrit

PLANNED = 0.9
"""The part of the level that is spent by the planned number of blocks."""
_POWER = 3  # of the spending up to there: early looks get little
_CELL = 0.08  # width of a cell of the chain, in standard deviations of a normal scale
_SURE = 1e-9  # the smallest p-value that is told apart


def first_look(planned: int) -> int:
    """Return the number of pairs at the first look: 3, or 2 where no more are planned."""
    return 3 if planned > 2 else 2


def spent(n: int, planned: int) -> float:
    """Return the fraction of the level that may be used up by the look at `n` pairs.

    `PLANNED * (n / planned)^3` up to the plan; after it, 1 less what is left, which shrinks
    as `planned / n`.
    """
    if n <= planned:
        return PLANNED * (n / planned) ** _POWER
    return 1 - (1 - PLANNED) * planned / n


def boundary(last: int, planned: int, level: float) -> dict[int, float]:
    """Return the bar that |t| must reach at each number of pairs, from the first look to `last`.

    With no effect and normal differences, the chance that |t| reaches its bar at any look up to
    any number of pairs is at most `1 - level`, half of it on each side. mean +- bar * s / sqrt(n)
    is therefore an interval that holds at all looks together, whatever made one stop: the
    repeated confidence interval of Jennison & Turnbull 1989,
    https://doi.org/10.1111/j.2517-6161.1989.tb01433.x.

    Args:
        last: number of pairs.
        planned: number of pairs that the budget had when confirmation began, at least 1.
        level: such as 0.95.
    """
    rounded_up = -(-last // 16) * 16  # so that one more pair does not begin anew
    bars = _boundary(rounded_up, planned, 1 - level)
    first = first_look(planned)
    return {n: bars[n - first] for n in range(first, last + 1)}


def critical(n: int, planned: int, level: float) -> float:
    """Return the bar of `boundary` at `n` pairs, at least `first_look(planned)`."""
    return boundary(n, planned, level)[n]


def p_value(t: float, n: int, planned: int) -> float:
    """Return the two-sided p-value of a t statistic of `n` pairs at any of the looks.

    The smallest 1 - level at which the bar is reached: an interval that excludes zero and a
    p-value below 1 - level are the same. Valid whatever made one stop; at least 1e-9.
    """
    tail = math.log(max(stdtr(n - 1, -abs(t)), 1e-300))

    def excess(log_alpha: float) -> float:
        bar = _boundary(n, planned, math.exp(log_alpha))[-1]
        return math.log(max(stdtr(n - 1, -bar), 1e-300)) - tail

    low, high = math.log(_SURE), -1e-6
    if excess(low) >= 0:
        return _SURE
    if excess(high) <= 0:
        return 1.0
    return math.exp(brentq(excess, low, high, xtol=1e-4))


def visible_effect(n: int, planned: int, level: float, power: float = 0.8) -> float:
    """Return the smallest effect that `n` pairs show with this power, in standard deviations.

    By the noncentral t distribution at the last look alone; what earlier looks would have
    found makes it a little smaller.
    """
    bar = critical(n, planned, level)
    return float(nctdtrinc(n - 1, 1 - power, bar)) / math.sqrt(n)


@lru_cache(maxsize=512)
def _boundary(last: int, planned: int, alpha: float) -> tuple[float, ...]:
    """Return the bars of |t| at the looks from `first_look(planned)` to `last` pairs."""
    bars: list[float] = []
    paths, used = None, 0.0
    for n in range(first_look(planned), last + 1):
        share = alpha * (spent(n, planned) - used) / 2  # of one side
        used = spent(n, planned)
        z = -ndtri(share) if paths is None else _bar(n, paths, share)
        bars.append(float(stdtrit(n - 1, ndtr(z))))
        paths = _survivors(n, z, paths)
    return tuple(bars)


class _Paths:
    """Where the paths are that have not crossed: U at the middle of cells, and their chance.

    Both sides are alike, so only the cells above zero are kept; they hold half of the chance.
    """

    def __init__(self, n: int, z: np.ndarray, chance: np.ndarray) -> None:
        self.u, self.chance = _u(n, z), chance

    def above(self, n: int, z: np.ndarray) -> np.ndarray:
        """Return the chance to be above each `z`, at least 0, at the next look, of `n` pairs."""
        both = np.concatenate([self.u, -self.u])
        return np.tile(self.chance, 2) @ _moves_above(_u(n, np.atleast_1d(z)), both, n - 1)


def _bar(n: int, paths: _Paths, share: float) -> float:
    """Return the bar, on the normal scale, that a chance of `share` reaches from below it."""

    def excess(z: float) -> float:
        return float(paths.above(n, z)[0]) - share

    if excess(0.0) <= 0:  # fewer are left than may cross
        return 0.0
    return brentq(excess, 0.0, 0.5 - ndtri(share), xtol=1e-6)


def _survivors(n: int, z: float, paths: _Paths | None) -> _Paths:
    """Return the paths that are below the bar `z` at the look of `n` pairs."""
    edges = np.linspace(0.0, z, 1 + max(8, math.ceil(z / _CELL)))
    above = ndtr(-edges) if paths is None else paths.above(n, edges)
    return _Paths(n, (edges[1:] + edges[:-1]) / 2, -np.diff(above))


def _u(n: int, z: np.ndarray) -> np.ndarray:
    """Return U of `n` pairs where its t statistic has the normal quantile `z`."""
    t = stdtrit(n - 1, ndtr(z))
    return t * np.sqrt(n / (n - 1 + t * t))


def _moves_above(bound: np.ndarray, u: np.ndarray, n: int) -> np.ndarray:
    """Return the chance that U' of n + 1 pairs is above `bound`, given U = `u` of n pairs.

    With W = tan(a) and U = tan(b), U' = sin(a + b) / cos(b): it is above where a lies between
    asin(bound cos(b)) - b and pi - asin(bound cos(b)) - b.

    Args:
        bound: shape (m,), at least 0.
        u: shape (k,).
        n: number of pairs before.

    Returns:
        Shape (k, m).
    """
    b = np.arctan(u)[:, None]
    sine = bound[None, :] * np.cos(b)
    edge = np.arcsin(np.minimum(sine, 1.0))
    return np.maximum(_angle_below(np.pi - edge - b, n) - _angle_below(edge - b, n), 0.0)


def _angle_below(angle: np.ndarray, n: int) -> np.ndarray:
    """Return the distribution function of a = atan(W), W sqrt(n) ~ t with n degrees."""
    tangent = np.tan(np.clip(angle, 1e-9 - np.pi / 2, np.pi / 2 - 1e-9))
    return stdtr(n, math.sqrt(n) * tangent)
