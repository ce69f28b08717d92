"""`Verdicts`: what a study has to say, of each objective the latest; one so far gives way.

Workers of a study say the same, one after the other by its lock; but a lock is lost with its
connection, so what is written here does not rely on it.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from droptune.store.schema import StudyRow
from droptune.store.store import Store

SO_FAR = "so_far"
"""In the details of a verdict: the confirmation goes on, and the next verdict takes its place."""
JUDGED = "judged"
"""In the details of a verdict: the numbers of the blocks that it is about, rising."""


class Verdicts:
    """The verdicts of one study.

    Args:
        store: an open one.
        study_id: in the store.
    """

    def __init__(self, store: Store, study_id: int) -> None:
        self._store, self._study_id = store, study_id

    def save(self, verdict: Mapping[str, Any]) -> None:
        """Store a verdict, unless it is stored, or it is one so far and a later one is stored.

        Args:
            verdict: its keys are the columns of `droptune_verdict`.
        """
        alone = select(StudyRow.id).where(StudyRow.id == self._study_id).with_for_update()

        def work() -> None:
            self._store.rows(alone)
            stored = self._store.verdict(self._study_id, verdict["objective"]) or {}
            if all(stored.get(key, "missing") == value for key, value in verdict.items()):
                return
            if _has(verdict, SO_FAR) and _last(stored) >= _last(verdict):
                return
            before = stored["id"] if _has(stored, SO_FAR) else None
            self._store.save_verdict(self._study_id, verdict, before)

        self._store.write(work)


def _has(verdict: Mapping[str, Any], key: str) -> Any:
    return (verdict.get("details") or {}).get(key)


def _last(verdict: Mapping[str, Any]) -> int:
    """Return the number of the last block that a verdict is about."""
    return max(_has(verdict, JUDGED) or [0])
