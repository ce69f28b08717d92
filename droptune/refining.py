"""Coarse first, then finer where the results say so: a sampler for encoding auto.

Part of samplers.py, the only module that imports this one.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from droptune.candidates import Candidates
from droptune.landscape import Landscape
from droptune.posterior import FEWEST, Learnt, Posterior

#: No step goes to a higher rate at any site: a slope could lift one out of sight of the others.
HIGHEST = 0.8
#: The kernel is learnt anew when there are so many times as many results: it takes a while, and
#: a few more results hardly change it.
GROWTH = 1.25


class Refining(BaseSampler):
    """Has another sampler vary the coarse parameters, and takes steps of its own by turns.

    Once a few trials are complete (`FEWEST`), every second one is a step: of plans drawn anywhere
    among the coarse ones, and around the best, which may also differ in the finer parameters,
    that one is tried which is the best in a draw from the posterior of a Gaussian process
    (Thompson sampling, which needs no result of the trials that run,
    https://arxiv.org/abs/1705.09236). How coarse or fine a step is says the posterior: see
    `Landscape`. The other trials are the inner sampler's, all finer parameters staying neutral,
    at 0.

    The kernel of the process is learnt from a prefix of the complete trials, by number, and
    anew when that has grown by a part (`prefix`): a step between costs little.

    A step is a function of the complete trials, the seed and the trial's number. A study that is
    interrupted and gone on with goes on as it would have, and where many trials are asked for
    before the first result, all of them are coarse.

    Args:
        inner: what proposes.
        settled: parameters that never vary, with their values.
        finer: parameters that are neutral at 0.
        landscape: where the plans lie.
        seed: of the study.
    """

    def __init__(
        self,
        inner: BaseSampler,
        settled: Mapping[str, Any],
        finer: Collection[str],
        landscape: Landscape,
        seed: int,
    ) -> None:
        self._inner, self._settled = inner, settled
        self._landscape, self._seed = landscape, seed
        self._space = {n: d for n, d in landscape.parameters.items() if n not in settled}
        self._fixed = {**settled, **dict.fromkeys(finer, 0.0)}
        self._candidates = Candidates(self._space, finer)
        #: At so many complete trials: the posterior, and the best plan's parameters.
        self._known: tuple[int, Any] = 0, None
        #: From the trials with these numbers: what serves for more.
        self._learnt: tuple[list[int], Learnt | None] = [], None

    def remember(self, other: "Refining") -> None:
        """Take over what another one of the same study has learnt; learning takes a while."""
        self._known, self._learnt = other._known, other._learnt

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the inner sampler."""
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is proposed jointly: in a step everything, else what the inner one does."""
        if self._steps(study, trial):
            return dict(self._space)
        space = self._inner.infer_relative_search_space(study, trial)
        return {name: one for name, one in space.items() if name not in self._fixed}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a step, or the inner sampler's joint proposal."""
        if search_space.keys() != self._space.keys():
            return self._inner.sample_relative(study, trial, search_space)
        complete = _complete(study)
        if self._known[0] != len(complete):
            self._known = len(complete), self._learn(study, complete)
        model, best = self._known[1]
        draw = np.random.default_rng([self._seed, trial.number])
        drawn = [{**one, **self._settled} for one in self._candidates.draw(best, draw)]
        low = self._landscape.rates(drawn).max(axis=1) <= HIGHEST
        plans = [one for one, allowed in zip(drawn, low, strict=True) if allowed] or drawn
        path = model.paths(self._landscape.points(plans), 1, draw)[0]
        chosen = plans[int(np.argmin(path))]
        return {name: chosen[name] for name in self._space}

    def _steps(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial is a step; one that is given whole is none."""
        given = trial.system_attrs.get("fixed_params", {})
        if not trial.number % 2 or self._space.keys() <= given.keys():
            return False
        return len(_complete(study)) >= FEWEST

    def _learn(
        self, study: Study, complete: Sequence[FrozenTrial]
    ) -> tuple[Posterior, dict[str, Any]]:
        """Return the posterior, and the parameters of the best plan by it.

        Its kernel is learnt from the first of the trials by number, see `prefix`: who goes on
        with the study learns the same.
        """
        sign = 1 if study.directions[0] == StudyDirection.MINIMIZE else -1
        params = [trial.params for trial in complete]
        values = [sign * trial.values[0] for trial in complete]
        first = prefix(len(complete))
        numbers = [trial.number for trial in complete[:first]]
        if self._learnt[0] != numbers:
            early = self._landscape.posterior(params[:first], values[:first])
            self._learnt = numbers, early.learnt
        model = self._landscape.posterior(params, values, self._learnt[1])
        return model, params[int(np.argmin(model.mean(self._landscape.points(params))))]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Return a fixed value, or the inner sampler's."""
        if param_name in self._fixed:
            return self._fixed[param_name]
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the inner sampler."""
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the inner sampler."""
        self._inner.reseed_rng()


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def prefix(count: int) -> int:
    """Return from how many of these trials the kernel is learnt: most of them, by steps."""
    size = FEWEST
    while (larger := int(size * GROWTH)) <= count:
        size = larger
    return size
