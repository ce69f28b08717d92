"""Which plans of a search go to confirmation: those that are expected to be the best.

Numbers in, plans out; search.py says which.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from droptune.landscape import Landscape
from droptune.plan import Plan
from droptune.posterior import FEWEST

#: Number, plan and value of a trial.
Tried = tuple[int, Plan, float]


def expected(
    landscape: Landscape, params: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> list[float]:
    """Return what plans that were tried are expected to reach, in their order, with caution.

    By the posterior of a Gaussian process over where the plans lie (droptune/landscape.py),
    which takes from each result what its neighbours do not bear out: the best of many noisy
    results is mostly a lucky one (the winner's curse). The mean and one deviation more, for of
    two plans of equal mean the better known one is less likely a disappointment: that the best
    point tried is told by a quantile of the posterior where results are noisy is after Picheny,
    Ginsbourger, Richet, Caplin 2013, https://doi.org/10.1080/00401706.2012.707580. Fewer than
    `FEWEST` results are taken as they are.

    Args:
        landscape: of the study.
        params: of the plans.
        values: of the results, to be made small.
    """
    if len(values) < FEWEST:
        return list(values)
    model = landscape.posterior(params, values)
    parts = np.array_split(landscape.points(params), 1 + len(params) // 1000)  # for memory
    return [float(high) for points in parts for high in model.bound(points)]


def promising(tried: Sequence[Tried], hopes: Mapping[int, float], k: int) -> list[Tried]:
    """Return up to `k` plans, the most promising first.

    The plan with the best value is among them if `k` is 2 or more: it may be one that the
    parameters cannot say, of which the expected objective is then that of another.

    Args:
        tried: different plans, that with the best value first.
        hopes: number of a trial -> its plan's expected objective, to be made small.
        k: how many.
    """
    chosen = sorted(tried, key=lambda one: hopes[one[0]])[:k]
    if k > 1 and tried and tried[0] not in chosen:
        chosen[-1] = tried[0]
    return chosen
