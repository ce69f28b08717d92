"""Ask and tell: which plan to train next, and what came of it.

Optuna proposes. This module, with samplers.py, record.py, working.py and what they import, is
all that knows Optuna, but for importance.py, which looks back; optimize.py is its only caller.

A study lives twice. An in-memory Optuna study is the sampler's working copy (working.py), for it
answers in a fraction of the time; Optuna's tables in the database (record.py) are the durable
record, written first: what the working copy knows of a finished trial is stored. One process
works on a study at a time; a number that is not the expected one shows that there is another.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from droptune.errors import StudyError
from droptune.finalists import Tried, expected, promising
from droptune.paired import Paired
from droptune.patience import Outlook, Patience
from droptune.plan import Plan
from droptune.ranking import Result, finalists, ranked
from droptune.record import Record
from droptune.samplers import (
    PAIRED,
    PRUNERS,
    SAMPLERS,
    SEVERAL,
    Grid,
    check_names,
    check_numbers,
    make_pruner,
    make_sampler,
    quiet,
    recall_cmaes,
)
from droptune.working import RUNG, WorkingCopy

__all__ = ["PAIRED", "PRUNERS", "SAMPLERS", "SEVERAL", "Asked", "Counts", "Search"]

# User attributes of a trial: the name and the exact plan of a fixed one, and why it failed.
NAME, PLAN, MESSAGE = "name", "plan", "message"

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "fail": TrialState.FAIL,
}


@dataclass(frozen=True)
class Asked:
    """A trial to train: its number, its plan and, for a fixed plan, the plan's name."""

    number: int
    plan: Plan
    name: str | None = None


