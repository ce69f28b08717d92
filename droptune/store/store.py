"""`Store`: what a running study writes to the database, and reads back to go on.

Optuna keeps the trials in the same database through its own connections. On SQLite a
transaction of the store holds the only write lock, so nothing may be told to the search
inside `store.transaction()`: it would wait for itself.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from droptune.errors import StudyError
from droptune.store import migrate
from droptune.store.engine import READS, explained, finite, open_engine
from droptune.store.queries import Queries, confirm_runs, designs, search_runs, search_seconds
from droptune.store.reader import EngineReader
from droptune.store.schema import ConfirmationRow, CurveRow, RunRow, SiteRow, StudyRow, VerdictRow
from droptune.store.url import hide

FLOATS = ("difference", "low", "high", "p_value", "level")
"""The columns of a verdict that are numbers with a fraction."""
# Built once: making a statement takes SQLAlchemy as long as running it.
_END_RUN = update(RunRow.__table__).where(RunRow.id == bindparam("run"))


class Store:
    """A database that holds studies, opened for writing; a thread may share it with others.

    Args:
        url: a SQLAlchemy database URL, for example `sqlite:///droptune.db`.
        create: make the SQLite file and the tables when there are none.

    Raises:
        StoreError: the database cannot be opened: a missing folder or file, a file that is
            no database, no permission, or another program that keeps it locked.
        SchemaError: its tables are older or newer than this droptune.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = url
        self.url_hidden = hide(url)
        self.engine = open_engine(url, create=create)
        self._local = threading.local()
        self._insert_curve = _upsert_curve(self.engine.dialect.name)
        try:
            self._check_schema(create)
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

        A transaction inside another of the same thread joins it.
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
        with self.transaction():
            try:
                study_id = self._insert(StudyRow, values)
            except IntegrityError:
                raise StudyError(
                    f"study {name!r} is already in {self}; give another name, or open it to go on"
                ) from None
            rows = [_site(study_id, position, site) for position, site in enumerate(sites)]
            if rows:
                self._execute(insert(SiteRow), rows)
        return study_id

    def study(self, name: str) -> dict[str, Any] | None:
        """Return id, name, definition, environment and created_at (UTC) of a study, or None."""
        with self._reading() as connection:
            row = connection.execute(
                select(StudyRow.__table__).where(StudyRow.name == name)
            ).one_or_none()
        return None if row is None else dict(row._mapping)

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
        }
        return self._insert(RunRow, values)

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
            self._execute(self._insert_curve, values)

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
            "message": message,
            "test": test,
        }
        self._execute(_END_RUN, values)

    def interrupt_runs(self, study_id: int) -> int:
        """Mark the runs that a dead process left `running` as `interrupted`.

        Returns:
            How many there were.
        """
        left = (RunRow.study_id == study_id) & (RunRow.state == "running")
        return self._execute(update(RunRow).where(left).values(state="interrupted")).rowcount

    def confirm_runs(self, study_id: int) -> list[dict[str, Any]]:
        """Return the finished confirmation runs by block, so that confirmation goes on there.

        Returns:
            For each run that is complete or failed: id, arm, block, seed, state, plan, test,
            epochs, seconds, message, and metrics (of its last epoch, None when it has none).
        """
        return confirm_runs(EngineReader(self._reading), study_id)

    def search_runs(self, study_id: int) -> list[dict[str, Any]]:
        """Return the search runs that are complete or failed, oldest first.

        Returns:
            trial_number, state, message and metrics (of the last epoch) of each.
        """
        return search_runs(EngineReader(self._reading), study_id)

    def search_seconds(self, study_id: int) -> float:
        """Return the seconds of training of all search runs, however they ended.

        Runs that a dead process left are not counted: how long they took is not known.
        """
        return search_seconds(EngineReader(self._reading), study_id)

    def save_design(self, study_id: int, design: Mapping[str, Any]) -> None:
        """Store the design of a study's next confirmation, as JSON."""
        with self.transaction():
            values = {"round": len(self.designs(study_id)) + 1, "design": design}
            self._insert(ConfirmationRow, {**values, "study_id": study_id})

    def designs(self, study_id: int) -> list[dict[str, Any]]:
        """Return the designs of a study's confirmations, the first one first."""
        return designs(EngineReader(self._reading), study_id)

    def save_verdict(self, study_id: int, verdict: Mapping[str, Any]) -> None:
        """Store a verdict; keys are the columns of `droptune_verdict`."""
        numbers = {key: finite(verdict[key]) for key in FLOATS if key in verdict}
        self._insert(VerdictRow, {**verdict, **numbers, "study_id": study_id})

    def verdict(self, study_id: int) -> dict[str, Any] | None:
        """Return the latest verdict of a study, or None."""
        query = (
            select(VerdictRow.__table__)
            .where(VerdictRow.study_id == study_id)
            .order_by(VerdictRow.id.desc())
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else dict(row._mapping)

    def queries(self) -> Queries:
        """Return the listings over this store's connections; they see what it wrote."""
        return Queries(self.url, EngineReader(self._reading))

    def _check_schema(self, create: bool) -> None:
        with explained(self.url):
            revision = migrate.current(self.engine)
            if revision is None and create:
                revision = migrate.upgrade(self.engine).after
        migrate.require_current(revision, self.url)

    @property
    def _connection(self) -> Connection | None:
        return getattr(self._local, "connection", None)

    def _execute(self, statement: Any, rows: Any = None) -> Any:
        with self.transaction():
            return self._connection.execute(statement, rows)

    def _insert(self, table: Any, values: Mapping[str, Any]) -> int:
        return self._execute(insert(table.__table__), values).inserted_primary_key[0]

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


def _site(study_id: int, position: int, site: Mapping[str, Any]) -> dict[str, Any]:
    today = {"kind": site.get("kind"), "rate": site.get("rate")}
    return {**site, **today, "study_id": study_id, "position": position}
