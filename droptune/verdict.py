"""Does dropout help? Paired statistics over blocks; pure functions of numbers.

A block gives every arm the same seed, so arms are compared by their differences within
blocks. The finalist was chosen on other blocks than those used here, so it is one hypothesis,
and its mean is not the luckiest of several: nothing is corrected for the number of finalists.

After each block one may look, stop, or add more blocks: intervals and p-values hold at all
looks together (droptune/sequential.py). "helps" is wrong in at most (1 - level) / 2 of studies
without an effect, "hurts" in as many, whatever the number of blocks and however often the
budget is raised; in at most 1 - level if the search goes on and is confirmed anew, however
often. What this assumes: differences that are roughly normal over seeds. Without an
effect they are symmetric, for the arms of a pair could be swapped; if their tails are heavier
than normal, the t test is wrong less often still (Benjamini 1983, Is the t test really
conservative when the parent distribution is long-tailed? JASA 78, 645-654).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from droptune import sequential
from droptune.errors import StudyError
from droptune.pairs import Difference, Look, difference_of, look
from droptune.rounding import rounded

HELPS, NO_BENEFIT, HURTS, UNDECIDED = "helps", "no benefit", "hurts", "undecided"

# What counts as a benefit worth having where the caller names no margin: this fraction of
# the control's mean, in the objective's unit.
RELEVANT = 0.01
#: How far ahead it is said how many more blocks would decide.
_HORIZON = 200
_POWER = 0.8  # of the smallest effect that a study is said to see


@dataclass(frozen=True)
class Rules:
    """How a confirmation is judged, fixed before its first block.

    Attributes:
        objective: name of the metric that decides.
        direction: `minimize` or `maximize`, what the objective is to do.
        planned: number of blocks that the budget had when confirmation began.
        level: of the verdict and of the intervals.
        margin: the least improvement worth having; None: `RELEVANT` of the control's mean.
        earlier: how many confirmations of other finalists the study had before. Each halves
            what may be wrong in the next, so all together stay below twice the first's:
            "helps" at most 1 - level, by Bonferroni's inequality with unequal parts.
        together: how many objectives the study is judged on. Each has its verdict, and an equal
            part of what may be wrong: then "helps" on any of them is wrong as seldom as on one
            (Bonferroni; Dunn 1961, https://doi.org/10.1080/01621459.1961.10482090). Holm's
            procedure would ask less of all but the first; but it has no intervals that go with
            it, and what it asks at a look depends on which objectives are settled by then.
    """

    objective: str
    direction: Literal["minimize", "maximize"]
    planned: int
    level: float = 0.95
    margin: float | None = None
    earlier: int = 0
    together: int = 1

    @property
    def parts(self) -> int:
        """What p-values are multiplied by, and 1 - level divided."""
        return self.together * 2**self.earlier

    @property
    def strict(self) -> float:
        """The level of this confirmation on its own."""
        return 1 - (1 - self.level) / self.parts

    @property
    def sign(self) -> float:
        """What a difference is multiplied by, so that positive is better."""
        return -1.0 if self.direction == "minimize" else 1.0


@dataclass(frozen=True)
class Verdict:
    """What the blocks say.

    Attributes:
        verdict: `helps`, `no benefit`, `hurts` or `undecided`.
        arm: the finalist if it helps, else the control: what to use.
        difference: of the chosen finalist, or of the model as given where that hurts; None
            without a pair.
        text: the verdict in one line.
        details: JSON values, the keys of `decide`.
        settled: further blocks are not needed.
    """

    verdict: Literal["helps", "no benefit", "hurts", "undecided"]
    arm: str
    difference: Difference | None
    text: str
    details: dict[str, Any] = field(default_factory=dict)
    settled: bool = False

    def __str__(self) -> str:
        return self.text


def ruled_difference(arm: Sequence[float], control: Sequence[float], rules: Rules) -> Difference:
    """Return `paired_difference` as it holds at all looks of all confirmations of a study."""
    return _ruled(look(arm, control, rules.strict, rules.planned), rules)


@dataclass(frozen=True)
class Judgement:
    """What one look says; without p-values and words, which take longer.

    Attributes:
        verdict: as in `Verdict`.
        settled: further blocks are not needed.
        chosen, given: the looks at the finalist and the model as given, if they are there.
        base: mean of the control; NaN without a block.
        margin: in the objective's unit.
        constant: the objective has the same value in all runs.
    """

    verdict: str
    settled: bool
    chosen: Look
    given: Look | None
    base: float
    margin: float
    constant: bool

    @property
    def shown(self) -> Look:
        """The look that the verdict is about."""
        nothing = self.given is not None and not self.chosen.n
        return self.given if self.verdict == HURTS or nothing else self.chosen


def judge(
    values: Mapping[str, Sequence[float]],
    rules: Rules,
    chosen: str,
    *,
    control: str = "no dropout",
    as_given: str = "as given",
) -> Judgement:
    """Return what the blocks say about the finalist, and whether they are enough.

    - helps: the finalist is better than the control. One that lacks a block which the control
      has cannot help: a run that diverged is no missing value.
    - hurts: the finalist does not help, and the model as given is worse than the control.
    - no benefit: neither, and the interval of the finalist excludes an improvement of the
      margin or more, or the finalist cannot help.
    - undecided: otherwise.

    Blocks are enough as soon as the finalist helps; or it brings no benefit and the model as
    given, where there is one, is known to hurt or to cost less than the margin. Differences
    that are all zero are never enough: the objective may be coarse.

    Args:
        values: arm -> the objective by block, in the same order; NaN where a run has none.
        rules: fixed before the first block.
        chosen: the finalist; may be the model as given.
        control: the arm without dropout.
        as_given: the arm of the model as given; need not be in `values`.

    Raises:
        StudyError: an arm is missing, or arms differ in their number of blocks.
    """
    _check_arms(values, (control, chosen))
    base = np.asarray(values[control], dtype=float)
    finite = base[np.isfinite(base)]
    mean = float(finite.mean()) if finite.size else math.nan
    margin = RELEVANT * abs(mean) if rules.margin is None else rules.margin
    looks = {
        arm: look(values[arm], base, rules.strict, rules.planned)
        for arm in (chosen, as_given)
        if arm in values
    }
    best, given, sign = looks[chosen], looks.get(as_given), rules.sign
    helps = not best.lacks and best.beyond(sign)
    hurts = given is not None and given.beyond(-sign)
    no_gain = best.lacks > 0 or sign * best.end(sign) < margin
    known = given is None or hurts or sign * given.end(-sign) > -margin
    constant = finite.size > 1 and not np.ptp(finite) and all(one.flat for one in looks.values())
    if helps:
        verdict = HELPS
    elif hurts:
        verdict = HURTS
    else:
        verdict = NO_BENEFIT if no_gain and not constant else UNDECIDED
    settled = helps or (no_gain and known and not best.flat)
    return Judgement(verdict, settled, best, given, mean, margin, constant)


def decide(
    values: Mapping[str, Sequence[float]],
    rules: Rules,
    chosen: str,
    *,
    control: str = "no dropout",
    as_given: str = "as given",
    unit: str | None = None,
) -> Verdict:
    """Return what the blocks say about dropout, in words and numbers; else as `judge`.

    Args:
        values, rules, chosen, control, as_given: as in `judge`.
        unit: of the objective, for the text; None: nats if it is a cross-entropy.

    Returns:
        The verdict; its details have the keys objective; margin; planned; relative, the
        difference over the control's mean; chosen and as given, their differences or None;
        lacking, the blocks in which the finalist failed; visible, the smallest effect that
        these blocks show with 80 % power; and more_blocks, how many would decide, None where
        nothing is open or no sensible number would.
    """
    found = judge(values, rules, chosen, control=control, as_given=as_given)
    unit = _unit(rules.objective) if unit is None else unit
    by_arm = {
        arm: None if one is None or not one.n else _ruled(one, rules)
        for arm, one in (("chosen", found.chosen), ("as given", found.given))
    }
    difference = by_arm["as given" if found.shown is found.given else "chosen"]
    is_open = found.verdict == UNDECIDED and not found.constant
    details = {
        "objective": rules.objective,
        "margin": found.margin,
        "planned": rules.planned,
        "relative": found.shown.mean / abs(found.base) if found.shown.n and found.base else None,
        "lacking": found.chosen.lacks,
        "visible": _visible(found.chosen, rules),
        "more_blocks": _more_blocks(found, rules) if is_open else None,
        **{arm: one and asdict(one) for arm, one in by_arm.items()},
    }
    text = _text(found, rules, difference, details, unit)
    arm = chosen if found.verdict == HELPS else control
    return Verdict(found.verdict, arm, difference, text, details, found.settled)


def _check_arms(values: Mapping[str, Sequence[float]], needed: Sequence[str]) -> None:
    """Raise a StudyError if an arm has no values."""
    missing = [name for name in needed if name not in values]
    if missing:
        raise StudyError(
            f"no values for arm {', '.join(map(repr, missing))}; there are"
            f" {', '.join(map(repr, values)) or 'none'}"
        )


def _ruled(one: Look, rules: Rules) -> Difference:
    """Return a look's interval and p-value, corrected for earlier confirmations and objectives."""
    found = difference_of(one, rules.level, rules.planned)
    if found.p_value is None:
        return found
    return replace(found, p_value=min(1.0, rules.parts * found.p_value))


def _visible(one: Look, rules: Rules) -> float | None:
    """Return the smallest effect that so many blocks show, in the objective's unit."""
    if not one.error:
        return None
    spread = one.error * math.sqrt(one.n)
    return spread * sequential.visible_effect(one.n, rules.planned, rules.strict, _POWER)


def _more_blocks(found: Judgement, rules: Rules) -> int | None:
    """Return how many more blocks would decide if mean and spread stayed as they are."""
    one, sign = found.chosen, rules.sign
    if not one.error:
        return None
    bars = sequential.boundary(_HORIZON, rules.planned, rules.strict)
    for n in range(max(one.n + 1, min(bars)), _HORIZON + 1):
        reach = bars[n] * one.error * math.sqrt(one.n / n)
        if abs(one.mean) > reach and sign * one.mean > 0 or sign * one.mean + reach < found.margin:
            return n - one.n
    return None


def _unit(objective: str) -> str:
    """Return the unit of an objective, as far as its name tells it."""
    return "nats" if "cross_entropy" in objective else ""


def _text(
    found: Judgement,
    rules: Rules,
    difference: Difference | None,
    details: Mapping[str, Any],
    unit: str,
) -> str:
    """Return one line: verdict, difference, interval, p-value, number of seeds, what is open."""
    if found.constant:
        return (
            f"{UNDECIDED}: {rules.objective} is {found.base:.4g} in every run, it cannot tell "
            "plans apart; choose another objective, such as val_loss"
        )
    failed = ""
    if found.chosen.lacks and found.verdict != HURTS:
        blocks = f"{found.chosen.lacks} of {found.chosen.lacks + found.chosen.n} blocks"
        failed = f"; the finalist failed in {blocks}, so it cannot help"
    if difference is None or difference.p_value is None:
        seeds = difference.n if difference else 0
        paired = f"{seeds or 'no'} paired seed{'s' if seeds > 1 else ''}"
        least = sequential.first_look(rules.planned)
        more = f"at least {least} are needed; confirm with more blocks"
        return f"{found.verdict}: {paired}, {more}{failed}"
    shown = rounded(difference.mean, difference.low, difference.high)
    relative = details["relative"]
    shown += [f"({100 * relative:+.2g} %)"] if relative else []
    parts = [" ".join(filter(None, [shown[0], unit, *shown[1:]]))]
    parts += [f"p = {difference.p_value:.2g}", f"{difference.n} paired seeds"]
    parts += [f"confirmation {rules.earlier + 1}"] if rules.earlier else []
    parts += [f"one of {rules.together} objectives"] if rules.together > 1 else []
    open_ends = _open_ends(found, details, unit) if found.verdict == UNDECIDED else ""
    return f"{found.verdict}: {', '.join(parts)}{failed}{open_ends}"


def _open_ends(found: Judgement, details: Mapping[str, Any], unit: str) -> str:
    """Return how many more blocks would decide, and what these could have seen."""
    visible, more = details["visible"], details["more_blocks"]
    if visible is None:
        return "; all differences are equal, the objective may be too coarse"
    would = f"more than {_HORIZON - found.chosen.n}" if more is None else f"about {more}"
    of_control = f" ({100 * visible / abs(found.base):.2g} %)" if found.base else ""
    effect = " ".join(filter(None, [f"{visible:.2g}", unit]))
    return (
        f"; {would} more blocks would decide, these show effects from {effect}{of_control} on "
        f"with {100 * _POWER:.0f} % power"
    )
