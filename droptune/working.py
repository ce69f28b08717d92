"""The sampler's working copy of a study: an Optuna study in memory.

Part of search.py, the only module that imports this one. It answers in a fraction of the time
that a database takes; record.py is the durable record, which is written first.
"""

from collections.abc import Sequence
from copy import copy

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from droptune.samplers import kept

#: Where successive halving keeps, with a trial, the rungs that it has passed.
RUNG = "completed_rung_"


class WorkingCopy:
    """One study in memory, made from its stored trials.

    Args:
        name: of the study: Hyperband deals trials to brackets by name and number.
        directions: of the objectives, `minimize` or `maximize`.
        sampler: that proposes.
        pruner: that compares.
        trials: as they are stored, by number.

    Attributes:
        study: Optuna's.
    """

    def __init__(
        self,
        name: str,
        directions: Sequence[str],
        sampler: BaseSampler,
        pruner: BasePruner,
        trials: Sequence[FrozenTrial],
    ) -> None:
        self._memory = optuna.storages.InMemoryStorage()
        self.study = optuna.create_study(
            storage=self._memory,
            study_name=name,
            directions=list(directions),
            sampler=sampler,
            pruner=pruner,
        )
        self._id = self._memory.get_study_id_from_name(name)
        for trial in trials:
            self._add(trial)

    def take(self, trial: FrozenTrial) -> None:
        """Take over a stored trial that is new, or further than the copy of it.

        Args:
            trial: as it is stored; it is not changed.
        """
        known = self.trials()
        if trial.number >= len(known):
            trial = copy(trial)
            trial.system_attrs = kept(trial.system_attrs)
            return self._add(trial)
        trial_id, here, memory = self._trial_id(trial.number), known[trial.number], self._memory
        for name, value in trial.params.items():
            if name not in here.params:  # it waited without
                one = trial.distributions[name]
                memory.set_trial_param(trial_id, name, one.to_internal_repr(value), one)
        for key, value in trial.user_attrs.items():
            memory.set_trial_user_attr(trial_id, key, value)
        for key, value in kept(trial.system_attrs).items():
            memory.set_trial_system_attr(trial_id, key, value)
        if trial.state.is_finished():
            for epoch, value in trial.intermediate_values.items():
                memory.set_trial_intermediate_value(trial_id, epoch, value)
        if here.state == TrialState.WAITING and trial.state != TrialState.WAITING:
            memory.set_trial_state_values(trial_id, TrialState.RUNNING)
        if trial.state.is_finished():
            memory.set_trial_state_values(trial_id, trial.state, trial.values)

    def _add(self, trial: FrozenTrial) -> None:
        attributes = dict(trial.system_attrs)
        if trial.state == TrialState.RUNNING:  # it starts again, with no rung passed
            trial.intermediate_values = {}
            attributes = {k: v for k, v in attributes.items() if not k.startswith(RUNG)}
        for key, value in attributes.items():
            if key.startswith("qmc:"):
                self._memory.set_study_system_attr(self._id, key, value)
        trial.system_attrs = attributes
        self.study.add_trial(trial)

    def template(self, frozen: FrozenTrial) -> FrozenTrial:
        """Return what is stored of a trial that the sampler has just proposed."""
        # How far the QMC sequence has come Optuna keeps with the study. With the trial it is
        # stored in the same transaction, and never gets ahead of it.
        position = self._memory.get_study_system_attrs(self._id)
        return create_trial(
            state=TrialState.RUNNING,
            params=frozen.params,
            distributions=frozen.distributions,
            system_attrs=kept(frozen.system_attrs) | kept(position),
        )

    def report(self, number: int, epoch: int, value: float) -> FrozenTrial:
        """Note the objective of a running trial after an epoch; return the trial."""
        trial_id = self._trial_id(number)
        self._memory.set_trial_intermediate_value(trial_id, epoch, value)
        return self._memory.get_trial(trial_id)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number: not copies, and not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """Return one trial."""
        return self._memory.get_trial(self._trial_id(number))

    def waiting(self) -> bool:
        """Tell whether a trial is in line."""
        return any(trial.state == TrialState.WAITING for trial in self.trials())

    def _trial_id(self, number: int) -> int:
        return self._memory.get_trial_id_from_study_id_trial_number(self._id, number)
