"""`Queries`: what the listings and the command line read, by plain SQL.

Trials, states, values and parameters are read from Optuna's tables where Optuna keeps them;
`study.trials` of Optuna takes a second per thousand trials, one SELECT a few milliseconds.
All results are ready for JSON: numbers that were NaN or infinite are None, times are
ISO 8601 in UTC. No Optuna is loaded, and no SQLAlchemy for a SQLite file.
"""

import math
from typing import Any

from droptune import gap
from droptune.errors import StudyError, nearest
from droptune.store.helped import helped
from droptune.store.plain import decoded, plain
from droptune.store.reader import Reader, open_reader

Row = dict[str, Any]

STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""Optuna's states of a trial, and the words the listings use for them."""

STUDIES = """
    SELECT d.id, d.name, d.definition, d.environment, d.created_at
    FROM droptune_study d
"""
OPTUNA_STUDIES = """
    SELECT s.study_name AS name, s.study_id, lower(CAST(d.direction AS VARCHAR)) AS direction
    FROM studies s JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0
"""
COUNTS = "SELECT study_id, state, count(*) AS n FROM trials {of} GROUP BY study_id, state"
VERDICT = "SELECT * FROM droptune_verdict WHERE study_id = :study ORDER BY id DESC LIMIT 1"
VERDICTS = """
    SELECT study_id, verdict FROM droptune_verdict
    WHERE id IN (SELECT max(id) FROM droptune_verdict GROUP BY study_id)
"""
SITES = """
    SELECT position, name, role, layout, reach, shape, kind, rate
    FROM droptune_site WHERE study_id = :study ORDER BY position
"""
# A trial that was interrupted and done again has two runs; the latest says how it went. A
# fixed plan that still waits has none; search keeps its name and plan as user attributes.
TRIALS = """
    SELECT t.trial_id, t.number, t.state, v.value, r.id AS run_id, r.arm, r.plan, r.epochs,
           r.seconds, r.message, r.seed, r.clock, r.trainer, r.device,
           n.value_json AS fixed_name, p.value_json AS fixed_plan
    FROM trials t
    LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
    LEFT JOIN droptune_run r ON r.id = (
        SELECT max(id) FROM droptune_run
        WHERE study_id = :study AND phase = 'search' AND trial_number = t.number)
    LEFT JOIN trial_user_attributes n ON n.trial_id = t.trial_id AND n.key = 'name'
    LEFT JOIN trial_user_attributes p ON p.trial_id = t.trial_id AND p.key = 'plan'
    WHERE t.study_id = :optuna
"""
# Chosen before the joins, which for each of 100,000 trials take seconds.
LATEST = """ AND t.trial_id IN (
        SELECT trial_id FROM trials WHERE study_id = :optuna ORDER BY number DESC LIMIT {limit})
"""
BEST = """ AND t.trial_id IN (
        SELECT s.trial_id FROM trials s
        JOIN trial_values w ON w.trial_id = s.trial_id AND w.objective = 0
        WHERE s.study_id = :optuna AND s.state = 'COMPLETE' AND w.value_type = 'FINITE'
        ORDER BY w.value {order}, s.number LIMIT 1)
"""
CONTROL = """ AND (
        t.number IN (
            SELECT trial_number FROM droptune_run
            WHERE study_id = :study AND phase = 'search' AND arm = 'no dropout')
        OR t.trial_id IN (
            SELECT trial_id FROM trial_user_attributes
            WHERE key = 'name' AND value_json = '"no dropout"'))
    AND (r.arm = 'no dropout' OR n.value_json = '"no dropout"')"""
