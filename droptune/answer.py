"""The answer of a study: what its confirmation runs say, as `Result`.

Pure functions of stored runs; optimize.py reads them and stores what comes out. Of several
objectives each has its own answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from droptune.design import Outcome, final, mean_of
from droptune.pairs import Difference
from droptune.plan import Plan
from droptune.space import AS_GIVEN, CONTROL
from droptune.store import SO_FAR
from droptune.verdict import HURTS, UNDECIDED, Verdict, ruled_difference


@dataclass(frozen=True)
class Result:
    """The answer of a study.

    Attributes:
        study: its name.
        verdict: helps, no benefit, hurts or undecided, with the numbers behind it.
        plan: what to use: the confirmed winner, or no dropout; the best trial's plan where
            nothing was confirmed.
        objective: the metric that decided.
        best: the winner's arm, mean over the confirmation blocks and trial, and the lucky
            value that its search trial had; of several objectives the means of the others, too.
        control: the same of no dropout; where training was tuned, of the study's own training or
            the best of the search without dropout, whichever leaves the finalist less.
        difference: of the finalist, or of the model as given where that hurts, from no dropout,
            in the objective's unit; None if there is none.
        test: means on the test split, read once, at the end; None without one.
        fit: of no dropout in the search, see `droptune.gap.fit`; None if it is not known.
        others: objective -> the answer on it, of those besides the first.
        finished_before: nothing was left to do.
        seconds: where the time of this call went, by "training", "search" and "store".
    """

    study: str
    verdict: Verdict
    plan: Plan
    objective: str
    best: dict[str, Any] | None
    control: dict[str, Any] | None
    difference: Difference | None
    test: dict[str, Any] | None
    fit: dict[str, Any] | None = None
    others: Mapping[str, "Result"] = field(default_factory=dict)
    finished_before: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    def so_far(self) -> "Result":
        """Return the answer as it is known before the end: the test split is read then."""
        details = self.verdict.details | {SO_FAR: True}
        return replace(self, verdict=replace(self.verdict, details=details), test=None)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values, as `droptune best --json` prints it."""
        answer = {
            "study": self.study,
            "verdict": self.verdict.verdict,
            "plan": self.plan.to_json(),
            "objective": self.objective,
            "best": self.best,
            "control": self.control,
            "difference": self._difference(),
            "test": self.test,
            "fit": self.fit,
            "others": {name: str(one.verdict) for name, one in self.others.items()},
        }
        return _plain(answer)

    def _difference(self) -> dict[str, Any] | None:
        """Return the difference, with what it is of the control and what the search said."""
        found, details = _difference(self.difference), self.verdict.details
        return found and found | {key: details.get(key) for key in ("relative", "search")}

    def to_row(self, direction: str) -> dict[str, Any]:
        """Return the columns of `droptune_verdict`, as JSON values.

        Args:
            direction: `minimize` or `maximize`.
        """
        answer = self.to_json()
        answer.pop("study")
        answer.pop("fit")  # it stands with the control's run
        answer.pop("others")  # they have rows of their own
        difference = answer.pop("difference") or {}
        return answer | {
            "text": str(self.verdict),
            "direction": direction,
            "difference": difference.get("mean"),
            **{key: difference.get(key) for key in ("low", "high", "p_value")},
            "blocks": difference.get("blocks", 0),
            "level": difference.get("level", 0.95),
            "details": _plain(self.verdict.details),
        }


def unconfirmed(
    study: str, objective: str, best: tuple[int, Plan, float] | None, why: str
) -> Result:
    """Return the answer without confirmation: undecided.

    Args:
        study: its name.
        objective: the metric that decides.
        best: number, plan and value of the best trial, or None.
        why: nothing was confirmed, and what to do.
    """
    verdict = Verdict("undecided", CONTROL, None, f"undecided: {why}")
    plan = best[1] if best else Plan.none()
    winner = {"trial": best[0], "value": best[2]} if best else None
    return Result(study, verdict, plan, objective, winner, None, None, None)


def confirmed(
    study: str,
    outcome: Outcome,
    unit: str = "",
    caveat: str | None = None,
    others: Sequence[str] = (),
) -> Result:
    """Return what a confirmation says.

    Args:
        study: its name.
        outcome: at least one block of it.
        unit: of the objective.
        caveat: what the interval leaves out, for the text.
        others: objectives that are shown beside that of the outcome, over the same blocks.
    """
    design, values, control = outcome.design, outcome.values, outcome.control
    verdict = outcome.decide(unit)
    if verdict.verdict == UNDECIDED and outcome.ahead != verdict.arm:
        verdict = _with_ahead(verdict, outcome)
    if caveat is not None:
        verdict = replace(verdict, text=f"{verdict.text}; {caveat}")
    compared = AS_GIVEN if verdict.verdict == HURTS else outcome.chosen
    found = [design.arms[arm].value for arm in (compared, control)]
    search = None if None in found else found[0] - found[1]

    def described(arm: str) -> dict[str, Any]:
        one = design.arms[arm]
        mean = mean_of(values[arm])
        row = {"arm": arm, "value": mean, "trial": one.trial, "search_value": one.value}
        ended = [outcome.runs.get((block, one.plan)) for block in outcome.blocks]
        beside = {name: mean_of([final(run, name) for run in ended]) for name in others}
        return row | ({"others": beside} if others else {})

    return Result(
        study,
        replace(verdict, details=verdict.details | {"search": search}),
        design.arms[verdict.arm].plan,
        design.rules.objective,
        described(verdict.arm),
        described(control),
        verdict.difference,
        _test(outcome, verdict.arm),
    )


def _with_ahead(verdict: Verdict, outcome: Outcome) -> Verdict:
    """Return a verdict that names the finalist for those who cannot wait for more blocks."""
    one = outcome.design.arms[outcome.ahead]
    trial = "" if one.trial is None else f" (trial {one.trial})"
    entry = {"arm": outcome.ahead, "trial": one.trial, "plan": one.plan.to_json()}
    text = f"{verdict.text}; if it must be settled now, {outcome.ahead}{trial} is ahead"
    return replace(verdict, text=text, details=verdict.details | {"ahead": entry})


def _test(outcome: Outcome, winner: str) -> dict[str, Any] | None:
    """Return the means on the test split of winner and control, and their difference.

    The blocks ended when the objective pleased, and test goes with it; so the test split's
    intervals, too, are those that hold at all looks.
    """
    design, runs, control = outcome.design, outcome.runs, outcome.control
    tests = {
        arm: [runs[block, design.arms[arm].plan].get("test") or {} for block in outcome.blocks]
        for arm in dict.fromkeys((winner, control))
    }
    names = list(dict.fromkeys(name for scores in tests[control] for name in scores))
    result: dict[str, Any] = {}
    for name in names:
        columns = {
            arm: [math.nan if s.get(name) is None else s[name] for s in scores]
            for arm, scores in tests.items()
        }
        entry: dict[str, Any] = {
            "best": mean_of(columns[winner]),
            "control": mean_of(columns[control]),
        }
        if winner != control:
            difference = ruled_difference(columns[winner], columns[control], design.rules)
            entry["difference"] = _difference(difference)
        result[name] = entry
    return result or None


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    """Return a difference as JSON values; None where no block has both arms."""
    if difference is None or not difference.n:
        return None
    values = asdict(difference)
    values["blocks"] = values.pop("n")
    return values


def _plain(value: Any) -> Any:
    """Return JSON values as a database gives them back: without NaN, infinities and tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
