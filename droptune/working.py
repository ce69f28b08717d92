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
from droptune.trials import UNFIT

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
        heeds: whether trials that do not fit into memory are shown to the sampler, see `_shown`.

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
        heeds: bool = False,
    ) -> None:
        self._heeds = heeds
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
            memory.set_trial_state_values(trial_id, *self._shown(trial))

    def end(
        self, number: int, state: TrialState, values: list[float] | None, worst: list[float] | None
    ) -> None:
        """Tell the sampler how a trial ended.

        Args:
            number: of a running trial.
            state: how it ended.
            values: of its objectives, if it is complete.
            worst: of the trials before it, if its plan does not fit into memory.
        """
        if worst is not None:
            self._memory.set_trial_user_attr(self._trial_id(number), UNFIT, worst)
            state, values = self._shown(self.trial(number), state)
        self.study.tell(number, values, state=state)

    def ask(self) -> optuna.Trial:
        """Return a new trial of the sampler's."""
        finished = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        unfit = [UNFIT in trial.user_attrs for trial in finished]
        for trial, limit in zip(finished, unfit, strict=True) if any(unfit) else ():
            trial.set_constraint("memory", float(limit))
        return self.study.ask()

    def _shown(
        self, trial: FrozenTrial, state: TrialState | None = None
    ) -> tuple[TrialState, list[float] | None]:
        """Return state and values of a trial, as the sampler is to see them.

        Samplers overlook a failed trial, and propose the like again. One that does not fit into
        memory is therefore complete for them, as bad as the worst, and breaks a constraint
        that the others keep. Measured with a space half of which does not fit, of 60 trials
        TPE then proposes 6 that do not (12 if they fail), the Gaussian process 8 (33).
        """
        worst = trial.user_attrs.get(UNFIT) if self._heeds else None
        if worst is not None:
            return TrialState.COMPLETE, [float(value) for value in worst]
        state = trial.state if state is None else state
        return state, trial.values if trial.state.is_finished() else None

    def _add(self, trial: FrozenTrial) -> None:
        attributes = dict(trial.system_attrs)
        if trial.state == TrialState.RUNNING:  # it starts again, with no rung passed
            trial.intermediate_values = {}
            attributes = {k: v for k, v in attributes.items() if not k.startswith(RUNG)}
        for key, value in attributes.items():
            if key.startswith("qmc:"):
                self._memory.set_study_system_attr(self._id, key, value)
        trial.system_attrs = attributes
        trial.state, trial.values = self._shown(trial)
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

    def _trial_id(self, number: int) -> int:
        return self._memory.get_trial_id_from_study_id_trial_number(self._id, number)
