"""`droptune db check --repair`: mends what consistency.py finds, and takes nothing away for ever.

A SQLite file is copied aside first. A run that must not count becomes `stale` and stays where it
is; only scores after a run's end, and files that nobody needs, are removed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text

from droptune.store import migrate
from droptune.store.consistency import Finding, findings, look, remove_checkpoints, studies
from droptune.store.store import Store
from droptune.store.workers import Workers

#: Tells trials as their runs ended: name of the study, its definition, and the ends, each with
#: number, state, metrics and message. Optuna owns the states of trials, and the store knows none
#: of it.
Tell = Callable[[str, Mapping[str, Any], Sequence[Mapping[str, Any]]], object]

_STALE = "UPDATE droptune_run SET state = 'stale' WHERE id = :id"
_MARK = """
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    VALUES (:id, 'message', '"ended without a run: how it was trained is not known"')
"""
_CUT = """
    DELETE FROM droptune_curve WHERE run_id = :id
        AND epoch > (SELECT epochs FROM droptune_run WHERE id = :id)
"""
_SQL = {"lost": _STALE, "twice": _STALE, "nowhere": _STALE, "untrained": _MARK, "beyond": _CUT}
_END = """
    SELECT r.trial_number AS number, r.state, r.message, c.metrics
    FROM droptune_run r LEFT JOIN droptune_curve c ON c.run_id = r.id AND c.epoch = r.epochs
    WHERE r.id = :id
"""


def repair(store: Store, tell: Tell) -> tuple[list[Finding], Path | None]:
    """Mend all studies that nobody works on.

    Args:
        store: an open one.
        tell: see `Tell`.

    Returns:
        what was mended; and where a SQLite file was copied to, None where nothing was done or
        it is no file.
    """
    if not findings(store)[0]:
        return [], None
    copy = migrate.copy_aside(store.engine, migrate.head())
    mended = []
    for name, study_id in studies(store).items():
        with store.exclusive(name):  # a worker that begins now waits
            if not Workers(store).living(study_id):
                mended += _mend(store, name, study_id, tell)
    return mended, copy


def _mend(store: Store, name: str, study_id: int, tell: Tell) -> list[Finding]:
    mended = []
    for kind in (finding.kind for finding in look(store, name, study_id)):
        # What is mended first may settle, or show, what comes after.
        for finding in (f for f in look(store, name, study_id) if f.kind == kind):
            if kind == "untold":
                ends = [store.rows(text(_END).bindparams(id=run))[0] for run in finding.ids]
                tell(name, store.study(name)["definition"], ends)
            elif kind == "unused":
                remove_checkpoints(store.url, finding.items)
            else:
                store.execute(text(_SQL[kind]), [{"id": one} for one in finding.ids])
            mended.append(finding)
    return mended