LIVE_EPOCHS = """
    SELECT r.id AS run_id, count(*) AS epochs
    FROM droptune_run r JOIN droptune_curve c ON c.run_id = r.id
    WHERE r.study_id = :study AND r.state = 'running' GROUP BY r.id
"""
PARAMS = """
    SELECT param_name, param_value, distribution_json
    FROM trial_params WHERE trial_id = :trial ORDER BY param_id
"""
CURVE = "SELECT epoch, train_loss, metrics FROM droptune_curve WHERE run_id = :run ORDER BY epoch"
CONFIRM_RUNS = """
    SELECT r.id, r.arm, r.block, r.seed, r.state, r.plan, r.test, r.epochs, r.seconds,
           r.message, c.metrics
    FROM droptune_run r
    LEFT JOIN droptune_curve c ON c.run_id = r.id AND c.epoch = (
        SELECT max(epoch) FROM droptune_curve WHERE run_id = r.id)
    WHERE r.study_id = :study AND r.phase = 'confirm' AND r.state IN ('complete', 'failed')
    ORDER BY r.block, r.id
"""
SEARCH_RUNS = """
    SELECT r.trial_number, r.state, r.message, c.metrics
    FROM droptune_run r
    LEFT JOIN droptune_curve c ON c.run_id = r.id AND c.epoch = r.epochs
    WHERE r.study_id = :study AND r.phase = 'search' AND r.state IN ('complete', 'failed')
    ORDER BY r.id
"""
CONTROL_METRICS = """
    SELECT c.metrics
    FROM droptune_run r JOIN droptune_curve c ON c.run_id = r.id AND c.epoch = r.epochs
    WHERE r.study_id = :study AND r.phase = 'search' AND r.arm = 'no dropout'
      AND r.state = 'complete'
    ORDER BY r.id
"""
SEARCH_CURVES = """
    SELECT r.trial_number, c.metrics
    FROM droptune_run r JOIN droptune_curve c ON c.run_id = r.id
    WHERE r.study_id = :study AND r.phase = 'search' AND r.state = 'complete'
    ORDER BY r.id, c.epoch
"""
SEARCH_SECONDS = """
    SELECT sum(seconds) AS seconds FROM droptune_run WHERE study_id = :study AND phase = 'search'
"""
DESIGNS = """
    SELECT design FROM droptune_confirmation WHERE study_id = :study ORDER BY round
"""


