"""What the page of a study shows, gathered from the store; no figure is computed twice.

A verdict is read tolerantly: what another droptune stored may lack parts, and then the page
lacks them too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from droptune.store.drawn import Drawn

Row = Mapping[str, Any]

# As in droptune/space.py, which loads torch; a test holds the two together.
CONTROL, AS_GIVEN, TUNED = "no dropout", "as given", "no dropout, tuned"
BEST = "best trial"
"""What the best trial is called where nothing was confirmed."""


@dataclass(frozen=True)
class Facts:
    """What is known of a study.

    Attributes:
        name: of the study.
        objective: the metric that decides.
        direction: `minimize` or `maximize`.
        best: the answer, as `Queries.best` gives it.
        study: as `Queries.study` gives it.
        trials: as `Queries.trials` gives them.
        runs: those of the confirmation that ended, by block.
        compared: the arm that the difference is of, or the best trial; None without either.
        control: the arm without dropout that it is compared with.
        pairs: arm -> block -> the objective minus that of `control` in the same block; of the
            blocks that the verdict counts, if it says which.
        curves: arm -> a curve for each of these blocks, of `control`, `compared` and as given.
        reliability: arm -> bins of (confidence, accuracy, count) for each block that has them.
    """

    name: str
    objective: str
    direction: str
    best: Row
    study: Row
    trials: Sequence[Row]
    runs: Sequence[Row]
    compared: str | None
    control: str
    pairs: Mapping[str, Mapping[int, float]]
    curves: Mapping[str, Sequence[Sequence[Row]]]
    reliability: Mapping[str, Sequence[Sequence[Sequence[float]]]]

    @property
    def confirmed(self) -> bool:
        """Whether there is a difference to show."""
        return self.best["difference"] is not None

    def named(self, key: str) -> str:
        """Return a score with its unit, where that is known: a cross-entropy is in nats."""
        training = self.study["definition"].get("training") or {}
        own = training.get("train") is None and training.get("trainer") is None
        in_nats = own and training.get("loss") in ("cross_entropy", "binary_cross_entropy")
        return f"{key} [nats]" if in_nats and key in ("val_loss", "train_loss") else key

    @property
    def said(self) -> str:
        """The verdict in a line."""
        verdict = self.study["verdict"]
        if verdict is None:
            so_far = (
                "this is the best trial so far" if self.best["best"] else "no trial is complete"
            )
            return f"undecided: nothing is confirmed yet; {so_far}"
        return verdict["text"] or verdict["verdict"]


def gather(queries: Drawn, name: str) -> Facts:
    """Return what the page of a study shows.

    Raises:
        StudyError: there is no such study.
    """
    study, best = queries.study(name), queries.best(name)
    objective = _first(best["objective"]) or "objective"
    trials, runs = queries.trials(name), queries.confirm_runs(name)
    verdict = study["verdict"] or {}
    arms = _arms(runs, verdict)
    compared = _compared(verdict) if arms else None
    control = (verdict.get("control") or {}).get("arm") or CONTROL
    values = {arm: _values(found, objective) for arm, found in arms.items()}
    shown = [arm for arm in dict.fromkeys((control, compared, AS_GIVEN)) if arm in arms]
    if shown:
        curves = {arm: [run["id"] for run in arms[arm].values()] for arm in shown}
    else:
        curves = _searched(queries, name, best, trials)
        compared = BEST if BEST in curves else None
    read = queries.curves(run for runs in curves.values() for run in runs)
    return Facts(
        name,
        objective,
        study["direction"] or "minimize",
        best,
        study,
        trials,
        runs,
        compared,
        control,
        {arm: _minus(values[arm], values.get(control, {})) for arm in arms if arm != control},
        {arm: [read[run] for run in ids if run in read] for arm, ids in curves.items()},
        {arm: _bins(arms[arm]) for arm in shown},
    )


def _first(objective: Any) -> str | None:
    """Return the first objective of several."""
    return objective if isinstance(objective, str | None) else next(iter(objective), None)


def _arms(runs: Sequence[Row], verdict: Row) -> dict[str, dict[int, Row]]:
    """Return arm -> block -> its complete run.

    Of a verdict that says so the blocks that it counts: in those before them the finalist was
    chosen, and in those of another confirmation the same name may stand for another plan. Else
    the plan of the verdict, or of the latest run of a name, is the one that counts.
    """
    if (judged := (verdict.get("details") or {}).get("judged")) is not None:
        runs = [run for run in runs if run["block"] in judged]
    plans = {run["arm"]: run["plan"] for run in sorted(runs, key=lambda run: run["id"])}
    if (name := (verdict.get("best") or {}).get("arm")) in plans:
        plans[name] = verdict["plan"]
    arms: dict[str, dict[int, Row]] = {arm: {} for arm in plans}
    for run in runs:
        for arm, plan in plans.items():
            if run["plan"] == plan and run["state"] == "complete":
                arms[arm][run["block"]] = run
    return arms


def _compared(verdict: Row) -> str | None:
    """Return the arm that the difference of a verdict is of."""
    winner = (verdict.get("best") or {}).get("arm")
    if winner not in (None, CONTROL, TUNED):
        return winner
    if verdict.get("verdict") == "hurts":
        return AS_GIVEN
    details = verdict.get("details") or {}
    if (selection := details.get("selection")) is not None:
        return selection.get("chosen")
    finalists = details.get("finalists")  # of a droptune without selection
    mean = verdict.get("difference")
    if mean is None or not isinstance(finalists, Mapping):
        return None
    means = {arm: row.get("mean") for arm, row in finalists.items()}
    known = {arm: abs(m - mean) for arm, m in means.items() if m is not None}
    return min(known, key=known.get, default=None)


def _values(runs: Mapping[int, Row], objective: str) -> dict[int, float]:
    """Return the objective at the end of each run, by block; a run without it is left out."""
    found = {block: (run["metrics"] or {}).get(objective) for block, run in runs.items()}
    return {block: value for block, value in found.items() if _finite(value)}


def _minus(values: Mapping[int, float], control: Mapping[int, float]) -> dict[int, float]:
    return {block: values[block] - control[block] for block in sorted(values) if block in control}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _searched(queries: Drawn, name: str, best: Row, trials: Sequence[Row]) -> dict[str, list[int]]:
    """Return the runs whose curves stand in for the confirmation's: those of three trials."""
    fixed = {trial["name"]: trial["number"] for trial in trials if trial["name"]}
    numbers = {CONTROL: fixed.get(CONTROL), BEST: (best["best"] or {}).get("trial")}
    numbers[AS_GIVEN] = fixed.get(AS_GIVEN)
    runs: dict[str, list[int]] = {}
    for arm, number in numbers.items():
        if number is None or (arm == BEST and number == numbers[CONTROL]):
            continue
        if (run := queries.search_run(name, number)) is not None:
            runs[arm] = [run]
    return runs


def _bins(runs: Mapping[int, Row]) -> list[Any]:
    """Return the reliability bins of an arm's runs, by block, where they were stored."""
    stored = ((run["metrics"] or {}).get("reliability") for run in runs.values())
    return [bins for bins in stored if bins]
