"""Whether a study is whole: looked at in the database, with nothing of droptune's own code."""

import json
from collections import Counter
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

ENDED = ("complete", "pruned", "failed")
_TOLD = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


class Seen:
    """All that a database holds of one study.

    Args:
        url: of the database.
        name: of the study.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url.replace("postgresql://", "postgresql+psycopg://")
        self.definition = _json(
            self._rows("SELECT definition FROM droptune_study WHERE name = :n", n=name)[0][0]
        )
        theirs = "(SELECT id FROM droptune_study WHERE name = :n)"
        optunas = "(SELECT study_id FROM studies WHERE study_name = :n)"
        self.trials = self._rows(
            "SELECT number, state, trial_id FROM trials"
            f" WHERE study_id = {optunas} ORDER BY number",
            n=name,
        )
        self.values: dict[int, list[float]] = {}
        of_trials = f"SELECT trial_id FROM trials WHERE study_id = {optunas}"
        for trial, value in self._rows(
            f"SELECT trial_id, value FROM trial_values WHERE trial_id IN ({of_trials})"
            " ORDER BY trial_id, objective",
            n=name,
        ):
            self.values.setdefault(trial, []).append(value)
        columns = "id, phase, trial_number, block, arm, state, epochs, plan, test"
        self.runs = [
            dict(zip(columns.split(", "), row, strict=True))
            for row in self._rows(
                f"SELECT {columns} FROM droptune_run WHERE study_id = {theirs} ORDER BY id", n=name
            )
        ]
        self.curves: dict[int, dict[int, dict[str, float]]] = {run["id"]: {} for run in self.runs}
        for run, epoch, metrics in self._rows(
            "SELECT run_id, epoch, metrics FROM droptune_curve WHERE run_id IN"
            f" (SELECT id FROM droptune_run WHERE study_id = {theirs}) ORDER BY run_id, epoch",
            n=name,
        ):
            self.curves[run][epoch] = _json(metrics)
        self.verdicts = self._rows(
            "SELECT objective, verdict, difference, p_value, blocks FROM droptune_verdict"
            f" WHERE study_id = {theirs} ORDER BY id",
            n=name,
        )

    def _rows(self, sql: str, **values: Any) -> list[tuple]:
        engine = create_engine(self._url, poolclass=NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql), values)]

    def ended(self, phase: str) -> list[dict[str, Any]]:
        """Return the runs of a phase that came to their end."""
        return [run for run in self.runs if run["phase"] == phase and run["state"] in ENDED]

    def last(self, run: int) -> dict[str, float]:
        """Return the metrics of a run's last epoch."""
        return self.curves[run][max(self.curves[run])]

    def answer(self) -> dict[str, Any]:
        """Return what does not depend on who trained what, and when: all values and verdicts."""
        search = {run["trial_number"]: self._found(run) for run in self.ended("search")}
        confirm = {
            f"block {run['block']}, {run['arm']}": self._found(run) for run in self.ended("confirm")
        }
        return {"search": search, "confirm": confirm, "verdict": set(self.verdicts)}

    def _found(self, run: dict[str, Any]) -> tuple:
        curve = self.curves[run["id"]]
        return run["state"], _json(run["plan"]), [curve[epoch] for epoch in sorted(curve)]


def check_whole(url: str, name: str, trials: int) -> Seen:
    """Fail unless a study that has ended is whole; return what was seen.

    Args:
        url: of its database.
        name: of the study.
        trials: its budget.
    """
    seen = Seen(url, name)
    assert [number for number, _, _ in seen.trials] == list(range(trials))
    assert "running" not in {run["state"] for run in seen.runs}
    searched = {run["trial_number"]: run for run in seen.ended("search")}
    assert len(searched) == len(seen.ended("search")), "a trial has two runs that ended"
    assert set(searched) == set(range(trials)), "a trial has no run that ended"
    objective = seen.definition["objective"]
    objectives = [objective] if isinstance(objective, str) else objective
    for number, state, trial in seen.trials:
        run = searched[number]
        assert state == _TOLD[run["state"]], f"trial {number} is {state}, its run {run['state']}"
        if state == "COMPLETE":
            assert seen.values[trial] == [seen.last(run["id"])[one] for one in objectives]
    for run in seen.runs:
        epochs = sorted(seen.curves[run["id"]])
        assert epochs == list(range(1, len(epochs) + 1)), f"run {run['id']} has gaps: {epochs}"
        if run["state"] in ENDED:
            assert len(epochs) == run["epochs"], f"run {run['id']}: {epochs}, {run['epochs']}"
        if run["state"] == "complete":
            assert len(epochs) == seen.definition["training"]["epochs"]
    arms = Counter((run["block"], run["arm"]) for run in seen.ended("confirm"))
    assert arms and set(arms.values()) == {1}, f"arms that ended more than once: {arms}"
    assert Counter(one[0] for one in seen.verdicts) == Counter(objectives)
    return seen


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
