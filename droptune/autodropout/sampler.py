"""An Optuna sampler that proposes what AutoDropout's controller has learned to propose."""

import threading
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import blake2b
from math import inf, isfinite
from statistics import median
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from droptune.autodropout.policy import Lesson, Policy
from droptune.grid import grid_points
from droptune.kinds import derive

#: The most values of a parameter; of one with more, so many are picked, evenly spaced.
VALUES = 20
#: Results that make one step of the policy.
BATCH = 8
#: Part of the moving average that a new result leaves as it was.
DECAY = 0.95
#: An advantage is within so many deviations.
BOUND = 3.0

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class AutoDropoutSampler(optuna.samplers.BaseSampler):
    """The controller of AutoDropout: a policy over all parameters, trained by REINFORCE.

    A Transformer writes a proposal, one parameter after the other (`Policy`); every `BATCH`
    results, in the order in which they came, it makes one step. The reward is the objective,
    its sign turned where it is to be minimised; a moving average is the baseline, and what is
    above or below it counts in mean deviations. A trial that was pruned or failed counts as
    one deviation below. Results may come late, and many trials may run at once: a trial keeps
    the probability with which it was proposed, and late results are weighed by it.

    The policy is a function of the seed and the finished trials, and a proposal one of the
    seed, the policy and the trial's number. So a new sampler with the seed of an old one goes
    on where that one was; nothing but one number a trial is stored. Parameters that are given
    (put in line with `enqueue_trial`) are taken as given: what follows is chosen in view of
    them, and only the rest is learned from; of trials that are given whole, nothing is.

    Pham, Le, "AutoDropout: Learning Dropout Patterns to Regularize Deep Networks",
    https://arxiv.org/abs/2101.01761: controller, REINFORCE, baseline, importance weights. It
    needs hundreds of trials; the authors trained thousands of small networks.

    Args:
        seed: of the first policy and of all proposals, from 0 to 2**32 - 1.
        space: the parameters of every trial. None: those that all trials so far have in
            common, as Optuna's own samplers do; the policy begins anew where they change.
    """

    def __init__(self, seed: int, space: Mapping[str, BaseDistribution] | None = None) -> None:
        self._seed, self._space = seed, space
        self._controller: _Controller | None = None
        self._lock = threading.Lock()  # `study.optimize(n_jobs=2)` samples in threads
        self._random = optuna.samplers.RandomSampler(seed)

    def reseed_rng(self) -> None:
        """Reseed what is drawn outside of the policy; proposals of two trials differ anyway."""
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that the policy chooses: all that have a choice."""
        known = self._space
        if known is None:
            known = intersection_search_space(study.get_trials(deepcopy=False))
        return {name: choice for name, choice in known.items() if not choice.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Learn from all results that are new, and propose."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        with self._lock:
            if self._controller is None or self._controller.space != search_space:
                self._controller = _Controller(search_space, self._seed)
            controller = self._controller
            sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
            controller.learn(study.get_trials(deepcopy=False, states=_FINISHED), sign)
            given = trial.system_attrs.get("fixed_params", {})
            params, log_probability = controller.propose(trial.number, given)
        if not search_space.keys() <= given.keys():
            study._storage.set_trial_system_attr(trial._trial_id, controller.key, log_probability)
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that the policy does not know at random."""
        self._raise_error_if_multi_objective(study)
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class _Controller:
    """A policy for one space, and the results it has seen."""

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        self.space = dict(space)
        self._seed = seed
        self._values = {name: grid_points(choice, VALUES) for name, choice in space.items()}
        self._policy = Policy([len(v) for v in self._values.values()], derive(seed, "policy"))
        self._baseline = Baseline()
        self._seen: set[int] = set()
        self._waiting: list[FrozenTrial] = []
        # Of this space and no other: a probability that another policy gave says nothing here.
        text = "\0".join(f"{name}\0{distribution_to_json(d)}" for name, d in space.items())
        self.key = f"autodropout:{blake2b(text.encode(), digest_size=6).hexdigest()}"

    def propose(self, number: int, given: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """Return a value for each parameter, and the log-probability of those not given."""
        fixed = {
            place: self._nearest(name, given[name])
            for place, name in enumerate(self.space)
            if name in given
        }
        choices, log_probability = self._policy.propose(derive(self._seed, number), fixed)
        pairs = zip(self._values.items(), choices, strict=True)
        return {name: values[choice] for (name, values), choice in pairs}, log_probability

    def learn(self, finished: Iterable[FrozenTrial], sign: int) -> None:
        """Learn from trials that it has not seen, as many as make whole batches.

        Args:
            finished: all finished trials.
            sign: 1 where the objective is to be maximised, else -1.
        """
        new = [trial for trial in finished if trial.number not in self._seen]
        self._seen.update(trial.number for trial in new)
        mine = [
            t for t in new if self.key in t.system_attrs and self.space.keys() <= t.params.keys()
        ]
        self._waiting += sorted(mine, key=lambda t: (t.datetime_complete or datetime.min, t.number))
        while len(self._waiting) >= BATCH:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            advantages = self._baseline.advantages([_reward(trial, sign) for trial in batch])
            self._policy.learn([*map(self._lesson, batch, advantages)])

    def _lesson(self, trial: FrozenTrial, advantage: float) -> Lesson:
        given = trial.system_attrs.get("fixed_params", {})
        return Lesson(
            [self._nearest(name, trial.params[name]) for name in self.space],
            [name not in given for name in self.space],
            trial.system_attrs[self.key],
            advantage,
        )

    def _nearest(self, name: str, value: Any) -> int:
        """Return which of a parameter's values is nearest to this one."""
        inner = self.space[name].to_internal_repr
        points = [inner(point) for point in self._values[name]]
        return min(range(len(points)), key=lambda i: abs(points[i] - inner(value)))


class Baseline:
    """A moving average of rewards, and the mean of how far all of them were from it.

    That mean does not shrink with the spread of late proposals: a policy that has settled is
    no longer pushed by small differences, and its entropy stays. The baseline begins at the
    median of the first rewards. A reward counts as if it were no further away than `BOUND`
    deviations, so that one freak result does not drown the others.
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation, self._count = 0.0, 0

    def advantages(self, rewards: list[float | None]) -> list[float]:
        """Return how far rewards are above the baseline, in deviations; then move it.

        Args:
            rewards: of a batch; None: there is none, which counts as -1.
        """
        known = [reward for reward in rewards if reward is not None]
        if self._mean is None:
            if not known:
                return [0.0] * len(rewards)
            self._mean = median(known)
            self._deviation = median(abs(reward - self._mean) for reward in known)
            self._count = len(known)
        found = [-1.0 if reward is None else self._advantage(reward) for reward in rewards]
        for reward in known:
            self._move(reward - self._mean)
        return found

    def _advantage(self, reward: float) -> float:
        away = reward - self._mean
        if self._deviation == 0:
            return float((away > 0) - (away < 0))
        return min(max(away / self._deviation, -BOUND), BOUND)

    def _move(self, away: float) -> None:
        limit = BOUND * self._deviation or inf
        near = min(max(away, -limit), limit)
        self._mean += (1 - DECAY) * near
        self._count += 1
        self._deviation += (abs(near) - self._deviation) / self._count


def _reward(trial: FrozenTrial, sign: int) -> float | None:
    """Return what a trial earned; None where it was pruned or failed."""
    if trial.state != TrialState.COMPLETE or not isfinite(trial.value):
        return None
    return sign * trial.value
