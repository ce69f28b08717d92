"""Encoding auto against TPE over a rate for each site, at equal numbers of trials.

    python benchmarks/encoding.py --cache FOLDER          # all tasks, about half an hour
    python benchmarks/encoding.py --cache FOLDER --save   # also writes benchmarks/results/

WIP
"""

from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FixedTrial

from droptune import Plan, Study
from droptune.samplers import make_sampler, quiet
from droptune.space import AS_GIVEN, CONTROL

BUDGETS, SEEDS = (20, 50, 100), 10
#: Trials that are asked for before the first of them is told, as where they train fused.
BATCH = 5
ARMS = ("site, plain TPE", "shape", "auto")


class Hunt:
    """One search for a plan: an arm, a seed."""

    def __init__(self, one: Study, arm: str, seed: int) -> None:
        self.space, self._plans = one.space, []
        fixed = one.space.fixed_plans(one.as_given())
        if arm == ARMS[0]:
            sampler = optuna.samplers.TPESampler(seed=seed)
            fixed = {name: fixed[name] for name in (CONTROL, AS_GIVEN) if name in fixed}
        else:
            probe = FixedTrial(self.space.encode(Plan.none()))
            self.space.suggest(probe)
            sampler = make_sampler(
                "tpe", seed, 0, probe.distributions, self.space.settled, self.space.finer
            )
        self._fixed = list(fixed.values())
        with quiet():
            self.optuna = optuna.create_study(sampler=sampler)
        for plan in self._fixed:
            params = self.space.encode(plan)
            if arm == ARMS[0]:
                del params["dropout"]
            self.optuna.enqueue_trial(params)
        self._gate = arm == ARMS[0]
        self.seen: list[tuple[float, Plan]] = []

    def ask(self) -> Sequence[Plan]:
        """Return the next plans."""
        with quiet():
            self._asked = [self.optuna.ask() for _ in range(BATCH)]
            plans = []
            for trial in self._asked:
                plan = self.space.suggest(_On(trial) if self._gate else trial)
                number = trial.number
                plans.append(self._fixed[number] if number < len(self._fixed) else plan)
        return plans

    def tell(self, plans: Sequence[Plan], values: Sequence[float]) -> None:
        """Tell what came of them."""
        for trial, plan, value in zip(self._asked, plans, values, strict=True):
            self.seen.append((float(value), plan))
            with quiet():
                self.optuna.tell(trial, float(value))

    def best(self, trials: int) -> Plan:
        """Return the plan with the best value among the first trials."""
        return min(self.seen[:trials], key=lambda pair: pair[0])[1]


class _On:
    """A trial whose gate is no parameter: plain TPE has rates alone."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.suggest_float = trial.suggest_float

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return choices[0]


def hunt(
    one: Study, arm: str, seed: int, score: Callable[[Sequence[Plan]], Sequence[float]]
) -> list[Plan]:
    """Search to the largest budget; return the plan chosen at each budget."""
    search = Hunt(one, arm, seed)
    while len(search.seen) < max(BUDGETS):
        plans = search.ask()
        search.tell(plans, score(plans))
    return [search.best(budget) for budget in BUDGETS]
