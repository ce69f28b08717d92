"""What a report draws, read by plain SQL; of the curves only the points that are drawn."""

from collections.abc import Iterable

from droptune.store.queries import Queries, Row

POINTS = 200
"""Epochs of a curve that are read at most, the first and the last among them."""

LENGTHS = "SELECT max(epochs) AS last FROM droptune_run WHERE id IN ({runs})"
# Whole numbers divide without a rest on every database; not all know a modulo.
CURVES = """
    SELECT run_id, epoch, train_loss, metrics FROM droptune_curve
    WHERE run_id IN ({runs})
      AND (epoch IN (1, :last) OR epoch - (epoch / :step) * :step = 0)
    ORDER BY run_id, epoch
"""
SEARCH_RUN = """
    SELECT max(id) AS id FROM droptune_run
    WHERE study_id = :study AND phase = 'search' AND trial_number = :number
"""
COMPLETE = """
    SELECT t.number, v.value, p.param_name, p.param_value, p.distribution_json
    FROM trials t
    JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
    LEFT JOIN trial_params p ON p.trial_id = t.trial_id
    WHERE t.study_id = :study AND t.state = 'COMPLETE' AND v.value_type = 'FINITE'
    ORDER BY t.number, p.param_id
"""


class Drawn(Queries):
    """The listings, and what only a report or an analysis of a study reads."""

    def curves(self, runs: Iterable[int]) -> dict[int, list[Row]]:
        """Return scores by epoch of some runs, at most `POINTS` epochs of each.

        Args:
            runs: ids of runs.

        Returns:
            run -> rows of epoch, train_loss and metrics; a run without an epoch is left out.
        """
        ids = {f"r{i}": run for i, run in enumerate(dict.fromkeys(runs))}
        if not ids:
            return {}
        names = ", ".join(f":{name}" for name in ids)
        last = self._rows(LENGTHS.format(runs=names), **ids)[0]["last"] or 1
        # Two points less: the first and the last come in addition.
        step = -(-last // (POINTS - 2))
        rows = self._rows(CURVES.format(runs=names), last=last, step=step, **ids)
        curves: dict[int, list[Row]] = {}
        for row in rows:
            curves.setdefault(row.pop("run_id"), []).append(row)
        return curves

    def search_run(self, name: str, number: int) -> int | None:
        """Return the id of the latest run of a trial, or None.

        Raises:
            StudyError: there is no such study.
        """
        study, _ = self._find(name)
        return self._rows(SEARCH_RUN, study=study["id"], number=number)[0]["id"]

    def parameters(self, name: str) -> list[Row]:
        """Return number, value and parameters of the complete trials of a study, by number.

        Returns:
            rows of number, value (of the first objective, finite) and params: name ->
            (Optuna's internal value, the distribution as Optuna's JSON).

        Raises:
            StudyError: there is no such study.
        """
        _, optuna = self._find(name)
        found: dict[int, Row] = {}
        rows = self._rows(COMPLETE, study=optuna["study_id"]) if optuna else []
        for row in rows:
            empty = {"number": row["number"], "value": row["value"], "params": {}}
            params = found.setdefault(row["number"], empty)["params"]
            if row["param_name"] is not None:
                params[row["param_name"]] = (row["param_value"], row["distribution_json"])
        return list(found.values())
