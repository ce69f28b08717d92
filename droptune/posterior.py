"""What results say of plans not tried: a Gaussian process over the parameters.

Numbers in, numbers out; behind patience.py, landscape.py and finalists.py.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Results that it takes: of fewer, the values say as much.
FEWEST = 10
#: Results that count: of more, half are the best and half the latest.
MOST = 300
#: Least noise, as a part of the variance of the results: what is below is not worth a trial.
_LEAST_NOISE = 1e-3


class Posterior:
    """The expected objective over the parameters, as far as results tell.

    A Gaussian process with a Matern 5/2 kernel of one length and white noise, fitted by
    maximum likelihood (Rasmussen, Williams 2006, https://gaussianprocess.org/gpml/). Results far
    on the bad side (Tukey's fence: 1.5 interquartile ranges beyond the upper quartile) count
    as if they were on the fence: how bad a bad plan is says little of the best.

    Attributes:
        noise: standard deviation of one result around the expected one of its plan.

    Args:
        points: of the results, shape (n, d), coordinates in [0, 1].
        values: of the results, n of them, to be made small.
        shortest: length that the kernel may have.
    """

    def __init__(self, points: np.ndarray, values: Sequence[float], shortest: float = 0.05) -> None:
        # Imported here: few studies need it, and not at their start.
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        y = np.asarray(values, dtype=float)
        low, high = np.quantile(y, [0.25, 0.75])
        y = np.minimum(y, high + 1.5 * (high - low))
        self._centre, self._scale = y.mean(), y.std()
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(
            max(0.5, shortest), (shortest, 20.0), nu=2.5
        )
        kernel += WhiteKernel(0.1, (_LEAST_NOISE, 1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length at its bound is an answer, too
            model = GaussianProcessRegressor(kernel, random_state=0)
            self._model = model.fit(points, (y - self._centre) / (self._scale or 1.0))
        self._white = self._model.kernel_.k2.noise_level
        self.noise = float(np.sqrt(self._white) * self._scale)

    def mean(self, points: np.ndarray) -> np.ndarray:
        """Return the expected objective at points of shape (m, d)."""
        return self._model.predict(points) * self._scale + self._centre

    def paths(self, points: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
        """Return draws of the expected objective, without noise, shape (count, m)."""
        mean, covariance = self._model.predict(points, return_cov=True)
        covariance -= self._white * np.eye(len(mean))
        drawn = draw.multivariate_normal(mean, covariance, count, method="eigh")
        return drawn * self._scale + self._centre


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
