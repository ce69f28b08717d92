"""Which plans of a search go to confirmation: those that are expected to be the best.

Numbers in, plans out; search.py says which.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from droptune.plan import Plan
from droptune.posterior import FEWEST, Posterior, coordinates, kept

#: Number, plan and value of a trial.
Tried = tuple[int, Plan, float]


def expected(
    space: Mapping[str, Any], params: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> list[float]:
    """Return the expected objective of plans that were tried, in their order.

    By the posterior mean of a Gaussian process (droptune/posterior.py), which takes from each
    result what its neighbours do not bear out. The best of many noisy results is mostly a
    lucky one (the winner's curse); that the best point tried is told by the posterior mean
    where results are noisy is after Picheny, Wagner, Ginsbourger 2013,
    https://doi.org/10.1007/s00158-013-0919-4. Fewer than `FEWEST` results are taken as they
    are.

    Args:
        space: parameter -> its Optuna distribution.
        params: of the plans.
        values: of the results, to be made small.
    """
    if len(values) < FEWEST:
        return list(values)
    points = np.hstack([*coordinates(space, params).values()])
    known = kept(values)
    model = Posterior(points[known], [values[i] for i in known])
    return model.mean(points).tolist()


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
