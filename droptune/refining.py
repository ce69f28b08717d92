"""Coarse first, then finer where it matters: which parameters a sampler varies, and when.

Part of samplers.py, the only module that imports this one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from droptune.posterior import FEWEST, Posterior, coordinates, kept

#: Complete trials for each coarse parameter, and at least, before finer ones vary.
TRIALS_EACH, TRIALS_LEAST = 8, 24
#: A parameter matters if its importance is at least so many times the mean.
MATTERS = 0.5
#: Part of the trials that count as good for the importance.
GOOD = 0.25
#: Plans that a step is drawn from; how far they are from the best, as a part of the parameters'
#: ranges: while the coarse parameters alone vary, and later.
CANDIDATES, FAR, NEAR = 200, 0.3, 0.1


class Refining(BaseSampler):
    """Has another sampler vary the coarse parameters, and later also finer ones that matter.

    Once a few trials are complete (`FEWEST`), every second one is a step from the best plan so
    far. Of plans near it that one is tried which is the best in a draw from the posterior of a
    Gaussian process (Thompson sampling, which needs no result of the trials that run,
    https://arxiv.org/abs/1705.09236). The steps are in the coarse parameters, all finer ones
    staying neutral, at 0, until enough trials are complete; from then on also in the finer
    ones of those coarse ones that are important by PED-ANOVA
    (https://arxiv.org/abs/2304.10255). TPE is not used for it: it has no model of the noise,
    and would find the whole range of the finer parameters unexplored and go there first.

    The phase is a function of the complete trials, and a step one of them, the seed and the
    trial's number. A study that is interrupted and gone on with is in the phase it was
    in, and where many trials are asked for before the first result, all of them are coarse.

    Args:
        inner: what proposes.
        settled: parameters that never vary, with their values.
        finer: coarse parameter -> the finer ones that refine it.
        space: the parameters of every trial.
        seed: of the study.
    """

    def __init__(
        self,
        inner: BaseSampler,
        settled: Mapping[str, Any],
        finer: Mapping[str, Sequence[str]],
        space: Mapping[str, BaseDistribution],
        seed: int,
    ) -> None:
        self._inner, self._finer, self._space, self._seed = inner, finer, space, seed
        self._settled = settled
        neutral = {name: 0.0 for names in finer.values() for name in names}
        self._fixed = {**settled, **neutral}
        self._coarse = [name for name in space if name not in self._fixed]
        self._enough = max(TRIALS_LEAST, TRIALS_EACH * len(self._coarse))
        self._known: tuple[int, Any] = 0, None  # at so many complete trials
        self._now: Mapping[str, Any] = self._fixed  # what is fixed in the trial at hand

    def remember(self, other: "Refining") -> None:
        """Take over what another one of the same study has learnt; learning takes a while."""
        self._known = other._known

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose what is fixed in this trial: all but the coarse parameters, or all."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        steps = len(complete) >= FEWEST and trial.number % 2
        self._now = self._near(study, complete, trial.number) if steps else self._fixed
        self._inner.before_trial(study, trial)

    def _near(self, study: Study, complete: Sequence[FrozenTrial], number: int) -> dict[str, Any]:
        """Return the parameters of a plan near the best."""
        if self._known[0] != len(complete):
            self._known = len(complete), self._learn(study, complete)
        model, best, names = self._known[1]
        far = NEAR if len(complete) >= self._enough else FAR
        draw = np.random.default_rng([self._seed, number])
        near = [self._step(best, names, far * draw.random(), draw) for _ in range(CANDIDATES)]
        points = np.hstack([*coordinates(self._part(names), near).values()])
        return near[int(np.argmin(model.paths(points, 1, draw)[0]))]

    def _learn(
        self, study: Study, complete: Sequence[FrozenTrial]
    ) -> tuple[Posterior, dict[str, Any], list[str]]:
        """Return the posterior, the best plan by it, and the names of what is to vary."""
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        values = [sign * trial.values[0] for trial in complete]
        known = kept(values)
        params, values = [complete[i].params for i in known], [values[i] for i in known]
        names = [n for n in self._coarse if not hasattr(self._space[n], "choices")]
        unmoved = self._fixed
        if len(complete) >= self._enough:
            names += [finer for name in self._important(study) for finer in self._finer[name]]
            unmoved = self._settled
        points = np.hstack([*coordinates(self._part(names), params).values()])
        model = Posterior(points, values)
        # The best may be no dropout, with its gate off.
        best = {**params[int(np.argmin(model.mean(points)))], **unmoved}
        return model, best, names

    def _part(self, names: Sequence[str]) -> dict[str, BaseDistribution]:
        return {name: self._space[name] for name in names}

    def _step(
        self, best: Mapping[str, Any], names: Sequence[str], size: float, draw: np.random.Generator
    ) -> dict[str, Any]:
        """Return parameters a step away from the best plan's; its size is a part of the ranges."""
        moved = dict(best)
        for name in names:
            one, scale, back = self._space[name], np.asarray, np.asarray
            if one.log:
                scale, back = np.log, np.exp
            low, high = scale(one.low), scale(one.high)
            at = scale(best[name]) + size * (high - low) * draw.standard_normal()
            at = float(np.clip(back(np.clip(at, low, high)), one.low, one.high))
            if one.step:
                at = round(one.low + round((at - one.low) / one.step) * one.step, 4)
            moved[name] = at
        return moved

    def _important(self, study: Study) -> list[str]:
        if len(self._finer) == 1:
            return list(self._finer)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD)
        found = evaluator.evaluate(study, params=list(self._finer))
        least = MATTERS * sum(found.values()) / len(found)
        return [name for name in self._finer if found[name] >= least]

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the inner sampler proposes jointly."""
        space = self._inner.infer_relative_search_space(study, trial)
        return {name: one for name, one in space.items() if name not in self._now}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the inner sampler's joint proposal."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Return a fixed value, or the inner sampler's."""
        if param_name in self._now:
            return self._now[param_name]
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
