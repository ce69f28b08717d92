"""Does dropout help? Paired statistics over blocks; pure functions of numbers.

A block gives every arm the same seed, so arms are compared by their differences within
blocks. Several finalists are compared with the same control, and the best of several is
lucky as well as good; the bar therefore rises with their number (Bonferroni, the first step
of Holm 1979, https://www.jstor.org/stable/4615733). It holds whatever the finalists have in
common, and the finalists were chosen on another block than those used here. Testing all of
them on all blocks finds more than choosing on one half and testing on the other: with 8
blocks and 3 finalists the bar is 3.1 standard errors of 8 pairs instead of 3.2 of 4 pairs.

What the guarantee assumes: differences that are roughly normal over seeds, and one look.
Adding blocks until a verdict pleases is testing several times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from droptune.errors import StudyError
from droptune.rounding import rounded

HELPS, NO_BENEFIT, HURTS, UNDECIDED = "helps", "no benefit", "hurts", "undecided"

# What counts as a benefit worth having where the caller names no margin: this fraction of
# the control's mean, in the objective's unit.
RELEVANT = 0.01


@dataclass(frozen=True)
class Difference:
    """The mean paired difference, arm minus control, in the objective's unit.

    Attributes:
        mean: over the pairs; NaN without one.
        low, high: ends of the confidence interval of the mean; None where the pairs say
            nothing about the spread (fewer than two, or all differences equal).
        p_value: two-sided, of no difference; None with fewer than two pairs.
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
class Verdict:
    """What the blocks say.

    Attributes:
        verdict: `helps`, `no benefit`, `hurts` or `undecided`.
        arm: the finalist that helps, else the control: what to use.
        difference: of the finalist that helps or comes nearest to it, or of the model as
            given where that hurts; None without a pair. Interval and p-value of a finalist
            hold for all finalists together.
        text: the verdict in one line.
        details: JSON values: the margin, and each finalist's difference on its own, its
            Holm p-value and the blocks it lacks.
    """

    verdict: Literal["helps", "no benefit", "hurts", "undecided"]
    arm: str
    difference: Difference | None
    text: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


