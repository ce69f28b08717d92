"""The answer of a study: what its confirmation runs say, as `Result`.

Pure functions of stored runs; optimize.py reads them and stores what comes out.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from droptune.plan import Plan
from droptune.space import AS_GIVEN, CONTROL, TUNED
from droptune.verdict import HELPS, Difference, Verdict, decide, paired_difference

#: (block, plan) -> the run that ended there.
Runs = Mapping[tuple[int, Plan], Mapping[str, Any]]


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
            value that its search trial had.
        control: the same of no dropout; where training was tuned, of the better of the
            study's own training and the best of the search, both without dropout.
        difference: winner minus no dropout, in the objective's unit; None if there is none.
        test: means on the test split, read once, at the end; None without one.
        fit: of no dropout in the search, see `droptune.gap.fit`; None if it is not known.
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
    finished_before: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values, as `droptune best --json` prints it."""
        answer = {
            "study": self.study,
            "verdict": self.verdict.verdict,
            "plan": self.plan.to_json(),
            "objective": self.objective,
            "best": self.best,
            "control": self.control,
            "difference": _difference(self.difference),
            "test": self.test,
            "fit": self.fit,
        }
        return _plain(answer)

    def to_row(self, direction: str) -> dict[str, Any]:
        """Return the columns of `droptune_verdict`, as JSON values.

        Args:
            direction: `minimize` or `maximize`.
        """
        answer = self.to_json()
        answer.pop("study")
        answer.pop("fit")  # it stands with the control's run
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
    objective: str,
    direction: str,
    *,
    arms: Mapping[str, Plan],
    blocks: Sequence[int],
    runs: Runs,
    searched: Mapping[Plan, tuple[int, float]],
    unit: str = "",
    caveat: str | None = None,
) -> Result:
    """Return what the confirmation blocks say.

    Where training is tuned there are two controls, plain and tuned, and "helps" takes being
    better than either: an intersection-union test, whose level is that of its parts (Berger
    1982, Technometrics 24, 295-300). Numbers are those against the control with the better
    mean. The model as given is not tuned, so that it hurts is said by the plain control alone.

    Args:
        study: its name.
        objective: the metric that decides.
        direction: `minimize` or `maximize`.
        arms: name -> plan, no dropout among them.
        blocks: numbers of the blocks that count.
        runs: the stored ones.
        searched: plan -> number and value of its trial in the search.
        unit: of the objective.
        caveat: what the verdict's text says besides.
    """
    by_arm = {arm: [runs.get((block, plan)) for block in blocks] for arm, plan in arms.items()}
    values = {arm: [_final(run, objective) for run in found] for arm, found in by_arm.items()}
    control, verdict = _judged(values, direction, objective, unit)
    if caveat is not None:
        verdict = replace(verdict, text=f"{verdict.text}; {caveat}")

    def described(arm: str) -> dict[str, Any]:
        trial, lucky = searched.get(arms[arm], (None, None))
        return {"arm": arm, "value": _mean(values[arm]), "trial": trial, "search_value": lucky}

    return Result(
        study,
        verdict,
        arms[verdict.arm],
        objective,
        described(verdict.arm),
        described(control),
        verdict.difference,
        _test(by_arm, verdict.arm, control),
    )


def _judged(
    values: Mapping[str, Sequence[float]], direction: str, objective: str, unit: str
) -> tuple[str, Verdict]:
    """Return the control that decides, and the verdict against it."""
    verdicts = {
        control: decide(
            values,
            direction=direction,
            objective=objective,
            finalists=[arm for arm in values if arm not in (CONTROL, TUNED)],
            control=control,
            as_given=AS_GIVEN if control == CONTROL else None,
            unit=unit,
        )
        for control in _controls(values, direction)
    }
    better, *_ = verdicts
    control = next((c for c, verdict in verdicts.items() if verdict.verdict != HELPS), better)
    return control, verdicts[control]


def _controls(values: Mapping[str, Sequence[float]], direction: str) -> list[str]:
    """Return the arms without dropout, that with the better mean first."""
    sign = 1 if direction == "minimize" else -1
    means = {arm: _mean(values[arm]) for arm in (CONTROL, TUNED) if arm in values}
    return sorted(means, key=lambda arm: math.inf if means[arm] is None else sign * means[arm])


def complete_blocks(arms: Collection[Plan], runs: Runs) -> set[int]:
    """Return the numbers of the blocks in which every plan has ended."""
    return {block for block, _ in runs if all((block, plan) in runs for plan in arms)}


def _final(run: Mapping[str, Any] | None, objective: str) -> float:
    """Return the objective at a run's last epoch; NaN if it diverged or was not run."""
    if run is None or run["state"] != "complete":
        return math.nan
    value = (run["metrics"] or {}).get(objective)
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else None


def _test(
    by_arm: Mapping[str, Sequence[Mapping[str, Any] | None]], winner: str, control: str
) -> dict[str, Any] | None:
    """Return the means on the test split of winner and control, and their difference."""
    tests = {
        arm: [(run or {}).get("test") or {} for run in by_arm[arm]]
        for arm in dict.fromkeys((winner, control))
    }
    names = list(dict.fromkeys(name for scores in tests[control] for name in scores))
    result: dict[str, Any] = {}
    for name in names:
        columns = {
            arm: [math.nan if s.get(name) is None else s[name] for s in scores]
            for arm, scores in tests.items()
        }
        entry: dict[str, Any] = {"best": _mean(columns[winner]), "control": _mean(columns[control])}
        if winner != control:
            entry["difference"] = _difference(paired_difference(columns[winner], columns[control]))
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
