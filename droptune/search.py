"""Ask and tell: which plan to train next, and what came of it.

Optuna proposes. This module, with samplers.py, record.py, working.py and what they import, is
all that knows Optuna, but for importance.py, which looks back; optimize.py is its only caller.

A study lives twice. An in-memory Optuna study is the sampler's working copy (working.py), for it
answers in a fraction of the time; Optuna's tables in the database (record.py) are the durable
record, written first: what the working copy knows of a finished trial is stored. What other
workers have stored `sync` takes over; a number that is not the expected one shows a process
that keeps to no such order, such as one of Optuna's own.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from droptune.errors import StudyError, TransientError
from droptune.landscape import Landscape
from droptune.paired import Paired
from droptune.plan import Plan
from droptune.record import Overtaken, Record
from droptune.samplers import (
    FRESH,
    PAIRED,
    PRUNERS,
    REFINING,
    SAMPLERS,
    SEVERAL,
    Grid,
    check_names,
    check_numbers,
    make_pruner,
    make_sampler,
    quiet,
    recall_cmaes,
    renewed,
)
from droptune.trials import MESSAGE, NAME, PLAN, STATES, UNFIT, Counts, Trials
from droptune.working import RUNG, WorkingCopy

__all__ = ["PAIRED", "PRUNERS", "SAMPLERS", "SEVERAL", "Asked", "Counts", "Search"]

#: Trials whose curves the pruner `paired` learns from.
_LEARNT = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Asked:
    """A trial to train: its number, its plan and, for a fixed plan, the plan's name."""

    number: int
    plan: Plan
    name: str | None = None