class Queries:
    """The listings of one database.

    Args:
        url: a SQLAlchemy database URL.
        reader: where to read instead of opening the URL.

    Raises:
        StoreError: the database cannot be read; a missing SQLite file is never created.
        SchemaError: it has no droptune tables, or older or newer ones.
    """

    def __init__(self, url: str, reader: Reader | None = None) -> None:
        self._reader = reader or open_reader(url)
        # The study may be stored before its first trial makes Optuna's tables.
        self._has_trials = self._reader.has_table("trials")

    def __enter__(self) -> "Queries":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def studies(self) -> list[Row]:
        """Return a row for each study, oldest first.

        Returns:
            name, objective, direction, trials (a count for each state), best (the best value
            of a complete trial, or None), verdict (or None) and created_at.
        """
        optuna = {row["name"]: row for row in self._optuna(OPTUNA_STUDIES)}
        counts = self._counts()
        verdicts = {row["study_id"]: row["verdict"] for row in self._rows(VERDICTS)}
        return [
            self._summary(study, optuna.get(study["name"]), counts, verdicts)
            for study in self._rows(STUDIES + " ORDER BY d.id")
        ]

    def trials(self, name: str, limit: int | None = None) -> list[Row]:
        """Return the trials of a study by number; with `limit`, the latest ones only.

        Returns:
            number, state, value, epochs, seconds, plan, and name (of a fixed plan, or None).

        Raises:
            StudyError: there is no such study.
        """
        study, optuna = self._find(name)
        if optuna is None:
            return []
        latest = "" if limit is None else LATEST.format(limit=max(0, int(limit)))
        tail = f"{latest} ORDER BY t.number DESC"
        rows = self._rows(TRIALS + tail, study=study["id"], optuna=optuna["study_id"])
        live = self._live_epochs(study)
        return [_trial(row, live) for row in reversed(rows)]

    def trial(self, name: str, number: int) -> Row:
        """Return one trial as in `trials`, with more of it.

        Returns:
            also params (of the search space), curve (epoch, train_loss and metrics by
            epoch), message (why it failed), seed, clock, trainer and device.

        Raises:
            StudyError: there is no such study or trial.
        """
        study, optuna = self._find(name)
        keys = {"study": study["id"], "optuna": optuna["study_id"] if optuna else None}
        only = TRIALS + " AND t.number = :number"
        rows = self._rows(only, number=number, **keys) if optuna else []
        if not rows:
            raise StudyError(f"study {name!r} has no trial {number}{self._numbers(optuna)}")
        more = ("message", "seed", "clock", "trainer", "device")
        return {
            **_trial(rows[0], self._live_epochs(study)),
            "params": self._params(rows[0]["trial_id"]),
            "curve": self._rows(CURVE, run=rows[0]["run_id"]),
            **{key: rows[0][key] for key in more},
        }

    def study(self, name: str) -> Row:
        """Return one study as in `studies`, with more of it.

        Returns:
            also definition, environment, sites in call order, and verdict as in `verdict`.

        Raises:
            StudyError: there is no such study.
        """
        study, optuna = self._find(name)
        return {
            **self._summary(study, optuna, self._counts(optuna), {}),
            "definition": study["definition"],
            "environment": study["environment"],
            "sites": self._rows(SITES, study=study["id"]),
            "verdict": self._verdict(study),
        }

    def helped(self) -> list[Row]:
        """Return the studies where dropout helped, see `droptune.store.helped`."""
        return helped(self._reader)

    def verdict(self, name: str) -> Row | None:
        """Return the latest verdict of a study, all columns of it, or None.

        Raises:
            StudyError: there is no such study.
        """
        return self._verdict(self._find(name)[0])

    def best(self, name: str) -> Row:
        """Return the answer of a study.

        Returns:
            study, verdict, plan, objective, best, control, difference (mean, low, high,
            p_value, blocks, level, relative and search, or None), test, and fit (see
            `droptune.gap.fit`). Before there is a verdict it is `undecided`: plan is that of
            the best trial so far, best and control (the trial with no dropout) are a trial
            number and a value or None, difference and test are None.

        Raises:
            StudyError: there is no such study.
        """
        study, optuna = self._find(name)
        verdict = self._verdict(study)
        if verdict is None:
            return self._best_so_far(study, optuna)
        parts = ("low", "high", "p_value", "blocks", "level")
        details = verdict["details"] or {}
        more = {key: details.get(key) for key in ("relative", "search")}
        difference = {"mean": verdict["difference"], **{key: verdict[key] for key in parts}, **more}
        same = {key: verdict[key] for key in ("verdict", "plan", "objective", "best", "control")}
        compared = difference if verdict["difference"] is not None else None
        fits = control_fit(self._reader, study["id"])
        return {
            "study": name,
            **same,
            "difference": compared,
            "test": verdict["test"],
            "fit": fits,
        }

    def confirm_runs(self, name: str) -> list[Row]:
        """Return the finished confirmation runs of a study, as `Store.confirm_runs` does.

        Raises:
            StudyError: there is no such study.
        """
        return confirm_runs(self._reader, self._find(name)[0]["id"])

    def designs(self, name: str) -> list[Row]:
        """Return the designs of a study's confirmations, as `Store.designs` does.

        Raises:
            StudyError: there is no such study.
        """
        return designs(self._reader, self._find(name)[0]["id"])

    def _best_so_far(self, study: Row, optuna: Row | None) -> Row:
        best = self._best_trial(study, optuna)
        control = self._best_trial(study, optuna, CONTROL)
        return {
            "study": study["name"],
            "verdict": "undecided",
            "plan": best["plan"] if best else None,
            "objective": study["definition"].get("objective"),
            "best": {"trial": best["number"], "value": best["value"]} if best else None,
            "control": {"trial": control["number"], "value": control["value"]} if control else None,
            "difference": None,
            "test": None,
            "fit": control_fit(self._reader, study["id"]),
        }

    def _best_trial(self, study: Row, optuna: Row | None, only: str = "") -> Row | None:
        if optuna is None:
            return None
        order = "DESC" if optuna["direction"] == "maximize" else "ASC"
        finite = " AND t.state = 'COMPLETE' AND v.value_type = 'FINITE'"
        only = only or BEST.format(order=order)
        tail = f"{finite}{only} ORDER BY v.value {order}, t.number LIMIT 1"
        rows = self._rows(TRIALS + tail, study=study["id"], optuna=optuna["study_id"])
        return rows[0] if rows else None

    def _summary(self, study: Row, optuna: Row | None, counts: Row, verdicts: Row) -> Row:
        best = self._best_trial(study, optuna)
        return {
            "name": study["name"],
            "objective": study["definition"].get("objective"),
            "direction": optuna["direction"] if optuna else study["definition"].get("direction"),
            "trials": counts.get(optuna["study_id"] if optuna else None, _no_trials()),
            "best": best["value"] if best else None,
            "verdict": verdicts.get(study["id"]),
            "created_at": study["created_at"],
        }

    def _find(self, name: str) -> tuple[Row, Row | None]:
        """Return droptune's row and Optuna's row (None: no trials yet) of a study."""
        found = self._rows(STUDIES + " WHERE d.name = :name", name=name)
        if not found:
            known = [row["name"] for row in self._rows("SELECT name FROM droptune_study")]
            say = nearest(name, known) or "; there is none yet, run `droptune optimize`"
            raise StudyError(f"no study {name!r} in this database{say}")
        rows = self._optuna(OPTUNA_STUDIES + " WHERE s.study_name = :name", name=name)
        return found[0], rows[0] if rows else None

    def _verdict(self, study: Row) -> Row | None:
        rows = self._rows(VERDICT, study=study["id"])
        if not rows:
            return None
        return {key: value for key, value in rows[0].items() if key not in ("id", "study_id")}

    def _counts(self, optuna: Row | None = None) -> dict[int, Row]:
        """Return study id -> how many trials are in which state; of one study, or of all."""
        counts: dict[int, Row] = {}
        of = {} if optuna is None else {"study": optuna["study_id"]}
        for row in self._optuna(COUNTS.format(of="WHERE study_id = :study" if of else ""), **of):
            counts.setdefault(row["study_id"], _no_trials())[STATES[row["state"]]] = row["n"]
        return counts

    def _live_epochs(self, study: Row) -> dict[int, int]:
        return {row["run_id"]: row["epochs"] for row in self._rows(LIVE_EPOCHS, study=study["id"])}

    def _params(self, trial_id: int) -> Row:
        rows = self._rows(PARAMS, trial=trial_id)
        return {row["param_name"]: _external(row) for row in rows}

    def _numbers(self, optuna: Row | None) -> str:
        sql = "SELECT max(number) AS last FROM trials WHERE study_id = :study"
        rows = self._rows(sql, study=optuna["study_id"]) if optuna else []
        last = rows[0]["last"] if rows else None
        return "; it has none yet" if last is None else f"; it has trials 0 to {last}"

    def _optuna(self, sql: str, **values: Any) -> list[Row]:
        return self._rows(sql, **values) if self._has_trials else []

    def _rows(self, sql: str, **values: Any) -> list[Row]:
        return plain(self._reader.rows(sql, **values))


