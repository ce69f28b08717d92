"""`Store`: what a running study writes to the database, and reads back to go on.

Optuna keeps the trials in the same database through its own connections. On SQLite a
transaction of the store holds the only write lock, so nothing may be told to the search
inside `store.transaction()`: it would wait for itself.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from sqlalchemy import Connection, Insert, bindparam, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from droptune.errors import BusyError, StudyError
from droptune.retry import again
from droptune.store import migrate, queries
from droptune.store.engine import READS, explained, finite, open_engine, storable
from droptune.store.lock import exclusive
from droptune.store.reader import EngineReader
from droptune.store.schema import (
    ConfirmationRow,
    CurveRow,
    RunRow,
    SiteRow,
    StudyRow,
    VerdictRow,
    now,
)
from droptune.store.server import lock_tables
from droptune.store.url import hide

T = TypeVar("T")

FLOATS = ("difference", "low", "high", "p_value", "level")
"""The columns of a verdict that are numbers with a fraction."""
# Built once: making a statement takes SQLAlchemy as long as running it.
_END_RUN = update(RunRow.__table__).where(RunRow.id == bindparam("run"))


class Store:
    """A database that holds studies, opened for writing; a thread may share it with others.

    Args:
        url: a SQLAlchemy database URL, for example `sqlite:///droptune.db`.
        create: make the SQLite file and the tables when there are none.

    Attributes:
        worker: id of the worker whose runs are started; None: of nobody.

    Raises:
        StoreError: the database cannot be opened: a missing folder or file, a file that is
            no database, no permission, or another program that keeps it locked.
        SchemaError: its tables are older or newer than this droptune.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = url
        self.worker: int | None = None
        self.url_hidden = hide(url)
        self.engine = open_engine(url, create=create)
        self._local = threading.local()
        self._insert_curve = _upsert_curve(self.engine.dialect.name)
        try:
            again(lambda _repeated: self._check_schema(create), BusyError)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return self.url_hidden

    def __repr__(self) -> str:
        return f"Store({self.url_hidden!r})"

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; may be called twice."""
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that is recorded inside in ONE transaction, or nothing when it raises.

        A transaction inside another of the same thread joins it. It is not tried again where
        a server fails for a moment: for that there is `write`.
        """
        if self._connection is not None:
            yield
            return
        with explained(self.url), self.engine.begin() as connection:
            self._local.connection = connection
            try:
                yield
            finally:
                self._local.connection = None

    @property
    def repeated(self) -> bool:
        """Whether the transaction is tried again: an earlier try may have been stored."""
        return getattr(self._local, "repeated", False)

    def write(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, run in one transaction.

        Where a server is away or busy for a moment the whole of it is run again (retry.py), so
        `work` must do nothing but write here. Inside another transaction it joins that one.

        Raises:
            StoreError: it could not be stored; nothing of it is.
        """
        if self._connection is not None:
            return work()

        def attempt(repeated: bool) -> T:
            self._local.repeated = repeated
            try:
                with self.transaction():
                    return work()
            finally:
                self._local.repeated = False

        return again(attempt)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process make tables meanwhile; for Optuna's, which it makes itself."""
        if self.engine.dialect.name == "sqlite":  # it has no such lock, and needs none
            yield
            return
        with explained(self.url), self.engine.begin() as connection:
            lock_tables(connection)
            yield

    def exclusive(self, name: str) -> AbstractContextManager[Callable[[], None]]:
        """Keep the other workers of a study out meanwhile, see `lock.exclusive`."""
        return exclusive(self.engine, self.url, name)

    def create_study(
        self,
        name: str,
        definition: Mapping[str, Any],
        environment: Mapping[str, Any],
        sites: Iterable[Mapping[str, Any]],
    ) -> int:
        """Store a new study with its sites.

        Args:
            name: the study's name, unique in the database.
            definition: what is tuned, as JSON; `objective` in it is shown by the listings.
            environment: versions and devices, as JSON.
            sites: in call order, each with name, role, layout, reach, shape and, where
                there is dropout today, kind and rate (probability of dropping).

        Returns:
            The id of the study.

        Raises:
            StudyError: there is a study of this name.
        """
        values = {"name": name, "definition": definition, "environment": environment}
        values["created_at"] = now()
        rows = [_site(position, site) for position, site in enumerate(sites)]

        def work() -> int:
            if (known := self._stored(StudyRow, values, "name", "created_at")) is not None:
                return known
            try:
                study_id = self._insert(StudyRow, values)
            except IntegrityError:
                raise StudyError(
                    f"study {name!r} is already in {self}; give another name, or open it to go on"
                ) from None
            if rows:
                self.execute(insert(SiteRow), [{**row, "study_id": study_id} for row in rows])
            return study_id

        return self.write(work)

    def study(self, name: str) -> dict[str, Any] | None:
        """Return id, name, definition, environment and created_at (UTC) of a study, or None."""
        return self._row(select(StudyRow.__table__).where(StudyRow.name == name))

    def start_run(
        self,
        study_id: int,
        *,
        phase: str,
        arm: str,
        plan: Mapping[str, Any],
        seed: int,
        block: int,
        clock: int,
        slot: int,
        trainer: str,
        device: str,
        trial_number: int | None = None,
    ) -> int:
        """Store that a run starts, in state `running`.

        Args:
            study_id: the study.
            phase: `search` or `confirm`.
            arm: `trial` for a sampled plan, else the name of the fixed plan: `no dropout`,
                `as given`, `finalist 1`...
            plan: the plan's JSON.
            seed: of the block: initial weights, data order and noise.
            block: number of the block.
            clock: the block's epoch at which the run enters.
            slot: the trainer's slot.
            trainer: name of the trainer.
            device: name of the device.
            trial_number: Optuna's number of the trial; None in confirmation.

        Returns:
            The id of the run.
        """
        values = {
            "study_id": study_id,
            "phase": phase,
            "arm": arm,
            "plan": plan,
            "seed": seed,
            "block": block,
            "clock": clock,
            "slot": slot,
            "trainer": trainer,
            "device": device,
            "trial_number": trial_number,
            "state": "running",
            "started_at": now(),
            "worker_id": self.worker,
        }
        same = ("study_id", "phase", "arm", "trial_number", "block", "slot", "started_at")
        return self._insert_once(RunRow, values, *same)

    def record(self, rows: Iterable[tuple[int, int, float | None, Mapping[str, Any]]]) -> None:
        """Store the scores of one epoch of many runs in one transaction.

        An epoch recorded before is replaced, so a run that goes on from a checkpoint may
        repeat epochs. NaN and infinities become null.

        Args:
            rows: (run id, epoch, training loss, metrics) of each run.
        """
        values = [
            {"run_id": run, "epoch": epoch, "train_loss": finite(loss), "metrics": metrics}
            for run, epoch, loss, metrics in rows
        ]
        if values:
            self.execute(self._insert_curve, values)

    def copy_curve(self, source: int, run: int, epochs: int | None = None) -> None:
        """Give a run the first epochs that another has trained; None: all so far."""
        curve = CurveRow.__table__
        columns = [column for column in curve.columns if column.name != "run_id"]
        there = select(curve.c.epoch).where(curve.c.run_id == run)  # by an earlier try
        rows = select(literal(run), *columns)
        rows = rows.where(curve.c.run_id == source, curve.c.epoch.not_in(there.scalar_subquery()))
        if epochs is not None:
            rows = rows.where(curve.c.epoch <= epochs)
        names = ["run_id", *(column.name for column in columns)]
        self.execute(insert(CurveRow).from_select(names, rows))

    def end_run(
        self,
        run_id: int,
        state: str,
        *,
        seconds: float,
        epochs: int,
        message: str | None = None,
        test: Mapping[str, Any] | None = None,
    ) -> None:
        """Store how a run ended.

        Args:
            run_id: the run.
            state: `complete`, `pruned`, `failed` or `interrupted`.
            seconds: time the run took, in seconds.
            epochs: epochs it trained.
            message: why it failed.
            test: metrics on the test split, where it was read.
        """
        values = {
            "run": run_id,
            "state": state,
            "seconds": finite(seconds),
            "epochs": epochs,
            "message": None if message is None else storable(message),
            "test": test,
        }
        self.execute(_END_RUN, values)

    def confirm_runs(self, study_id: int) -> list[dict[str, Any]]:
        """Return the finished confirmation runs by block, so that confirmation goes on there.

        Returns:
            For each run that is complete or failed: id, arm, block, seed, state, plan, test,
            epochs, seconds, message, and metrics (of its last epoch, None when it has none).
        """
        return self._read(queries.confirm_runs, study_id)

    def control_fit(self, study_id: int) -> dict[str, Any] | None:
        """Return how no dropout fitted in the search, see `droptune.gap.fit`, or None."""
        return self._read(queries.control_fit, study_id)

    def search_curves(
        self, study_id: int, metric: str, trials: Collection[int] | None = None
    ) -> dict[int, list[float]]:
        """Return trial -> a metric by epoch, of those ended search runs (None: of all)."""
        return self._read(partial(queries.search_curves, metric=metric, trials=trials), study_id)

    def search_seconds(self, study_id: int) -> float:
        """Return the seconds of training of all search runs, ended or not."""
        return self._read(queries.search_seconds, study_id)

    def save_design(self, study_id: int, design: Mapping[str, Any]) -> None:
        """Store the design of a study's next confirmation, as JSON."""

        def work() -> None:
            there = self.designs(study_id)
            if there[-1:] != [design]:  # which an earlier try has stored
                values = {"study_id": study_id, "round": len(there) + 1, "design": design}
                self._insert(ConfirmationRow, values)

        self.write(work)

    def designs(self, study_id: int) -> list[dict[str, Any]]:
        """Return the designs of a study's confirmations, the first one first."""
        return self._read(queries.designs, study_id)

    def save_verdict(
        self, study_id: int, verdict: Mapping[str, Any], instead_of: int | None = None
    ) -> None:
        """Store a verdict (its keys are columns of `droptune_verdict`), or write over one."""
        numbers = {key: finite(verdict[key]) for key in FLOATS if key in verdict}
        values = {**verdict, **numbers, "study_id": study_id, "created_at": now()}
        if instead_of is not None:
            self.execute(update(VerdictRow).where(VerdictRow.id == instead_of).values(values))
            return
        self._insert_once(VerdictRow, values, "study_id", "objective", "created_at")

    def verdict(self, study_id: int, objective: str) -> dict[str, Any] | None:
        """Return the latest verdict of a study on an objective, or None."""
        query = (
            select(VerdictRow.__table__)
            .where(VerdictRow.study_id == study_id, VerdictRow.objective == objective)
            .order_by(VerdictRow.id.desc())
            .limit(1)
        )
        return self._row(query)

    def queries(self) -> queries.Queries:
        """Return the listings over this store's connections; they see what it wrote."""
        return queries.Queries(self.url, EngineReader(self._reading))

    def _check_schema(self, create: bool) -> None:
        with explained(self.url):
            revision = migrate.current(self.engine)
            if revision is None and create:
                revision = migrate.upgrade(self.engine).after
        migrate.require_current(revision, self.url)

    @property
    def _connection(self) -> Connection | None:
        return getattr(self._local, "connection", None)

    def execute(self, statement: Any, rows: Any = None) -> Any:
        """Return the result of a statement that writes, alone or in the transaction around it."""
        return self.write(lambda: self._connection.execute(statement, rows))

    def rows(self, query: Any) -> list[dict[str, Any]]:
        """Return the rows of a query."""

        def work(_repeated: bool) -> list[Any]:
            with self._reading() as connection:
                return list(connection.execute(query))

        return [dict(row._mapping) for row in self._reread(work)]

    def _insert(self, table: Any, values: Mapping[str, Any]) -> int:
        return self.execute(insert(table.__table__), values).inserted_primary_key[0]

    def _insert_once(self, table: Any, values: Mapping[str, Any], *same: str) -> int:
        """Insert a row, unless an earlier try has; return its id."""

        def work() -> int:
            known = self._stored(table, values, *same)
            return self._insert(table, values) if known is None else known

        return self.write(work)

    def _stored(self, table: Any, values: Mapping[str, Any], *same: str) -> int | None:
        """Return the id of the row that an earlier try stored, known by its columns `same`."""
        if not self.repeated:
            return None
        equal = (table.__table__.c[key].is_not_distinct_from(values[key]) for key in same)
        return self._connection.execute(select(table.id).where(*equal)).scalar()

    def _row(self, query: Any) -> dict[str, Any] | None:
        """Return the only row of a query, or None."""
        return next(iter(self.rows(query)), None)

    def _read(self, what: Callable[[EngineReader, int], T], study_id: int) -> T:
        return self._reread(lambda _repeated: what(EngineReader(self._reading), study_id))

    def _reread(self, work: Callable[[bool], T]) -> T:
        """Return what `work` reads; in a transaction that is to be tried again as a whole."""
        return again(work) if self._connection is None else work(False)

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._joined() if self._connection is not None else self._read_only()

    @contextmanager
    def _joined(self) -> Iterator[Connection]:
        yield self._connection

    @contextmanager
    def _read_only(self) -> Iterator[Connection]:
        with explained(self.url):
            with self.engine.execution_options(**{READS: True}).connect() as connection:
                yield connection


def _upsert_curve(dialect: str) -> Insert:
    """Return the statement that inserts or replaces rows of a curve."""
    # Both dialects have the same `insert`, with ON CONFLICT; loading both would take longer.
    module = import_module(f"sqlalchemy.dialects.{dialect}")
    statement = module.insert(CurveRow.__table__)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["run_id", "epoch"],
        set_={"train_loss": new.train_loss, "metrics": new.metrics},
    )


def _site(position: int, site: Mapping[str, Any]) -> dict[str, Any]:
    today = {"kind": site.get("kind"), "rate": site.get("rate")}
    return {**site, **today, "position": position}
