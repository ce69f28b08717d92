"""Which of the complete trials are the best; with several objectives, the Pareto front.

Part of search.py, the only module that imports this one.
"""

from collections.abc import Collection, Sequence

import numpy as np

from droptune.front import front
from droptune.plan import Plan

#: Number, plan and values of a complete trial, one value for each objective.
Result = tuple[int, Plan, Sequence[float]]


def ranked(
    results: Sequence[Result],
    directions: Sequence[str],
    k: int,
    exclude: Collection[Plan] = (),
    objective: int = 0,
) -> list[tuple[int, Plan, float]]:
    """Return number, plan and value of the best trials in an objective, the best first.

    Of trials with the same plan, or the same value, the earlier one comes first.

    Args:
        results: by number.
        directions: of the objectives, `minimize` or `maximize`.
        k: how many, at most.
        exclude: plans to pass over.
        objective: position of the one that decides.
    """
    sign = 1 if directions[objective] == "minimize" else -1
    seen, chosen = set(exclude), []
    for number, plan, values in sorted(results, key=lambda one: (sign * one[2][objective], one[0])):
        if len(chosen) == k:
            break
        if plan not in seen:
            seen.add(plan)
            chosen.append((number, plan, values[objective]))
    return chosen


def finalists(
    results: Sequence[Result],
    directions: Sequence[str],
    k: int,
    exclude: Collection[Plan] = (),
    objective: int = 0,
) -> list[tuple[int, Plan, float]]:
    """Return number, plan and value of the trials to confirm with several objectives.

    Arguments as of `ranked`. They are those of the front of the plans that are not excluded, see
    `spread`: the same for each objective, whose position says which values are returned.
    """
    first: dict[Plan, Result] = {}
    for one in results:
        first.setdefault(one[1], one)
    rest = [one for plan, one in first.items() if plan not in exclude]
    chosen = [rest[i] for i in spread([values for *_, values in rest], directions, k)]
    return [(number, plan, values[objective]) for number, plan, values in chosen]


def spread(values: Sequence[Sequence[float]], directions: Sequence[str], k: int) -> list[int]:
    """Return `k` results that stand for the front.

    First the best one in each objective, in their order; then the others of the front by their
    distance from the ideal point, which has the best of each objective, with each objective
    scaled by its range on the front (compromise programming: Zeleny 1973, in Cochrane & Zeleny,
    Multiple Criteria Decision Making, 262-301). A front of fewer is followed by that of the
    rest, as in the sorting of NSGA-II (Deb et al. 2002, https://doi.org/10.1109/4235.996017).

    Args:
        values, directions: as in `front`.
        k: how many.

    Returns:
        Positions in `values`, at most `k`; of equal results the earlier one comes first.
    """
    signs = [1 if direction == "minimize" else -1 for direction in directions]
    found: list[int] = []
    left = list(range(len(values)))
    while left and len(found) < k:
        layer = [left[i] for i in front([values[i] for i in left], directions)]
        found += [layer[i] for i in _order(np.array([values[i] for i in layer]) * signs)]
        left = [i for i in left if i not in layer]
    return found[:k]


def _order(losses: np.ndarray) -> list[int]:
    """Return the best in each objective, then the rest from the ideal point on.

    Args:
        losses: of a front, to be made small, shape (n, objectives).
    """
    span = np.ptp(losses, axis=0)
    scaled = (losses - losses.min(axis=0)) / np.where(span > 0, span, 1.0)
    near = np.argsort(np.linalg.norm(scaled, axis=1), kind="stable")
    return list(dict.fromkeys([*map(int, np.argmin(losses, axis=0)), *map(int, near)]))
