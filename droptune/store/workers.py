"""`Workers`: who works on the studies of a store, who of them is dead, and what they left.

A worker shows that it lives by writing the time of the database's clock, so that the clocks of
the machines do not matter. If the database's own clock jumps, a living worker looks dead until
its next sign of life: its runs are then taken from it, which costs time and nothing else, for
it can write nothing more of them (`Store.held`).
"""

import os
import socket
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import (
    DateTime,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)

from droptune.processes import exists, place
from droptune.store.schema import RunRow, WorkerRow
from droptune.store.service import LEASE
from droptune.store.store import Store

BEAT = 5.0
"""How often a worker gives one, in seconds."""

_NOW = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
    "postgresql": "timezone('UTC', clock_timestamp())",
}
_AGE = {
    "sqlite": "(julianday('now') - julianday(seen_at)) * 86400.0",
    "postgresql": "EXTRACT(EPOCH FROM timezone('UTC', clock_timestamp()) - seen_at)",
}
_RUN, _WORKER = RunRow.__table__, WorkerRow.__table__
#: URL and id of the workers of this process that have left, though a database that was away could
#: not be told: the process lives on, and would be taken for them.
_LEFT: set[tuple[str, int]] = set()


class Workers:
    """The workers of a store.

    Args:
        store: an open one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        dialect = store.engine.dialect.name
        now = literal_column(_NOW[dialect], DateTime)
        self._age = literal_column(_AGE[dialect]).label("age")
        self._register = insert(_WORKER).values(started_at=now, seen_at=now)
        mine = _WORKER.c.id == bindparam("worker")
        self._beat = update(_WORKER).where(mine).values(seen_at=now)
        self._leave = self._beat.values(ended_at=now)
        trained = select(_RUN.c.id).where(_RUN.c.worker_id == _WORKER.c.id).exists()
        self._forget = delete(_WORKER).where(mine, ~trained)

    def register(self, device: str, pid: int) -> int:
        """Store that a worker of this machine begins; return its id."""
        values = {"host": socket.gethostname(), "place": place(), "pid": pid, "device": device}

        def work() -> int:
            return self._store.execute(self._register, values).inserted_primary_key[0]

        worker = self._store.write(work)
        _LEFT.discard((self._store.url, worker))  # SQLite gives the id of a row that is gone again
        return worker

    def beat(self, worker: int, study_id: int | None, doing: Mapping[str, Any] | None) -> None:
        """Store a sign of life.

        Args:
            worker: its id.
            study_id: what it works on, or None.
            doing: how far it is, as JSON.
        """
        values = {"worker": worker, "study_id": study_id, "doing": doing}
        self._store.execute(self._beat, values)

    def leave(self, worker: int) -> None:
        """Store that a worker has ended in order; one that trained nothing is forgotten.

        A worker that looks in now and then while others train would leave a row each time.
        """
        _LEFT.add((self._store.url, worker))

        def work() -> None:
            self._store.execute(self._leave, {"worker": worker, "study_id": None, "doing": None})
            self._store.execute(self._forget, {"worker": worker})

        self._store.write(work)

    def lost(self, study_id: int) -> list[int]:
        """Return the runs, by id, that are said to be in training by workers that are dead."""
        columns = (_WORKER.c.place, _WORKER.c.pid, _WORKER.c.ended_at, self._age)
        query = (
            select(_RUN.c.id, _RUN.c.worker_id, *columns)
            .join(_WORKER, _WORKER.c.id == _RUN.c.worker_id, isouter=True)
            .where(RunRow.study_id == study_id, RunRow.state == "running")
            .order_by(_RUN.c.id)
        )
        own = self._store.worker  # alive, whatever the database's clock says
        running = [row for row in self._store.rows(query) if row["worker_id"] != own or own is None]
        return [row["id"] for row in running if self._is_dead(row["worker_id"], row)]

    def living(self, study_id: int) -> int:
        """Return how many workers work on a study."""
        columns = (_WORKER.c.place, _WORKER.c.pid, _WORKER.c.ended_at, self._age)
        theirs = (WorkerRow.study_id == study_id) & WorkerRow.ended_at.is_(None)
        query = select(_WORKER.c.id, *columns).where(theirs)
        return sum(not self._is_dead(row["id"], row) for row in self._store.rows(query))

    def alive(self, workers: Collection[int | None]) -> set[int]:
        """Return which of these workers live."""
        columns = (_WORKER.c.place, _WORKER.c.pid, _WORKER.c.ended_at, self._age)
        known = [worker for worker in workers if worker is not None]
        query = select(_WORKER.c.id, *columns).where(WorkerRow.id.in_(known))
        return {row["id"] for row in self._store.rows(query) if not self._is_dead(row["id"], row)}

    def reap(self, study_id: int) -> int:
        """Mark the runs of dead workers as stale, so that they can be claimed.

        Returns:
            How many there were.
        """
        lost = self.lost(study_id)
        if not lost:
            return 0
        still = RunRow.id.in_(lost) & (RunRow.state == "running")
        return self._store.execute(update(RunRow).where(still).values(state="stale")).rowcount

    def busy(self, study_id: int) -> int:
        """Return how many workers train runs of a study."""
        theirs = (RunRow.study_id == study_id) & (RunRow.state == "running")
        query = select(func.count(RunRow.worker_id.distinct()).label("n")).where(theirs)
        return self._store.rows(query)[0]["n"]

    def _is_dead(self, worker: int | None, row: Mapping[str, Any]) -> bool:
        """Tell whether a worker, with the age of its last sign of life, will not come back."""
        if row["age"] is None or row["ended_at"] is not None:
            return True
        if row["place"] == place():
            left = row["pid"] == os.getpid() and (self._store.url, worker) in _LEFT
            if left or not exists(row["pid"]):
                return True
        return abs(float(row["age"])) > LEASE  # below zero: the clock was set back
