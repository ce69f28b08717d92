"""What results say of plans not tried: a Gaussian process over the parameters.

Numbers in, numbers out; behind patience.py, landscape.py and finalists.py.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

#: Results that it takes: of fewer, the values say as much.
FEWEST = 10
#: Results that count: of more, half are the best and half the latest.
MOST = 300
#: Least noise, as a part of the variance of the results: what is below is not worth a trial.
_LEAST_NOISE = 1e-3
#: Added to the variance of what is drawn, in that unit: points that are alike leave none.
_JITTER = 1e-6


@dataclass(frozen=True)
class Learnt:
    """What was learnt from some results and may serve for more.

    Attributes:
        kernel: of results less `centre`, in units of `scale`; with the noise.
        centre: mean of the results.
        scale: their standard deviation.
    """

    kernel: Any
    centre: float
    scale: float


class Posterior:
    """The expected objective over the parameters, as far as results tell.

    A Gaussian process with a Matern 5/2 kernel of one length and white noise, fitted by
    maximum likelihood (Rasmussen, Williams 2006, https://gaussianprocess.org/gpml/). Results far
    on the bad side (Tukey's fence: 1.5 interquartile ranges beyond the upper quartile) count
    as if they were on the fence: how bad a bad plan is says little of the best.

    Attributes:
        learnt: what the likelihood was highest for, or what was given.
        noise: standard deviation of one result around the expected one of its plan.

    Args:
        points: of the results, shape (n, d), coordinates in [0, 1].
        values: of the results, n of them, to be made small.
        shortest: length that the kernel may have.
        learnt: from results of the same kind; the likelihood, which takes a while, is then
            not looked at.
    """

    def __init__(
        self,
        points: np.ndarray,
        values: Sequence[float],
        shortest: float = 0.05,
        learnt: Learnt | None = None,
    ) -> None:
        # Imported here: few studies need it, and not at their start.
        from sklearn.gaussian_process import GaussianProcessRegressor

        y = np.asarray(values, dtype=float)
        low, high = np.quantile(y, [0.25, 0.75])
        y = np.minimum(y, high + 1.5 * (high - low))
        given = learnt or Learnt(_kernel(shortest), float(y.mean()), float(y.std()))
        search = None if learnt else "fmin_l_bfgs_b"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length at its bound is an answer, too
            model = GaussianProcessRegressor(given.kernel, optimizer=search, random_state=0)
            self._model = model.fit(points, (y - given.centre) / (given.scale or 1.0))
        self.learnt = Learnt(self._model.kernel_, given.centre, given.scale)
        self._expected, noise = self._model.kernel_.k1, self._model.kernel_.k2
        self.noise = float(np.sqrt(noise.noise_level) * given.scale)

    def mean(self, points: np.ndarray) -> np.ndarray:
        """Return the expected objective at points of shape (m, d)."""
        return self._known(points)[0] * self.learnt.scale + self.learnt.centre

    def bound(self, points: np.ndarray, deviations: float = 1.0) -> np.ndarray:
        """Return what the expected objective is hardly above, at points of shape (m, d).

        Args:
            points: where.
            deviations: of the posterior, above its mean.
        """
        mean, told = self._known(points)
        left = self._expected.diag(points) - (told**2).sum(axis=0)
        high = mean + deviations * np.sqrt(np.maximum(left, 0.0))
        return high * self.learnt.scale + self.learnt.centre

    def paths(self, points: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
        """Return draws of the expected objective, without noise, shape (count, m)."""
        mean, told = self._known(points)
        covariance = self._expected(points) - told.T @ told + _JITTER * np.eye(len(points))
        how = {"check_valid": "ignore", "method": "cholesky"}
        drawn = draw.multivariate_normal(mean, covariance, count, **how)
        return drawn * self.learnt.scale + self.learnt.centre

    def _known(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean, in units of the scale, and what the results tell, shape (n, m).

        The sum of squares of the latter is the variance that is known (Rasmussen, Williams
        2006, algorithm 2.1).
        """
        shared = self._expected(points, self._model.X_train_)
        told = solve_triangular(self._model.L_, shared.T, lower=True)
        return shared @ self._model.alpha_, told


def _kernel(shortest: float) -> Any:
    """Return the kernel, the expected objective's and the noise's; what is free is learnt."""
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    length = Matern(max(0.5, shortest), (shortest, 20.0), nu=2.5)
    return ConstantKernel(1.0, (1e-2, 1e2)) * length + WhiteKernel(0.1, (_LEAST_NOISE, 1.0))


def kept(values: Sequence[float]) -> list[int]:
    """Return the positions of the results that count, rising: all, or `MOST` of them.

    Args:
        values: to be made small, in the order of the trials.
    """
    if len(values) <= MOST:
        return list(range(len(values)))
    best = sorted(range(len(values)), key=values.__getitem__)[: MOST // 2]
    return sorted({*best, *range(len(values) - MOST // 2, len(values))})


def coordinates(
    space: Mapping[str, Any], params: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Return parameter -> coordinates in [0, 1], one, or one for each choice."""
    found = {}
    for name, distribution in space.items():
        values = [one[name] for one in params]
        if hasattr(distribution, "choices"):
            choices = distribution.choices
            found[name] = np.array([[float(value == c) for c in choices] for value in values])
            continue
        scaled = np.log if distribution.log else np.asarray
        low, high = scaled(distribution.low), scaled(distribution.high)
        found[name] = (scaled(np.array(values, float))[:, None] - low) / (high - low or 1.0)
    return found
