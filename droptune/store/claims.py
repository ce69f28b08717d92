"""`Claims`: which trials and arms are taken by runs, and which runs are still one's own."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.exc import IntegrityError

from droptune.store.engine import finite
from droptune.store.schema import CurveRow, RunRow
from droptune.store.store import Store

_RUN = RunRow.__table__
_IN_TRAINING = RunRow.state == "running"
_ENDED = ("complete", "pruned", "failed")
_HUNG = "hung"
_NONE: Mapping[int, str] = MappingProxyType({})
# Also what it has cost so far: of a run whose worker dies nobody else can tell.
_PROGRESS = (
    update(_RUN)
    .where(RunRow.id == bindparam("run"))
    .values(epochs=bindparam("trained"), seconds=bindparam("took"))
)


class Taken(Exception):
    """Another worker trains a trial or an arm, or has trained it to its end."""


class Claims:
    """The claims on the trials and arms of one study: its runs in state `running`.

    Args:
        store: an open one.
        study_id: in the store.
    """

    def __init__(self, store: Store, study_id: int) -> None:
        self._store, self._study_id = store, study_id
        self._theirs = RunRow.study_id == study_id

    def trials(self) -> set[int]:
        """Return the numbers of the trials that somebody trains."""
        query = select(RunRow.trial_number).where(
            self._theirs, _IN_TRAINING, RunRow.phase == "search"
        )
        return {row["trial_number"] for row in self._store.rows(query)}

    def arms(self) -> list[dict[str, Any]]:
        """Return block, arm and plan of the confirmation runs that somebody trains."""
        query = select(RunRow.block, RunRow.arm, RunRow.plan).where(
            self._theirs, _IN_TRAINING, RunRow.phase == "confirm"
        )
        return self._store.rows(query)

    def keep(self, runs: Iterable[int], name: str | None) -> None:
        """Store under which name the states of runs are kept; None: they are not."""
        value = None if name is None else {"name": name}
        chosen = update(RunRow).where(RunRow.id.in_(list(runs)))
        self._store.execute(chosen.values(checkpoint=value))

    def fail(self, runs: Iterable[int], message: str) -> None:
        """Store that runs which nobody goes on with have failed."""
        if chosen := list(runs):
            ended = update(RunRow).where(RunRow.id.in_(chosen))
            self._store.execute(ended.values(state="failed", message=message))

    def give_up(self, worker: int, why: str) -> int:
        """Hand back what a worker trains, for it hangs; what has hung before has failed.

        A plan whose training always hangs would else hang one worker after the other.

        Args:
            worker: its id.
            why: what hangs, which is stored with its runs.

        Returns:
            How many runs there were.
        """
        told = [_RUN.c[name] for name in ("id", "phase", "trial_number", "block", "arm")]
        mine = select(*told).where(self._theirs, _IN_TRAINING, RunRow.worker_id == worker)

        def work() -> int:
            runs = self._store.rows(mine.with_for_update())
            for run in runs:
                state, times = ("failed", "hung twice") if self._has_hung(run) else ("stale", _HUNG)
                one = update(RunRow).where(RunRow.id == run["id"])
                self._store.execute(one.values(state=state, message=f"{times}: {why}"))
            return len(runs)

        return self._store.write(work)

    def _has_hung(self, run: Mapping[str, Any]) -> bool:
        """Tell whether an earlier run of the same trial, or arm of a block, hung."""
        same = ("trial_number",) if run["phase"] == "search" else ("block", "arm")
        equal = (_RUN.c[key] == run[key] for key in ("phase", *same))
        hung = RunRow.message.startswith(f"{_HUNG}:"), RunRow.state == "stale"
        return bool(self._store.rows(select(RunRow.id).where(self._theirs, *equal, *hung).limit(1)))

    def last_arms(self, block: int) -> list[dict[str, Any]]:
        """Return the last confirmation run of each arm of a block, as `last_runs` does."""
        newest = (
            select(func.max(RunRow.id))
            .where(self._theirs, RunRow.phase == "confirm", RunRow.block == block)
            .group_by(RunRow.arm)
        )
        return self._store.rows(_with_metrics().where(RunRow.id.in_(newest)))

    def last_runs(self, numbers: Collection[int]) -> list[dict[str, Any]]:
        """Return the last search run of each of these trials.

        Returns:
            id, worker_id, trial_number, arm, plan, state, message, slot, clock, checkpoint
            ({"name": ...} or None), and metrics (of the last epoch, None if there is none).
        """
        if not numbers:
            return []
        newest = (
            select(func.max(RunRow.id))
            .where(self._theirs, RunRow.phase == "search", RunRow.trial_number.in_(numbers))
            .group_by(RunRow.trial_number)
        )
        return self._store.rows(_with_metrics().where(RunRow.id.in_(newest)))

    def curve(self, run: int, epochs: int) -> list[tuple[int, dict[str, Any]]]:
        """Return epoch and metrics of a run's first epochs, as far as they are stored."""
        of = CurveRow.__table__.c
        query = select(of.epoch, of.metrics).where(of.run_id == run, of.epoch <= epochs)
        return [
            (row["epoch"], row["metrics"]) for row in self._store.rows(query.order_by(of.epoch))
        ]

    def start(
        self,
        *,
        phase: str,
        arm: str,
        block: int,
        plan: Mapping[str, Any],
        trial_number: int | None,
        **about: Any,
    ) -> int:
        """Store that a run starts; arguments and answer as of `Store.start_run`.

        The lock of the study is lost with its connection, so it is not relied on: that one run
        of the same thing runs at a time, the database sees to.

        Raises:
            Taken: another worker trains the trial, or the arm of the block, or has trained it.
        """
        thing = {"block": block, "arm": arm} if trial_number is None else {}
        thing |= {"phase": phase, "trial_number": trial_number}

        def work() -> int:
            if (mine := self._claimed(thing)) is not None:
                return mine
            if self._over(trial_number, block, plan):
                raise Taken
            try:
                one = {"block": block, "arm": arm, "plan": plan} | thing
                return self._store.start_run(self._study_id, **one, **about)
            except IntegrityError as error:
                if "unique" not in str(error.orig).lower():
                    raise
                raise Taken from None

        return self._store.write(work)

    def _claimed(self, thing: Mapping[str, Any]) -> int | None:
        """Return this worker's run of a trial or arm that an earlier try has stored."""
        if not self._store.repeated:
            return None
        whose = {**thing, "worker_id": self._store.worker}
        equal = (_RUN.c[key].is_not_distinct_from(value) for key, value in whose.items())
        found = self._store.rows(select(_RUN.c.id).where(self._theirs, _IN_TRAINING, *equal))
        return found[0]["id"] if found else None

    def _over(self, trial_number: int | None, block: int, plan: Mapping[str, Any]) -> bool:
        """Tell whether a trial, or where that is None a plan in a block, has come to its end.

        Of several objectives a plan may have another name later in the same block, so the name
        does not count.
        """
        of = (RunRow.phase == "search", RunRow.trial_number == trial_number)
        if trial_number is None:
            of = (RunRow.phase == "confirm", RunRow.block == block)
        query = select(RunRow.plan).where(self._theirs, *of, RunRow.state.in_(_ENDED))
        return any(trial_number is not None or r["plan"] == plan for r in self._store.rows(query))

    def held(self, runs: Iterable[int], ends: Mapping[int, str] = _NONE) -> set[int]:
        """Return those of one's own runs that nobody has taken; they stay so to the commit.

        Only to be called in a transaction, before what is written of the runs.

        Args:
            runs: by id.
            ends: run -> the state in which it ends with this transaction, of which an earlier
                try may have been stored.
        """
        query = select(_RUN.c.id, _RUN.c.state).where(RunRow.id.in_(list(runs)))
        states = {r["id"]: r["state"] for r in self._store.rows(query.with_for_update())}
        mine = ends if self._store.repeated else {}
        return {run for run, state in states.items() if state in ("running", mine.get(run))}

    def progress(self, rows: Sequence[tuple[int, int, float]]) -> None:
        """Store how many epochs runs have trained, and how many seconds that took.

        Args:
            rows: run id, epochs and seconds of each.
        """
        values = [
            {"run": run, "trained": epochs, "took": finite(took)} for run, epochs, took in rows
        ]
        if values:
            self._store.execute(_PROGRESS, values)


def ended(run: Mapping[str, Any]) -> bool:
    """Tell whether a run has come to its end; else its trial is to be trained again."""
    return run["state"] in _ENDED


def _with_metrics() -> Any:
    last = select(CurveRow.metrics).where(CurveRow.run_id == RunRow.id)
    last = last.order_by(CurveRow.epoch.desc()).limit(1).correlate(RunRow).scalar_subquery()
    columns = (
        "id",
        "trial_number",
        "arm",
        "plan",
        "state",
        "message",
        "slot",
        "clock",
        "worker_id",
    )
    return select(*(_RUN.c[name] for name in columns), _RUN.c.checkpoint, last.label("metrics"))
