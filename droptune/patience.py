"""Is it worth going on? What more trials are expected to gain, from the results so far.

Numbers in, numbers out; search.py says which.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from droptune.posterior import Posterior, coordinates, kept

#: Results of the sampler's own plans before anything is said.
LEAST = 10
#: Plans that the next trials are drawn from, and draws from the posterior.
CANDIDATES, DRAWS = 400, 256
#: What trials resolve, in deviations of a single result: the standard error of a paired
#: difference over 8 seeds, the usual number of a confirmation, sqrt(2 / 8).
RESOLVED = 0.5

#: Parameters, value to be made small, and whether the sampler chose the plan.
Result = tuple[Mapping[str, Any], float, bool]


@dataclass(frozen=True)
class Outlook:
    """What more trials are expected to gain.

    Attributes:
        trials: how many more.
        gain: expected improvement of the best plan's expected objective; not negative.
        noise: standard deviation of one result around the expected one of its plan.
    """

    trials: int
    gain: float
    noise: float

    @property
    def over(self) -> bool:
        """Whether the gain is no more than a confirmation could tell apart."""
        return self.gain <= RESOLVED * self.noise

    def line(self, unit: str = "") -> str:
        """Return "expected gain of 10 more trials: 0.0003 nats"."""
        return f"expected gain of {self.trials} more trials: {f'{self.gain:.2g} {unit}'.strip()}"


class Patience:
    """Looks ahead, once for each number of results.

    Args:
        trials: how far; 0: not at all.
    """

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._known: tuple[int, Outlook | None] = 0, None

    def outlook(
        self, space: Mapping[str, Any], count: int, results: Callable[[], Sequence[Result]]
    ) -> Outlook | None:
        """Return what `look_ahead` says; None without patience.

        Args:
            space: as there.
            count: of the results.
            results: returns them.
        """
        if self._trials and self._known[0] != count:
            self._known = count, look_ahead(space, results(), self._trials)
        return self._known[1]


def outlook(
    points: np.ndarray, values: Sequence[float], candidates: np.ndarray, trials: int
) -> Outlook:
    """Return what more trials are expected to gain.

    A Gaussian process is fitted to the results (droptune/posterior.py). The next plans are
    drawn as batch Thompson sampling draws them, each the best candidate of one draw from the
    posterior (Kandasamy et al. 2018, https://arxiv.org/abs/1705.09236); their gain is the
    expected improvement of several points at once, by Monte Carlo over further draws (q-EI;
    Ginsbourger, Le Riche, Carraro 2010, https://doi.org/10.1007/978-3-642-10701-6_6), of the
    noiseless objective over that of the best plan so far. To stop when what is left to gain
    falls below the noise follows Makarova et al. 2022, "Automatic Termination for
    Hyperparameter Optimization", https://arxiv.org/abs/2104.08166, with expected improvement
    in the place of their bound on regret, as in Nguyen et al. 2017,
    https://proceedings.mlr.press/v77/nguyen17a.html.

    Args:
        points: of the results, shape (n, d), coordinates in [0, 1].
        values: of the results, n of them, to be made small.
        candidates: where further trials may go, shape (m, d).
        trials: how many more.
    """
    model = Posterior(points, values)
    best = points[int(np.argmin(model.mean(points)))]
    draw = np.random.default_rng(0)  # the same results always say the same
    paths = model.paths(np.vstack([best, candidates]), trials + DRAWS, draw)
    chosen = np.argmin(paths[:trials], axis=1)
    later = paths[trials:]
    gain = np.maximum(later[:, 0] - later[:, chosen].min(axis=1), 0).mean()
    return Outlook(trials, float(gain), model.noise)


def look_ahead(space: Mapping[str, Any], results: Sequence[Result], trials: int) -> Outlook | None:
    """Return what more trials of a search are expected to gain; None: too little is known.

    Args:
        space: parameter -> its Optuna distribution.
        results: in the order of the trials. Further plans vary what the sampler has varied.
        trials: how many more.
    """
    if sum(own for *_, own in results) < max(LEAST, trials):
        return None
    results = [results[i] for i in kept([value for _, value, _ in results])]
    values = [value for _, value, _ in results]
    own = np.array([chosen for *_, chosen in results])
    points, draw = coordinates(space, [params for params, *_ in results]), _Draw()
    best = np.argsort(values)[:5]
    told, drawn = [], []
    for block in points.values():  # of one parameter, shape (n, its coordinates)
        varied = np.ptp(block[own], axis=0).any()
        told.append(block)
        drawn.append(draw.near(block[best]) if varied else np.repeat(block[own][:1], CANDIDATES, 0))
    told, drawn = np.hstack(told), np.hstack(drawn)
    moving = np.ptp(told, axis=0) > 0
    return outlook(told[:, moving], values, drawn[:, moving], trials)


class _Draw:
    """Draws the candidates: one half anywhere, one half near the best."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._near = np.arange(CANDIDATES) % 2 == 0

    def near(self, best: np.ndarray) -> np.ndarray:
        """Return coordinates of one parameter for all candidates.

        Args:
            best: of the best plans, shape (k, coordinates).
        """
        rows = best[np.arange(CANDIDATES) // 2 % len(best)]
        if best.shape[1] > 1:  # choices
            anywhere = np.eye(best.shape[1])[self._random.integers(best.shape[1], size=CANDIDATES)]
            return np.where(self._near[:, None], rows, anywhere)
        moved = np.clip(rows + self._random.normal(0, 0.1, rows.shape), 0, 1)
        return np.where(self._near[:, None], moved, self._random.random(rows.shape))
