"""Coarse first, then finer where it matters: which parameters a sampler varies, and when.

Part of samplers.py, the only module that imports this one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

#: Complete trials for each coarse parameter, and at least, before anything is refined.
TRIALS_EACH, TRIALS_LEAST = 8, 24
#: A parameter matters if its importance is at least so many times the mean.
MATTERS = 0.5
#: Part of the trials that count as good for the importance.
GOOD = 0.25


class Refining(BaseSampler):
    """Has another sampler vary the coarse parameters, and later finer ones of those that matter.

    Until enough trials are complete, all finer parameters stay neutral, at 0. From then on
    the finer parameters of those coarse ones vary that are important by PED-ANOVA
    (https://arxiv.org/abs/2304.10255).

    The phase is a function of the complete trials alone. A study that is interrupted and gone
    on with is in the phase it was in, and where many trials are asked for before the first
    result, all of them are coarse.

    Args:
        inner: what proposes.
        settled: parameters that never vary, with their values.
        finer: coarse parameter -> the finer ones that refine it.
        coarse: number of coarse parameters.
    """

    def __init__(
        self,
        inner: BaseSampler,
        settled: Mapping[str, Any],
        finer: Mapping[str, Sequence[str]],
        coarse: int,
    ) -> None:
        self._inner, self._settled, self._finer = inner, dict(settled), finer
        self._enough = max(TRIALS_LEAST, TRIALS_EACH * coarse)
        self._now = self._fixing(self._settled)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose what is fixed in this trial."""
        neutral = dict.fromkeys(name for names in self._finer.values() for name in names)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        fixed = dict.fromkeys(neutral, 0.0)
        if len(complete) >= self._enough:
            for name in self._important(study):
                for finer in self._finer.get(name, ()):
                    del fixed[finer]
        self._now = self._fixing(self._settled | fixed)
        self._now.before_trial(study, trial)

    def _important(self, study: Study) -> list[str]:
        if len(self._finer) == 1:
            return list(self._finer)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD)
        found = evaluator.evaluate(study, params=list(self._finer))
        least = MATTERS * sum(found.values()) / len(found)
        return [name for name, importance in found.items() if importance >= least]

    def _fixing(self, fixed: Mapping[str, Any]) -> PartialFixedSampler:
        return PartialFixedSampler(dict(fixed), self._inner)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the inner sampler proposes jointly."""
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the inner sampler's joint proposal."""
        return self._now.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Return a fixed value, or the inner sampler's."""
        return self._now.sample_independent(study, trial, param_name, param_distribution)

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