@dataclass(frozen=True)
class Counts:
    """Number of trials by state."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int


class Search:
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
        curves: of `paired`: trial -> the objective by epoch, of the stored complete trials.
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
        curves: Mapping[int, Sequence[float]] | None = None,
        prepare_engine: Callable[[Any], object] | None = None,
        patience: int = 0,
    ) -> None:
        self._directions = (direction,) if isinstance(direction, str) else tuple(direction or ())
        check_names(sampler, pruner, len(self._directions))
        check_numbers(self._directions, seed, epochs, rungs)
        self._name, self._space = name, space
        self._rungs = frozenset(rungs if pruner != "none" else ())
        self._plans: dict[int, Plan] = {}
        self._epochs = epochs
        sites = [site.name for site in space.sites] if pruner == PAIRED else []
        self._paired = Paired(epochs, self._directions[0], sites, self._plan_of) if sites else None
        for number, curve in (curves or {}).items() if self._paired else ():
            self._paired.complete(number, curve)
        self._patience = Patience(patience)
        #: At so many complete trials: number -> what its plan is expected to reach.
        self._hopes: tuple[int, dict[int, float]] = 0, {}
        with quiet():
            probe = FixedTrial(space.encode(Plan.none()))
            space.suggest(probe)
            self._parameters = probe.distributions
            self._pruner = make_pruner(pruner, tuple(rungs), epochs)
            # Refused, if it is to be refused, before anything is stored.
            make_sampler(sampler, seed, 0, self._parameters, space.settled, space.finer)
        self._record = Record(url, name, self._directions, prepare_engine)
        try:
            trials = self._record.trials
            self._check_space(trials)
            with quiet():
                self._sampler = make_sampler(
                    sampler, seed, len(trials), self._parameters, space.settled, space.finer
                )
                if sampler == "cmaes":
                    recall_cmaes(trials, self._directions[0])
                self._copy = WorkingCopy(
                    name, self._directions, self._sampler, self._pruner, trials
                )
        except BaseException:
            self.close()
            raise
        self._orphans = deque(t.number for t in trials if t.state == TrialState.RUNNING)

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
        return self._asked(self._copy.trial(self._add(name, plan, TrialState.RUNNING)))

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
        self._record.create(number, template)
        self._copy.study.add_trial(template)
        return number

    def ask(self) -> Asked | None:
        """Return the next trial to train, or None if nothing is left or patience is over.

        Trials that a dead process left RUNNING come first, under their numbers, so that the
        total budget stays exact; then fixed plans in their order; then the sampler's. The
        trial is stored as RUNNING when this returns.

        Raises:
            StudyError: another process works on the study.
            StoreError: the trial cannot be stored; open a new Search to go on.
        """
        if self._orphans:
            return self._asked(self._copy.trial(self._orphans.popleft()))
        if self._exhausted() or self._impatient():
            return None
        with quiet():
            self._give()
            trial = self._copy.study.ask()
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
            self._record.start(trial.number, missing)
        else:
            self._record.create(trial.number, self._copy.template(frozen))
        return self._asked(frozen)

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
            state: `complete`, `pruned` (its value is the last reported one, as in Optuna)
                or `fail`.
            message: why it failed, one line.

        Raises:
            StudyError: the trial is not running, so it may have been told already.
            StoreError: the result cannot be stored.
        """
        if state not in _STATES:
            known = ", ".join(_STATES)
            raise StudyError(f"a trial cannot end as {state!r}; choose one of {known}")
        frozen, outcome, values = self._running(number), _STATES[state], None
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
        notes = {} if message is None else {MESSAGE: message}
        self._record.finish(number, outcome, values, rungs, notes)
        with quiet():
            told = values if outcome == TrialState.COMPLETE else None
            self._copy.study.tell(number, told, state=outcome)
        if self._paired is not None:
            if told:
                self._paired.add(number, self._epochs, told[0])
            self._paired.end(number)

    @property
    def finished(self) -> int:
        """Number of trials that were told, in any state: what the budget counts."""
        counts = self.counts()
        return counts.complete + counts.pruned + counts.failed

    def counts(self) -> Counts:
        """Return the number of trials by state."""
        states = Counter(trial.state for trial in self._copy.trials())
        order = (*_STATES.values(), TrialState.RUNNING, TrialState.WAITING)
        return Counts(*(states[state] for state in order))

    def best(self, objective: int = 0) -> Tried | None:
        """Return number, plan and value of the best complete trial in an objective, or None."""
        best = self.ranked(1, objective=objective)
        return best[0] if best else None

    def ranked(self, k: int, exclude: Collection[Plan] = (), objective: int = 0) -> list[Tried]:
        """Return up to `k` best complete trials with different plans, see `ranking.ranked`."""
        return ranked(self._results(), self._directions, k, exclude, objective)

    def finalists(self, k: int, exclude: Collection[Plan] = (), objective: int = 0) -> list[Tried]:
        """Return up to `k` complete trials with different plans, the most promising first.

        By what their plans are expected to reach, with the best value among them: see
        droptune/finalists.py. Of trials with the same plan the one with the best value counts.
        With several objectives those that stand for the front, see `ranking.finalists`.

        Args:
            k: how many.
            exclude: plans to pass over, such as those that are confirmed in any case.
            objective: position of the one whose values are returned.
        """
        if len(self._directions) > 1:
            return finalists(self._results(), self._directions, k, exclude, objective)
        return promising(self.ranked(10**9, exclude), self._expected(), k)

    def _expected(self) -> dict[int, float]:
        """Return number -> what its plan is expected to reach, of the complete trials."""
        numbers = [trial.number for trial in self._complete()]
        if self._hopes[0] != len(numbers):
            params, values, _ = zip(*self._told(), strict=True)
            hopes = expected(self._parameters, params, values)
            self._hopes = len(numbers), dict(zip(numbers, hopes, strict=True))
        return self._hopes[1]

    def first(self, plan: Plan, objective: int = 0) -> tuple[int, float] | None:
        """Return number and value of the first complete trial with a plan, or None.

        For plans that were not chosen for their value: the first is no luckier than another.
        """
        found = (one for one in self._results() if one[1] == plan)
        return next(((number, values[objective]) for number, _, values in found), None)

    def _results(self) -> list[Result]:
        """Return number, plan and values of the complete trials, by number."""
        return [(trial.number, self._plan(trial), trial.values) for trial in self._complete()]

    def _complete(self) -> list[FrozenTrial]:
        return [trial for trial in self._copy.trials() if trial.state == TrialState.COMPLETE]

    def outlook(self) -> Outlook | None:
        """Return what the next trials are expected to gain; None: no patience, or too early.

        A function of the complete trials alone, so that a study which patience has ended is
        still ended when it is opened again.
        """
        return self._patience.outlook(self._parameters, self._told())

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
        trials = self._copy.trials()
        given = self._space.given(len(trials))
        if given and not any(trial.state == TrialState.WAITING for trial in trials):
            self._copy.study.enqueue_trial(given)

    def _exhausted(self) -> bool:
        """Tell whether the sampler is a grid with no point left, and no trial is in line."""
        if not isinstance(self._sampler, Grid):
            return False
        return not self._copy.waiting() and not self._sampler.left(self._copy.trials())

    def _impatient(self) -> bool:
        """Tell whether more trials are not worth it, and no trial is in line."""
        ahead = None if self._copy.waiting() else self.outlook()
        return ahead is not None and ahead.over

    def _told(self) -> list[tuple[dict[str, Any], float, bool]]:
        """Return parameters, value to be made small, and whether the sampler chose the plan."""
        sign = 1 if self._directions[0] == "minimize" else -1
        return [(t.params, sign * t.values[0], PLAN not in t.user_attrs) for t in self._complete()]

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
        if frozen.state != TrialState.RUNNING or number in self._orphans:
            state = "not asked for again" if number in self._orphans else frozen.state.name
            raise StudyError(
                f"trial {number} of study {self._name!r} cannot be reported or told, it is"
                f" {state}; ask for it before, and tell it once"
            )
        return frozen

    def _plan_of(self, number: int) -> Plan:
        return self._plan(self._copy.trial(number))

    def _plan(self, trial: FrozenTrial) -> Plan | None:
        """Return the plan of a trial; None if it has no parameters yet."""
        if trial.number not in self._plans:
            if PLAN in trial.user_attrs:
                self._plans[trial.number] = Plan.from_json(trial.user_attrs[PLAN])
            elif trial.params:
                with quiet():
                    self._plans[trial.number] = self._space.suggest(FixedTrial(trial.params))
        return self._plans.get(trial.number)

    def _asked(self, trial: FrozenTrial) -> Asked:
        return Asked(trial.number, self._plan(trial), trial.user_attrs.get(NAME))