class Search(Trials):
    """The trials of one study: opened or created in the store, asked for and told.

    Args:
        url: of the database, `sqlite:///file.db` or a server's; created if it is missing.
        name: of the study.
        space: turns a trial into a plan and back (droptune/space.py); the same parameters in
            every trial.
        direction: `minimize` or `maximize`, what the objective is to do; or one for each of
            several. Pruner and patience, which compare, are for one.
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`.
        seed: of the sampler, an integer that is not negative.
        epochs: of a full training.
        rungs: rising epochs, counted from 1, at which trials are compared; `paired` finds its
            own, and is reported every epoch.
        curves: of `paired`: numbers (None: of all) -> trial -> the objective by epoch, of the
            stored complete and pruned trials among them.
        prepare_engine: called with Optuna's SQLAlchemy engine before its first use, to set
            the connections up as the rest of droptune has them.
        patience: the sampler is asked for no more when so many more trials are expected to
            gain nothing that shows, see `Outlook`; 0: never.

    Raises:
        StudyError: an argument is not allowed, or the stored study is another one.
        StoreError: the database cannot be used.
    """

    def __init__(
        self,
        url: str,
        name: str,
        space: Any,
        *,
        direction: str | Sequence[str],
        sampler: str = "tpe",
        pruner: str = "none",
        seed: int = 0,
        epochs: int,
        rungs: Sequence[int] = (),
        curves: Callable[[Collection[int] | None], Mapping[int, Sequence[float]]] = lambda _: {},
        prepare_engine: Callable[[Any], object] | None = None,
        patience: int = 0,
    ) -> None:
        directions = (direction,) if isinstance(direction, str) else tuple(direction or ())
        check_names(sampler, pruner, len(directions))
        check_numbers(directions, seed, epochs, rungs)
        self._name, self._space, self._epochs = name, space, epochs
        self._rungs = frozenset(rungs if pruner != "none" else ())
        self._fresh, self._recalls = sampler in FRESH, sampler == "cmaes"
        self._heeds = sampler in REFINING
        with quiet():
            probe = FixedTrial(space.encode(Plan.none()))
            space.suggest(probe)
            landscape = Landscape(space, probe.distributions)
            settings = {"space": probe.distributions, "settled": space.settled}
            if space.finer:
                settings |= {"finer": space.finer, "landscape": landscape}
            self._make_sampler = partial(make_sampler, sampler, seed, **settings)
            self._pruner = make_pruner(pruner, tuple(rungs), epochs)
            self._make_sampler(0)  # refused, if it is to be refused, before anything is stored
        super().__init__(self._copied, space.suggest, landscape, directions, patience)
        self._record = Record(url, name, directions, prepare_engine)
        try:
            trials = self._record.trials
            self._check_space(trials)
            with quiet():
                self._sampler = self._make_sampler(len(trials))
                self._copy = self._new_copy(trials)
            sites = [site.name for site in space.sites] if pruner == PAIRED else []
            self._paired = Paired(epochs, directions[0], sites, self._plan_of) if sites else None
            self._curves = curves
            self._learn_curves()
        except BaseException:
            self.close()
            raise
        #: Trials that were asked for here and not yet told.
        self._mine: set[int] = set()

    def _new_copy(self, trials: Sequence[FrozenTrial]) -> WorkingCopy:
        """Return a working copy of the stored trials."""
        if self._recalls:
            recall_cmaes(trials, self._directions[0])
        about = self._name, self._directions, self._sampler, self._pruner
        return WorkingCopy(*about, trials, self._heeds)

    def sync(self) -> None:
        """Take over what other workers have stored since.

        Whoever asks, or begins a trial, does so right after it and keeps the others out from
        before it on: the number of the next trial is then known, and the budget is not passed.
        """
        changed = self._record.changed()
        with quiet():
            for trial in changed:
                self._copy.take(trial)
        self._mine -= {trial.number for trial in changed if trial.state.is_finished()}
        if learnt := [t.number for t in changed if t.state in _LEARNT]:
            self._learn_curves(learnt)
        if self._recalls and any(t.state == TrialState.COMPLETE for t in changed):
            with quiet():  # for the copy's own trials: ended ones take no attributes
                recall_cmaes(self._copied(), self._directions[0])

    def _copied(self) -> list[FrozenTrial]:
        return self._copy.trials()

    def _learn_curves(self, numbers: Collection[int] | None = None) -> None:
        for number, curve in self._curves(numbers).items() if self._paired else ():
            self._paired.learn(number, curve)

    def enqueue(self, name: str, plan: Plan) -> int:
        """Put a fixed plan in line; `ask` gives exactly this plan before the sampler's.

        Optuna sees the nearest parameters that the space has for it. A plan that some trial
        of the study has already is not put in line again.

        Returns:
            The number of the trial that has the plan.
        """
        for trial in self._copy.trials():
            if self._plan(trial) == plan:
                return trial.number
        return self._add(name, plan, TrialState.WAITING)

    def fork(self, name: str, plan: Plan) -> Asked | None:
        """Begin a trial of a plan at once, before all that is in line.

        Returns:
            The trial, stored as RUNNING; None if some trial has the plan already.
        """
        if any(self._plan(trial) == plan for trial in self._copy.trials()):
            return None
        number = self._add(name, plan, TrialState.RUNNING)
        self._mine.add(number)
        return self._asked(self._copy.trial(number))

    def _add(self, name: str, plan: Plan, state: TrialState) -> int:
        """Store a trial with a fixed plan; return its number."""
        params = self._space.encode(plan)
        template = create_trial(
            state=state,
            params=params,
            distributions=self._parameters,
            user_attrs={NAME: name, PLAN: plan.to_json()},
            system_attrs={"fixed_params": params},
        )
        number = len(self._record)
        self._create(number, template)
        self._copy.study.add_trial(template)
        return number

    def _create(self, number: int, template: FrozenTrial) -> None:
        """Store a new trial."""
        with self._first():
            self._record.create(number, template)

    @contextmanager
    def _first(self) -> Iterator[None]:
        """Begin again with what is stored, where another process was first."""
        try:
            yield
        except Overtaken:
            trials = self._record.read()
            with quiet():
                self._copy = self._new_copy(trials)
            self._plans.clear()
            self._mine -= {trial.number for trial in trials if trial.state.is_finished()}
            self._learn_curves()
            raise TransientError(
                f"another process came in on study {self._name!r}; run this again"
            ) from None

    def orphans(self, live: Collection[int] = ()) -> list[int]:
        """Return the running trials that are neither of this search nor live, by number."""
        taken = self._mine.union(live)
        running = (trial.number for trial in self.open(TrialState.RUNNING))
        return [number for number in running if number not in taken]

    def adopt(self, number: int) -> Asked:
        """Return an orphan, to be told from here."""
        self._mine.add(number)
        return self._asked(self._copy.trial(number))

    def holds(self, number: int) -> bool:
        """Tell whether a trial is to be told from here, and no other worker has told it."""
        return number in self._mine

    def release(self, number: int) -> None:
        """Give a trial up: another worker has it now."""
        self._mine.discard(number)

    def recall(self, number: int) -> None:
        """Take over what a trial has reported, to tell it without training it."""
        for epoch, value in self._record.rungs(number).items():
            self._copy.report(number, epoch, value)

    def ask(self, live: Collection[int] = ()) -> Asked | None:
        """Return the next trial to train, or None if nothing is left or patience is over.

        Trials that a dead process left RUNNING come first, under their numbers, so that the
        total budget stays exact; then fixed plans in their order; then the sampler's. The
        trial is stored as RUNNING when this returns.

        Args:
            live: numbers of the trials that other workers train.

        Raises:
            TransientError: another process came in between; ask again.
            StoreError: the trial cannot be stored; open a new Search to go on.
        """
        if left := self.orphans(live):
            return self.adopt(left[0])
        if self.over:
            return None
        with quiet():
            if self._fresh:
                new = self._make_sampler(len(self._record))
                self._copy.study.sampler = renewed(self._copy.study.sampler, new)
            self._give()
            trial = self._copy.ask()
            given = dict(trial.params)
            plan = self._space.suggest(trial)
        frozen = self._copy.trial(trial.number)
        if PLAN not in frozen.user_attrs:
            self._plans[trial.number] = plan
        if trial.number in self._record:
            missing = {
                name: (distribution, frozen.params[name])
                for name, distribution in frozen.distributions.items()
                if name not in given
            }
            with self._first():
                self._record.start(trial.number, missing)
        else:
            self._create(trial.number, self._copy.template(frozen))
        self._mine.add(trial.number)
        return self._asked(frozen)

    @property
    def over(self) -> bool:
        """Whether no new trial is to be had: the grid has no further plan, or patience is over."""
        return self._exhausted() or self._impatient()

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the objective at a rung; at other epochs, or without a pruner, do nothing.

        Of `paired`, the value that a trial stops with is recorded.

        Args:
            number: of a running trial.
            epoch: that has just ended, counted from 1.
            value: of the objective after it; NaN is pruned by every pruner.

        Returns:
            True if the trial should stop; then `tell` it as pruned.
        """
        if epoch not in self._rungs:
            return False
        frozen = self._running(number)
        if self._paired is not None:
            self._paired.add(number, epoch, float(value))
            if not self._paired.stops(number):
                return False
        self._record.report(number, epoch, float(value))
        frozen = self._copy.report(number, epoch, float(value))
        if self._paired is not None:
            return True
        with quiet():
            return bool(self._pruner.prune(self._copy.study, frozen))

    def tell(
        self,
        number: int,
        value: float | Sequence[float] | None = None,
        state: str = "complete",
        message: str | None = None,
    ) -> None:
        """End a running trial, once; it is stored when this returns.

        Args:
            number: of the trial.
            value: of the objective, or of each, for `complete`. One that is not finite ends the
                trial as failed, with a message: samplers cannot use it, and it must not win.
            state: `complete`, `pruned` (its value is the last reported one, as in Optuna),
                `fail`, or `infeasible`: failed, for the plan does not fit into memory, so that
                the sampler is to keep away from the like.
            message: why it failed, one line.

        Raises:
            StudyError: the trial is not running, so it may have been told already.
            StoreError: the result cannot be stored.
        """
        if state not in STATES:
            known = ", ".join(STATES)
            raise StudyError(f"a trial cannot end as {state!r}; choose one of {known}")
        frozen, outcome, values = self._running(number), STATES[state], None
        if outcome == TrialState.COMPLETE:
            if value is None:
                raise StudyError(f"trial {number} was told as complete without a value; give one")
            values = self._values(number, value)
            if not all(map(math.isfinite, values)):
                said = ", ".join(map(str, values))
                values, outcome = None, TrialState.FAIL
                message = message or f"the objective was {said}"
        elif outcome == TrialState.PRUNED and frozen.last_step is not None:
            last = frozen.intermediate_values[frozen.last_step]
            values = None if math.isnan(last) else [last]
        # The rungs passed are what successive halving compares with after a restart.
        rungs = {k: v for k, v in frozen.system_attrs.items() if k.startswith(RUNG)}
        notes: dict[str, Any] = {} if message is None else {MESSAGE: message}
        if state == UNFIT:
            notes[UNFIT] = self._worst()
        self._record.finish(number, outcome, values, rungs, notes)
        with quiet():
            told = values if outcome == TrialState.COMPLETE else None
            self._copy.end(number, outcome, told, notes.get(UNFIT))
        self._mine.discard(number)
        if self._paired is not None:
            if outcome in _LEARNT:
                self._paired.end(number, told[0] if told else None)
            else:
                self._paired.forget(number)

    def close(self) -> None:
        """Give the connections back; the Search cannot be used any more."""
        self._record.close()

    def _check_space(self, trials: Sequence[FrozenTrial]) -> None:
        """Raise a StudyError if a stored trial is not of this space."""
        for trial in trials:
            bare = not trial.params and trial.state in (TrialState.WAITING, TrialState.FAIL)
            if not bare and trial.distributions != self._parameters:
                raise StudyError(
                    f"trial {trial.number} of study {self._name!r} has parameters"
                    f" ({', '.join(trial.params) or 'none'}) or ranges that differ from this"
                    f" space's ({', '.join(self._parameters)}); restore the space, or choose"
                    " another name"
                )

    def _give(self) -> None:
        """Give the next trial the parameters that the space does not leave to the sampler."""
        given = self._space.given(len(self._record))
        if given and not self.open(TrialState.WAITING):
            self._copy.study.enqueue_trial(given)

    def _exhausted(self) -> bool:
        """Tell whether the sampler is a grid with no point left, and no trial is in line."""
        if not isinstance(self._sampler, Grid):
            return False
        return not self.open(TrialState.WAITING) and not self._sampler.left(self._copy.trials())

    def _impatient(self) -> bool:
        """Tell whether more trials are not worth it, and no trial is in line."""
        ahead = None if self.open(TrialState.WAITING) else self.outlook()
        return ahead is not None and ahead.over

    def _values(self, number: int, value: float | Sequence[float]) -> list[float]:
        """Return the objectives that a trial is told with; raise a StudyError if some miss."""
        values = list(map(float, value if isinstance(value, Sequence) else [value]))
        if len(values) != len(self._directions):
            raise StudyError(
                f"trial {number} was told with {len(values)} values; give"
                f" {len(self._directions)}, one for each objective"
            )
        return values

    def _running(self, number: int) -> FrozenTrial:
        """Return a trial that was asked for and not yet told; else raise a StudyError."""
        if number not in self._record:
            raise StudyError(f"study {self._name!r} has no trial {number}; ask for one first")
        frozen = self._copy.trial(number)
        if frozen.state != TrialState.RUNNING or number not in self._mine:
            running = frozen.state == TrialState.RUNNING
            state = "not asked for again" if running else frozen.state.name
            raise StudyError(
                f"trial {number} of study {self._name!r} cannot be reported or told, it is"
                f" {state}; ask for it before, and tell it once"
            )
        return frozen

    def _asked(self, trial: FrozenTrial) -> Asked:
        return Asked(trial.number, self._plan(trial), trial.user_attrs.get(NAME))
