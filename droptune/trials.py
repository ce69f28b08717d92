"""What is known of a study's trials: how many there are, which are the best, what is to come.

Part of search.py, which adds asking and telling.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FixedTrial, FrozenTrial, TrialState

from droptune.finalists import Tried, expected, promising
from droptune.landscape import Landscape
from droptune.patience import Outlook, Patience
from droptune.plan import Plan
from droptune.quiet import quiet
from droptune.ranking import Result, finalists, ranked

# User attributes of a trial: the name and the exact plan of a fixed one, and why it failed.
NAME, PLAN, MESSAGE = "name", "plan", "message"
#: Of a trial whose plan does not fit into memory: the objectives that it counts with for a
#: sampler, the worst of the trials before it; None: there were none.
UNFIT = "infeasible"

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "fail": TrialState.FAIL,
    UNFIT: TrialState.FAIL,
}


@dataclass(frozen=True)
class Counts:
    """Number of trials by state."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int


class _Known:
    """The trials by how far they are. Those that have ended, which change no more, are read once.

    Args:
        trials: returns them, by number.

    Attributes:
        open: that have not ended, by number.
        complete: by number.
        ended: state -> how many ended in it.
    """

    def __init__(self, trials: Callable[[], Sequence[FrozenTrial]]) -> None:
        self._trials, self._seen = trials, 0
        self.open: list[FrozenTrial] = []
        self.complete: list[FrozenTrial] = []
        self.ended: Counter[TrialState] = Counter()

    def look(self) -> "_Known":
        """Take in what has changed; return this."""
        trials = self._trials()
        now = [trials[one.number] for one in self.open] + list(trials[self._seen :])
        self.open, self._seen = [], len(trials)
        for trial in now:
            if not trial.state.is_finished():
                self.open.append(trial)
                continue
            self.ended[state_of(trial)] += 1
            if state_of(trial) == TrialState.COMPLETE:
                insort(self.complete, trial, key=lambda one: one.number)
        return self


class Trials:
    """The trials of one study.

    Args:
        trials: returns them, by number.
        suggest: a trial with parameters -> its plan.
        landscape: where the plans lie, and what their parameters are.
        directions: of the objectives.
        patience: see `Outlook`.
    """

    def __init__(
        self,
        trials: Callable[[], Sequence[FrozenTrial]],
        suggest: Callable[[Any], Plan],
        landscape: Landscape,
        directions: Sequence[str],
        patience: int,
    ) -> None:
        self._trials, self._suggest = trials, suggest
        self._known = _Known(trials)
        self._landscape, self._directions = landscape, directions
        self._parameters = landscape.parameters
        self._patience = Patience(patience)
        self._plans: dict[int, Plan] = {}
        #: At so many complete trials: number -> what its plan is expected to reach.
        self._hopes: tuple[int, dict[int, float]] = 0, {}

    @property
    def finished(self) -> int:
        """Number of trials that were told, in any state: what the budget counts."""
        counts = self.counts()
        return counts.complete + counts.pruned + counts.failed

    def counts(self) -> Counts:
        """Return the number of trials by state."""
        known = self._known.look()
        states = known.ended + Counter(trial.state for trial in known.open)
        order = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
        return Counts(*(states[TrialState[state]] for state in order))

    def open(self, state: TrialState) -> list[FrozenTrial]:
        """Return the trials that are running, or that wait, by number."""
        return [trial for trial in self._known.look().open if trial.state == state]

    def best(self, objective: int = 0) -> Tried | None:
        """Return number, plan and value of the best complete trial in an objective, or None."""
        sign = 1 if self._directions[objective] == "minimize" else -1
        complete = self._complete()
        if not complete:
            return None
        best = min(complete, key=lambda one: sign * one.values[objective])
        return best.number, self._plan(best), best.values[objective]

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
            hopes = expected(self._landscape, params, values)
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
        return self._known.look().complete

    def _worst(self) -> list[float] | None:
        """Return the worst value so far of each objective; None: no trial is complete."""
        columns = zip(*(trial.values for trial in self._complete()), strict=True)
        worst = {"minimize": max, "maximize": min}
        pairs = zip(self._directions, columns, strict=False)
        return [worst[direction](values) for direction, values in pairs] or None

    def outlook(self) -> Outlook | None:
        """Return what the next trials are expected to gain; None: no patience, or too early.

        A function of the complete trials alone, so that a study which patience has ended is
        still ended when it is opened again.
        """
        return self._patience.outlook(self._parameters, len(self._complete()), self._told)

    def _told(self) -> list[tuple[dict[str, Any], float, bool]]:
        """Return parameters, value to be made small, and whether the sampler chose the plan."""
        sign = 1 if self._directions[0] == "minimize" else -1
        return [(t.params, sign * t.values[0], PLAN not in t.user_attrs) for t in self._complete()]

    def _plan_of(self, number: int) -> Plan:
        return self._plan(self._trials()[number])

    def _plan(self, trial: FrozenTrial) -> Plan | None:
        """Return the plan of a trial; None if it has no parameters yet."""
        if trial.number not in self._plans:
            if PLAN in trial.user_attrs:
                self._plans[trial.number] = Plan.from_json(trial.user_attrs[PLAN])
            elif trial.params:
                with quiet():
                    self._plans[trial.number] = self._suggest(FixedTrial(trial.params))
        return self._plans.get(trial.number)


def state_of(trial: FrozenTrial) -> TrialState:
    """Return how a trial ended; for a sampler one that does not fit may be complete."""
    return TrialState.FAIL if UNFIT in trial.user_attrs else trial.state