def confirm_runs(reader: Reader, study_id: int) -> list[Row]:
    """Return the confirmation runs of a study that ended, with the metrics they ended on."""
    return plain(reader.rows(CONFIRM_RUNS, study=study_id))


def designs(reader: Reader, study_id: int) -> list[Row]:
    """Return the designs of a study's confirmations, the first one first."""
    return [row["design"] for row in plain(reader.rows(DESIGNS, study=study_id))]


def search_runs(reader: Reader, study_id: int) -> list[Row]:
    """Return the search runs of a study that are complete or failed, oldest first."""
    return plain(reader.rows(SEARCH_RUNS, study=study_id))


def search_curves(reader: Reader, study_id: int, metric: str) -> dict[int, list[float]]:
    """Return trial -> a metric by epoch, of the search runs that are complete."""
    curves: dict[int, list[float]] = {}
    for row in plain(reader.rows(SEARCH_CURVES, study=study_id)):
        value = row["metrics"].get(metric)
        curves.setdefault(row["trial_number"], []).append(math.nan if value is None else value)
    return curves


def search_seconds(reader: Reader, study_id: int) -> float:
    """Return the seconds of training of all search runs of a study."""
    return reader.rows(SEARCH_SECONDS, study=study_id)[0]["seconds"] or 0.0


def control_fit(reader: Reader, study_id: int) -> Row | None:
    """Return how no dropout fitted in the search, or None if it has not ended there."""
    rows = plain(reader.rows(CONTROL_METRICS, study=study_id))
    return gap.fit(rows[0]["metrics"]) if rows else None


def _trial(row: Row, live: dict[int, int]) -> Row:
    epochs = row["epochs"] if row["epochs"] is not None else live.get(row["run_id"])
    fixed = row["fixed_plan"] and decoded("plan", row["fixed_plan"])
    named = row["fixed_name"] and decoded("name", row["fixed_name"])
    return {
        "number": row["number"],
        "state": STATES[row["state"]],
        "value": row["value"],
        "epochs": epochs,
        "seconds": row["seconds"],
        "plan": row["plan"] if row["plan"] is not None else fixed,
        "name": named if row["arm"] in (None, "trial") else row["arm"],
    }


def _external(row: Row) -> Any:
    """Return a parameter as it was suggested; Optuna stores a choice by its index."""
    distribution = decoded("distribution_json", row["distribution_json"])
    if distribution["name"] == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(row["param_value"])]
    if distribution["name"] == "IntDistribution":
        return int(row["param_value"])
    return row["param_value"]


def _no_trials() -> dict[str, int]:
    return dict.fromkeys(STATES.values(), 0)
