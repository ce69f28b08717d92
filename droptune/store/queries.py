"""`Queries`: what the listings and the command line read, by plain SQL.

Trials, states, values and parameters are read from Optuna's tables where Optuna keeps them;
`study.trials` of Optuna takes a second per thousand trials, one SELECT a few milliseconds.
All results are ready for JSON: numbers that were NaN or infinite are None, times are
ISO 8601 in UTC. No Optuna is loaded, and no SQLAlchemy for a SQLite file.
"""

import math
from collections.abc import Collection
from typing import Any

from droptune import gap
from droptune.errors import StudyError, nearest
from droptune.store.helped import helped
from droptune.store.plain import decoded, plain
from droptune.store.reader import Reader, open_reader
from droptune.store.statements import (
    BEST,
    CONFIRM_RUNS,
    CONTROL,
    CONTROL_METRICS,
    COUNTS,
    CURVE,
    DESIGNS,
    LATEST,
    LIVE_EPOCHS,
    OPTUNA_STUDIES,
    PARAMS,
    SEARCH_CURVES,
    SEARCH_SECONDS,
    SITES,
    STUDIES,
    TRIALS,
    VALUES,
    VERDICTS,
)

Row = dict[str, Any]

STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""Optuna's states of a trial, and the words the listings use for them."""


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
            name, objective, direction, objectives (name -> direction), trials (a count for
            each state), best (the best value of a complete trial, or None), verdict (or None)
            and created_at. Of several objectives objective, direction, best and verdict are
            the first one's.
        """
        optuna = {row["name"]: row for row in self._optuna(OPTUNA_STUDIES)}
        counts = self._counts()
        verdicts = {(row["study_id"], row["objective"]): row for row in self._rows(VERDICTS)}
        return [
            self._summary(study, optuna.get(study["name"]), counts, verdicts)
            for study in self._rows(STUDIES + " ORDER BY d.id")
        ]

    def trials(self, name: str, limit: int | None = None) -> list[Row]:
        """Return the trials of a study by number; with `limit`, the latest ones only.

        Returns:
            number, state, value (of the first objective), values (objective -> value, or
            None), epochs, seconds, plan, and name (of a fixed plan, or None).

        Raises:
            StudyError: there is no such study.
        """
        study, optuna = self._find(name)
        if optuna is None:
            return []
        latest = "" if limit is None else LATEST.format(limit=max(0, int(limit)))
        tail = f"{latest} ORDER BY t.number DESC"
        own = {"optuna": optuna["study_id"]}
        rows = self._rows(TRIALS + tail, study=study["id"], objective=0, **own)
        values = self._values(study, rows, latest, own)
        live = self._live_epochs(study)
        return [_trial(row, live, values) for row in reversed(rows)]

    def trial(self, name: str, number: int) -> Row:
        """Return one trial as in `trials`, with more of it.

        Returns:
            also params (of the search space), curve (epoch, train_loss and metrics by
            epoch), message (why it failed), seed, clock, trainer and device.

        Raises:
            StudyError: there is no such study or trial.
        """
        study, optuna = self._find(name)
        own = {"optuna": optuna["study_id"] if optuna else None, "number": number}
        only = " AND t.number = :number"
        rows = self._rows(TRIALS + only, study=study["id"], objective=0, **own) if optuna else []
        if not rows:
            raise StudyError(f"study {name!r} has no trial {number}{self._numbers(optuna)}")
        more = ("message", "seed", "clock", "trainer", "device")
        return {
            **_trial(rows[0], self._live_epochs(study), self._values(study, rows, only, own)),
            "params": self._params(rows[0]["trial_id"]),
            "curve": self._rows(CURVE, run=rows[0]["run_id"]),
            **{key: rows[0][key] for key in more},
        }

    def study(self, name: str) -> Row:
        """Return one study as in `studies`, with more of it.

        Returns:
            also definition, environment, sites in call order, verdict as in `verdict`, and
            verdicts: objective -> verdict as there, of each that has one.

        Raises:
            StudyError: there is no such study.
        """
        study, optuna = self._find(name)
        return {
            **self._summary(study, optuna, self._counts(optuna), {}),
            "definition": study["definition"],
            "environment": study["environment"],
            "sites": self._rows(SITES, study=study["id"]),
            "verdict": self._verdict(study, None),
            "verdicts": self._verdicts(study),
        }

    def helped(self) -> list[Row]:
        """Return the studies where dropout helped, see `droptune.store.helped`."""
        return helped(self._reader)

    def verdict(self, name: str, objective: str | None = None) -> Row | None:
        """Return the latest verdict of a study on an objective, all columns of it, or None.

        Raises:
            StudyError: there is no such study, or it has no such objective.
        """
        return self._verdict(self._find(name)[0], objective)

    def best(self, name: str, objective: str | None = None) -> Row:
        """Return the answer of a study on an objective; None: the first, or only, one.

        Returns:
            study, verdict, plan, objective, best, control, difference (mean, low, high,
            p_value, blocks, level, relative and search, or None), test, fit (see
            `droptune.gap.fit`), and others (objective -> its verdict in a line). Before there
            is a verdict it is `undecided`: plan is that of the best trial so far, best and
            control (the trial with no dropout) are a trial number and a value or None,
            difference and test are None.

        Raises:
            StudyError: there is no such study, or it has no such objective.
        """
        study, optuna = self._find(name)
        verdict = self._verdict(study, objective)
        if verdict is None:
            return self._best_so_far(study, optuna, _asked(study, objective))
        parts = ("low", "high", "p_value", "blocks", "level")
        details = verdict["details"] or {}
        more = {key: details.get(key) for key in ("relative", "search")}
        difference = {"mean": verdict["difference"], **{key: verdict[key] for key in parts}, **more}
        same = {key: verdict[key] for key in ("verdict", "plan", "objective", "best", "control")}
        compared = difference if verdict["difference"] is not None else None
        fits = control_fit(self._reader, study["id"])
        rows = self._verdicts(study).items() if len(_objectives(study)) > 1 else ()
        return {
            "study": name,
            **same,
            "difference": compared,
            "test": verdict["test"],
            "fit": fits,
            "others": {key: row["text"] for key, row in rows if key != verdict["objective"]},
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

    def _best_so_far(self, study: Row, optuna: Row | None, objective: str | None) -> Row:
        best = self._best_trial(study, optuna, objective=objective)
        control = self._best_trial(study, optuna, CONTROL, objective)
        return {
            "study": study["name"],
            "verdict": "undecided",
            "plan": best["plan"] if best else None,
            "objective": objective,
            "best": {"trial": best["number"], "value": best["value"]} if best else None,
            "control": {"trial": control["number"], "value": control["value"]} if control else None,
            "difference": None,
            "test": None,
            "fit": control_fit(self._reader, study["id"]),
            "others": {},
        }

    def _best_trial(
        self, study: Row, optuna: Row | None, only: str = "", objective: str | None = None
    ) -> Row | None:
        if optuna is None:
            return None
        names = list(_objectives(study))
        at = names.index(objective) if objective in names else 0
        direction = _objectives(study)[objective] if at else optuna["direction"]
        order = "DESC" if direction == "maximize" else "ASC"
        finite = " AND t.state = 'COMPLETE' AND v.value_type = 'FINITE'"
        only = only or BEST.format(order=order)
        tail = f"{finite}{only} ORDER BY v.value {order}, t.number LIMIT 1"
        keys = {"study": study["id"], "optuna": optuna["study_id"], "objective": at}
        rows = self._rows(TRIALS + tail, **keys)
        return rows[0] if rows else None

    def _summary(self, study: Row, optuna: Row | None, counts: Row, verdicts: Row) -> Row:
        best, objectives = self._best_trial(study, optuna), _objectives(study)
        first = _asked(study, None)
        verdict = verdicts.get((study["id"], first))
        return {
            "name": study["name"],
            "objective": first,
            "direction": optuna["direction"] if optuna else objectives.get(first),
            "objectives": objectives,
            "trials": counts.get(optuna["study_id"] if optuna else None, _no_trials()),
            "best": best["value"] if best else None,
            "verdict": verdict and verdict["verdict"],
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

    def _verdict(self, study: Row, objective: str | None) -> Row | None:
        return self._verdicts(study).get(_asked(study, objective))

    def _verdicts(self, study: Row) -> dict[str, Row]:
        """Return objective -> its latest verdict."""
        rows = self._rows(f"{VERDICTS} AND study_id = :study ORDER BY id", study=study["id"])
        hidden = ("id", "study_id")
        return {
            row["objective"]: {key: value for key, value in row.items() if key not in hidden}
            for row in rows
        }

    def _values(self, study: Row, rows: list[Row], only: str, own: Row) -> dict[int, Row]:
        """Return trial id -> objective -> value; of a single one it stands in the rows."""
        names = list(_objectives(study))
        if len(names) > 1:
            rows = self._rows(f"{VALUES}{only} ORDER BY v.objective", **own)
        else:
            rows = [row | {"objective": 0} for row in rows if row["value"] is not None]
        values: dict[int, Row] = {}
        for row in rows:
            if row["objective"] < len(names):
                values.setdefault(row["trial_id"], {})[names[row["objective"]]] = row["value"]
        return values

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


def search_curves(
    reader: Reader, study_id: int, metric: str, trials: Collection[int] | None = None
) -> dict[int, list[float]]:
    """Return trial -> a metric by epoch, of the search runs that are complete or pruned.

    Args:
        reader: of the database.
        study_id: in the store.
        metric: which one.
        trials: whose curves, by number; None: all.
    """
    numbers = ", ".join(str(int(number)) for number in trials or ())
    of = "" if trials is None else f"AND r.trial_number IN ({numbers or 'NULL'})"
    curves: dict[int, list[float]] = {}
    for row in plain(reader.rows(SEARCH_CURVES.format(of=of), study=study_id)):
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


def _objectives(study: Row) -> dict[str, str | None]:
    """Return objective -> direction of a study, the first one first."""
    names, directions = (study["definition"].get(key) for key in ("objective", "direction"))
    if isinstance(names, str):
        return {names: directions}
    return dict(zip(names or (), directions or (), strict=False))


def _asked(study: Row, objective: str | None) -> str | None:
    """Return an objective of a study by its full name; None: the first one.

    Raises:
        StudyError: it is another study's.
    """
    names = list(_objectives(study))
    if objective is None:
        return names[0] if names else None
    for name in (objective, f"val_{objective}"):
        if name in names:
            return name
    raise StudyError(
        f"study {study['name']!r} has no objective {objective!r}; it has {', '.join(names)}"
    )


def _trial(row: Row, live: dict[int, int], values: dict[int, Row]) -> Row:
    epochs = row["epochs"] if row["epochs"] is not None else live.get(row["run_id"])
    fixed = row["fixed_plan"] and decoded("plan", row["fixed_plan"])
    named = row["fixed_name"] and decoded("name", row["fixed_name"])
    return {
        "number": row["number"],
        "state": STATES[row["state"]],
        "value": row["value"],
        "values": values.get(row["trial_id"]),
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
