"""Tells trials whose runs have ended, and which Optuna's tables still have as running.

For `droptune db check --repair`; a study that goes on does it by itself (dispatch.py).
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from droptune.objectives import each
from droptune.record import Record
from droptune.store import driver_url, prepare_engine
from droptune.trials import MESSAGE, STATES


def retell(
    url: str, name: str, definition: Mapping[str, Any], ends: Sequence[Mapping[str, Any]]
) -> None:
    """Tell trials as their runs ended; one whose values are not known has failed.

    Args:
        url: of the database.
        name: of the study.
        definition: of the study, as it is stored.
        ends: number, state, message, and metrics of the last epoch, of each trial.

    Raises:
        StoreError: the trials cannot be stored.
    """
    directions, objectives = each(definition["direction"]), each(definition["objective"])
    record = Record(driver_url(url), name, list(directions), partial(prepare_engine, url=url))
    try:
        for end in ends:
            _tell(record, end, objectives)
    finally:
        record.close()


def _tell(record: Record, end: Mapping[str, Any], objectives: Sequence[str]) -> None:
    state, message, values = end["state"], end["message"], None
    if state == "pruned":
        rungs = record.rungs(end["number"])
        values = [rungs[max(rungs)]] if rungs else None
    elif state == "complete":
        metrics = end["metrics"] or "{}"
        known = json.loads(metrics) if isinstance(metrics, str) else metrics
        values = [known.get(one) for one in objectives]
        if None in values:
            state, values, message = "failed", None, "the objective was not a number"
    notes = {} if message is None else {MESSAGE: message}
    record.finish(end["number"], STATES["fail" if state == "failed" else state], values, {}, notes)
