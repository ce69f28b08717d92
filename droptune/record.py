"""The durable record of a study's trials: Optuna's RDBStorage, written with few calls.

Part of search.py, the only module that imports this one. Any tool that reads Optuna reads
the record. Measured on SQLite, Optuna's own way of asking costs a transaction for the trial
and one for each parameter; here an ask is one transaction, and so is a tell.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from droptune import rows
from droptune.errors import DroptuneError, StoreError, StudyError, TransientError
from droptune.retry import again
from droptune.samplers import kept, quiet


class Overtaken(Exception):
    """Another process was first to store a trial of a number, or to start one."""


class Record:
    """One study in Optuna's tables, opened or created.

    Args:
        url: of the database; a missing SQLite file is created.
        name: of the study.
        directions: of the objectives, `minimize` or `maximize`.
        prepare_engine: called with Optuna's SQLAlchemy engine before its connections are
            used, to set them up as the rest of droptune has them.

    Attributes:
        trials: the trials as they were stored at the opening, by number; a copy.

    Raises:
        StudyError: the study has other directions, or its numbers have gaps.
        StoreError: the database cannot be used.
    """

    def __init__(
        self,
        url: str,
        name: str,
        directions: Sequence[str],
        prepare_engine: Callable[[Any], object] | None = None,
    ) -> None:
        self._name = name
        with quiet():
            self._rdb = open_storage(url, prepare_engine)
            try:
                with self._storing("read study"):
                    again(lambda _: self._load(list(directions)))
            except BaseException:
                self.close()
                raise
        self._ids = {trial.number: trial._trial_id for trial in self.trials}
        #: The highest id, and id -> state of the trials that have not ended, as far as known.
        self._last, self._unfinished = -1, {}
        self._note(self.trials)

    def __contains__(self, number: object) -> bool:
        return number in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def create(self, number: int, template: FrozenTrial) -> None:
        """Store a new trial with all it has, in one transaction.

        Args:
            number: that the trial must get.
            template: state, parameters and attributes of the trial.

        Raises:
            Overtaken: another process came in between; nothing is stored.
            StoreError: the trial cannot be stored.
        """

        def work(repeated: bool) -> int:
            known = self._created(number, template) if repeated else None
            if known is not None:
                return known
            trial_id = rows.insert(self._rdb, self._study_id, template, number)
            if trial_id is None:
                raise Overtaken
            return trial_id

        with self._storing("store a trial of study"):
            trial_id = again(work)
        self._ids[number], self._last = trial_id, max(trial_id, self._last)
        self._unfinished[trial_id] = template.state

    def start(self, number: int, missing: Mapping[str, tuple[BaseDistribution, Any]]) -> None:
        """Store that a WAITING trial is running.

        Args:
            number: of the trial.
            missing: parameters that it had no value for while it waited: those of a trial
                that was put in line with Optuna's own tools.

        Raises:
            Overtaken: another process has started it.
        """
        trial_id = self._ids[number]

        def work(repeated: bool) -> None:
            if repeated and self._rdb.get_trial(trial_id).state == TrialState.RUNNING:
                return
            for name, (distribution, value) in missing.items():
                internal = distribution.to_internal_repr(value)
                self._rdb.set_trial_param(trial_id, name, internal, distribution)
            if not self._rdb.set_trial_state_values(trial_id, TrialState.RUNNING):
                raise Overtaken

        with self._storing("start a trial of study"):
            try:
                again(work)
            except optuna.exceptions.UpdateFinishedTrialError:
                raise Overtaken from None
        self._unfinished[trial_id] = TrialState.RUNNING

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store the objective of a running trial after an epoch; a second value replaces it."""
        trial_id = self._ids[number]
        with self._storing("store a rung of study"):
            # One that another worker has ended stays as it is: this worker was thought dead, and
            # drops the trial when it stores the epoch.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                again(lambda _: self._rdb.set_trial_intermediate_value(trial_id, epoch, value))

    def finish(
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None,
        system_attrs: Mapping[str, Any],
        user_attrs: Mapping[str, Any],
    ) -> None:
        """Store the end of a trial; the attributes go first, for then it is closed."""
        trial_id = self._ids[number]

        def work(repeated: bool) -> None:
            if repeated and self._ended_so(trial_id, state, values):
                return
            for key, value in system_attrs.items():
                self._rdb.set_trial_system_attr(trial_id, key, value)
            for key, value in user_attrs.items():
                self._rdb.set_trial_user_attr(trial_id, key, value)
            if not self._rdb.set_trial_state_values(trial_id, state, values):
                raise self._other_process()

        with self._storing("store the result of a trial of study"):
            try:
                again(work)
            except optuna.exceptions.UpdateFinishedTrialError:
                # Another worker found the run that ended so, and was first to tell it.
                if not again(lambda _: self._ended_so(trial_id, state, values)):
                    raise
        self._unfinished.pop(trial_id, None)

    def changed(self) -> list[FrozenTrial]:
        """Return the stored trials, by number, that are new or further than when last seen."""
        of = (self._rdb, self._study_id, self._last, self._unfinished)
        with self._storing("read study"):
            found = again(lambda _: rows.moved(*of))
        self._ids |= {trial.number: trial._trial_id for trial in found}
        self._note(found)
        return found

    def _note(self, trials: Sequence[FrozenTrial]) -> None:
        """Note how far trials are."""
        for trial in trials:
            self._last = max(self._last, trial._trial_id)
            if trial.state.is_finished():
                self._unfinished.pop(trial._trial_id, None)
            else:
                self._unfinished[trial._trial_id] = trial.state

    def read(self) -> list[FrozenTrial]:
        """Return the trials as they are stored now, by number; a copy."""
        with self._storing("read study"):
            trials = again(lambda _: self._all())
        self._ids = {trial.number: trial._trial_id for trial in trials}
        self._note(trials)
        return trials

    def rungs(self, number: int) -> dict[int, float]:
        """Return epoch -> value of what was reported of a trial."""
        with self._storing("read a trial of study"):
            return again(lambda _: self._rdb.get_trial(self._ids[number])).intermediate_values

    def close(self) -> None:
        """Give the connections back."""
        self._rdb.remove_session()
        self._rdb.engine.dispose()

    def _load(self, directions: list[str]) -> None:
        """Open or create the study, and read its trials."""
        optuna.create_study(
            storage=self._rdb, study_name=self._name, directions=directions, load_if_exists=True
        )
        self._study_id = self._rdb.get_study_id_from_name(self._name)
        stored = [d.name.lower() for d in self._rdb.get_study_directions(self._study_id)]
        if stored != directions:
            raise StudyError(
                f"study {self._name!r} is there to {' and '.join(stored)}, not to"
                f" {' and '.join(directions)}; give the stored direction, or choose another name"
            )
        self.trials = self._all()
        if [trial.number for trial in self.trials] != list(range(len(self.trials))):
            raise StudyError(
                f"the trials of study {self._name!r} are not numbered in a row, for several"
                " processes have written to it at once; choose another name"
            )

    def _all(self) -> list[FrozenTrial]:
        trials = self._rdb.get_all_trials(self._study_id)
        for trial in trials:  # what Optuna would unpickle must not come from a store
            trial.system_attrs = kept(trial.system_attrs)
        return trials

    def _created(self, number: int, template: FrozenTrial) -> int | None:
        """Return the id of a trial that an earlier try stored; None if it did not."""
        try:
            trial_id = self._rdb.get_trial_id_from_study_id_trial_number(self._study_id, number)
        except KeyError:
            return None
        stored = self._rdb.get_trial(trial_id)
        alike = ("state", "user_attrs", "datetime_start")  # to the microsecond
        if any(getattr(stored, name) != getattr(template, name) for name in alike):
            raise Overtaken
        return trial_id

    def _ended_so(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        """Say whether an earlier try stored this end of a trial."""
        stored = self._rdb.get_trial(trial_id)
        return (stored.state, stored.values) == (state, None if values is None else [*values])

    @contextlib.contextmanager
    def _storing(self, what: str) -> Iterator[None]:
        """Turn what Optuna's storage raises into one line."""
        try:
            yield
        except DroptuneError:
            raise
        except optuna.exceptions.UpdateFinishedTrialError:
            raise self._other_process() from None
        except (optuna.exceptions.OptunaError, KeyError) as error:
            raise _store_error(f"cannot {what} {self._name!r}", error) from error

    def _other_process(self) -> StudyError:
        return StudyError(
            f"another process works on study {self._name!r}; wait until it has ended,"
            " or choose another name"
        )


def open_storage(
    url: str, prepare_engine: Callable[[Any], object] | None
) -> optuna.storages.RDBStorage:
    """Open Optuna's storage, with its connections prepared.

    Raises:
        StoreError: it cannot be opened.
    """
    # Optuna takes a URL for a template, in which braces are doubled. SQLite waits five
    # seconds for a lock by default, too little when several studies start at once.
    template = url.replace("{", "{{").replace("}", "}}")
    options: dict[str, Any] = {"hide_parameters": True}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 30}
    else:
        options["pool_pre_ping"] = True
    try:
        storage = optuna.storages.RDBStorage(template, engine_kwargs=options)
        storage.remove_session()
        storage.engine.dispose()  # connections opened from now on are prepared
        if prepare_engine is not None:
            prepare_engine(storage.engine)
        # Parameters are then flushed together, which takes an eighth off the time of an ask.
        storage.scoped_session.configure(autoflush=False, expire_on_commit=False)
    except Exception as error:  # of SQLAlchemy, alembic or the driver; all mean the same here
        said = _store_error("cannot open the store", error)
        if _lost(error) and not url.startswith("sqlite"):
            raise TransientError(str(said)) from error
        raise said from error
    if url.startswith("sqlite") and storage.engine.url.database in (None, "", ":memory:"):
        storage.engine.dispose()
        raise StoreError(
            f"{url} is a database in memory that each connection has for itself, so a study finds "
            "nothing again in it; give a file, such as sqlite:///droptune.db"
        )
    return storage


def _lost(error: BaseException | None) -> bool:
    """Tell whether a driver's OperationalError is behind an error: of connections, not of SQL."""
    while error is not None and type(error).__name__ != "OperationalError":
        error = error.__cause__
    return error is not None


def _store_error(what: str, error: BaseException) -> StoreError:
    """Return a StoreError of one line that names the cause at the bottom of `error`."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = str(cause).strip().splitlines()[:1] or [type(cause).__name__]
    return StoreError(f"{what}: {first[0]}; what is stored is safe, put it right and run again")