def paired_difference(
    arm: Sequence[float], control: Sequence[float], level: float = 0.95
) -> Difference:
    """Return the mean of `arm - control` over blocks with its t interval and p-value.

    The paired t test, as `scipy.stats.ttest_rel`. A pair with a value that is not finite is
    left out. Differences that are all equal (to rounding) have no spread to measure: it is
    more likely that the objective is coarse, say an accuracy on few samples, than that it
    has no noise. All zero: p is 1 and the interval [0, 0]. Otherwise there is no interval,
    and p is that of the sign test, 2 / 2^n, which uses the signs alone.

    Args:
        arm: the objective by block.
        control: the objective by block, in the same order.
        level: of the interval, in (0, 1).

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
    x, y = x[both], y[both]
    d, n = x - y, int(x.size)
    if n < 2:
        return Difference(float(d[0]) if n else math.nan, None, None, None, n, level)
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    if spread <= 8 * np.finfo(float).eps * max(np.abs(x).max(), np.abs(y).max()):
        if not d.any():
            return Difference(0.0, 0.0, 0.0, 1.0, n, level)
        return Difference(mean, None, None, 2.0 ** (1 - n), n, level)
    error = spread / math.sqrt(n)
    reach = float(stdtrit(n - 1, 0.5 + level / 2)) * error
    p_value = float(2 * stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, mean - reach, mean + reach, p_value, n, level)


def decide(
    values: Mapping[str, Sequence[float]],
    *,
    direction: Literal["minimize", "maximize"],
    objective: str,
    finalists: Sequence[str],
    control: str = "no dropout",
    as_given: str | None = "as given",
    level: float = 0.95,
    margin: float | None = None,
    unit: str | None = None,
) -> Verdict:
    """Return what the confirmation blocks say about dropout.

    - helps: a finalist is better than the control, at `1 - level` over all finalists
      together. Of several the one with the best mean is named. A finalist that lacks a
      block which the control has cannot help: a run that diverged is no missing value.
    - hurts: no finalist helps, and the model as given is worse than the control.
    - no benefit: neither, and the intervals of all finalists exclude an improvement of
      `margin` or more.
    - undecided: otherwise.

    With no true effect "helps" comes out in at most `(1 - level) / 2` of studies: one side.

    Args:
        values: arm -> the objective by block, in the same order; NaN where a run has none.
        direction: `minimize` or `maximize`, what the objective is to do.
        objective: its name.
        finalists: the arms that may help; the model as given may be one of them.
        control: the arm without dropout.
        as_given: the arm of the model as given; need not be in `values`.
        level: of the verdict and of the intervals.
        margin: the least improvement worth having; None: `RELEVANT` of the control's mean.
        unit: of the objective, for the text; None: nats if it is a cross-entropy.

    Raises:
        StudyError: an arm is missing, or arms differ in their number of blocks.
    """
    _check_arms(values, (control, *finalists))
    sign = -1.0 if direction == "minimize" else 1.0  # times a difference: positive is better
    base = np.asarray(values[control], dtype=float)
    finite = base[np.isfinite(base)]
    if margin is None:
        margin = RELEVANT * abs(float(finite.mean())) if finite.size else 0.0
    alone = {name: paired_difference(values[name], base, level) for name in finalists}
    joint = {name: _simultaneous(values[name], base, level, len(alone)) for name in alone}
    lacks = {name: int(finite.size) - d.n for name, d in alone.items()}
    has_given = as_given is not None and as_given in values
    given = paired_difference(values[as_given], base, level) if has_given else None
    verdict, arm, difference = _judge(joint, lacks, given, sign, 1 - level, margin, control)
    details = {
        "objective": objective,
        "margin": margin,
        "correction": f"Bonferroni over {len(alone)} finalists",
        "finalists": _table(alone, lacks),
        "as given": asdict(given) if given else None,
    }
    text = _text(verdict, difference, _unit(objective) if unit is None else unit)
    return Verdict(verdict, arm, difference, text, details)


def _unit(objective: str) -> str:
    """Return the unit of an objective, as far as its name tells it."""
    return "nats" if "cross_entropy" in objective else ""


def _check_arms(values: Mapping[str, Sequence[float]], needed: Sequence[str]) -> None:
    """Raise a StudyError if an arm has no values."""
    missing = [name for name in needed if name not in values]
    if missing:
        raise StudyError(
            f"no values for arm {', '.join(map(repr, missing))}; there are"
            f" {', '.join(map(repr, values)) or 'none'}"
        )


def _judge(
    joint: Mapping[str, Difference],
    lacks: Mapping[str, int],
    given: Difference | None,
    sign: float,
    alpha: float,
    margin: float,
    control: str,
) -> tuple[str, str, Difference | None]:
    """Return the verdict, the arm to use and the difference to show."""
    order = sorted(
        (name for name, difference in joint.items() if difference.n),
        key=lambda name: -sign * joint[name].mean,
    )
    for name in order:
        if not lacks[name] and _significant(joint[name], sign, alpha):
            return HELPS, name, joint[name]
    if given is not None and _significant(given, -sign, alpha):
        return HURTS, control, given
    nearest = joint[order[0]] if order else given
    # The end of the interval on the side of improvement.
    ends = [d.high if sign > 0 else d.low for d in joint.values()]
    if ends and all(end is not None and sign * end < margin for end in ends):
        return NO_BENEFIT, control, nearest
    return UNDECIDED, control, nearest


def _significant(difference: Difference, sign: float, alpha: float) -> bool:
    """Tell whether there is a difference on the side of `sign`."""
    p_value = difference.p_value
    return p_value is not None and p_value <= alpha and sign * difference.mean > 0


def _simultaneous(
    arm: Sequence[float], control: Sequence[float], level: float, comparisons: int
) -> Difference:
    """Return a difference whose interval and p-value hold for all comparisons together."""
    one = paired_difference(arm, control, 1 - (1 - level) / comparisons)
    p_value = None if one.p_value is None else min(1.0, comparisons * one.p_value)
    return replace(one, p_value=p_value, level=level)


def _table(alone: Mapping[str, Difference], lacks: Mapping[str, int]) -> dict[str, Any]:
    """Return each finalist's own difference, with the p-value of Holm (1979) beside it."""
    tested = sorted(
        (name for name in alone if alone[name].p_value is not None),
        key=lambda name: alone[name].p_value,
    )
    holm, highest = {}, 0.0
    for rank, name in enumerate(tested):
        highest = max(highest, min(1.0, (len(alone) - rank) * alone[name].p_value))
        holm[name] = highest
    return {
        name: asdict(difference) | {"holm_p_value": holm.get(name), "missing_blocks": lacks[name]}
        for name, difference in alone.items()
    }


def _text(verdict: str, difference: Difference | None, unit: str) -> str:
    """Return one line: verdict, difference, interval, p-value and number of seeds."""
    if difference is None or difference.n < 2:
        seeds = 0 if difference is None else difference.n
        found = "no paired seed" if not seeds else "1 paired seed"
        return f"{verdict}: {found}, at least 2 are needed; confirm with more blocks"
    shown = rounded(difference.mean, difference.low, difference.high)
    parts = [" ".join(filter(None, [shown[0], unit, *shown[1:]]))]
    parts.append(f"p = {difference.p_value:.2g}")
    parts.append(f"{difference.n} paired seeds")
    return f"{verdict}: {', '.join(parts)}"
