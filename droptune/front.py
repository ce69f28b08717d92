"""The Pareto front of several objectives, as Optuna says it; it loads no torch."""

from collections.abc import Sequence

import optuna

from droptune.quiet import quiet


def front(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Return which results no other one beats in an objective without losing in another.

    Args:
        values: n results of the objectives, finite.
        directions: of the objectives, `minimize` or `maximize`.

    Returns:
        Positions in `values`, rising; equal results are all on the front or not.
    """
    with quiet():
        study = optuna.create_study(directions=list(directions))
        study.add_trials([optuna.trial.create_trial(values=list(one)) for one in values])
        return sorted(trial.number for trial in study.best_trials)
