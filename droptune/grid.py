"""A few values that stand for a parameter: what the grid tries, what the controller picks from."""

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution


def grid_points(distribution: BaseDistribution, most: int) -> list[Any]:
    """Return values of a parameter, as many as it has or `most`.

    All choices of a categorical one, however many. Numbers are evenly spaced (by ratio if
    continuous and logarithmic), of a stepped one exactly on its steps, and both ends included.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.single():
        return [distribution.low]
    step = getattr(distribution, "step", None)
    if step is not None:
        count = int(round((distribution.high - distribution.low) / step)) + 1
        picked = np.unique(np.linspace(0, count - 1, min(count, most)).round())
        kind = float if isinstance(distribution, FloatDistribution) else int
        return [min(kind(distribution.low + step * int(i)), distribution.high) for i in picked]
    spread = np.geomspace if distribution.log else np.linspace
    points = spread(distribution.low, distribution.high, most)
    return [float(np.clip(x, distribution.low, distribution.high)) for x in points]
