"""Samplers and pruners by name, set up for dropout; half of what droptune knows of Optuna.

The other half is search.py, which with record.py is all that imports this one; autodropout/ is
a sampler of droptune's own. Here is also what a sampler or pruner must find again after a
restart: the seed that goes on, the few system attributes worth storing, and the state of
CMA-ES, which Optuna keeps as a pickle and which is therefore never stored but computed again
from the stored trials.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from droptune.autodropout import AutoDropoutSampler
from droptune.errors import StudyError, nearest
from droptune.grid import grid_points
from droptune.landscape import Landscape
from droptune.quiet import quiet
from droptune.refining import Refining

# System attributes of a trial that outlive the process. Everything else that samplers write
# is a help between running trials (TPE) or a pickle (CMA-ES), and is neither written to the
# store nor believed when it is found there.
KEPT = (
    "fixed_params",
    "grid_id",
    "search_space",
    "completed_rung_",
    "cma:generation",
    "qmc:",
    "autodropout:",
)

GRID_POINTS = 5  # values that the grid tries of every continuous parameter, both ends included
GRID_LIMIT = 10_000  # plans; a larger grid is a mistake, and would not fit into memory

# A restart with the first seed would draw the same startup points once more. Seeds move on
# by a prime for every trial that is already there.
SEED_STEP = 1_000_003

_STARTUP = 5  # complete trials before the median pruner stops anything
_OPTIMIZER = "cma:optimizer"


class Grid(optuna.samplers.GridSampler):
    """Optuna's grid, without its habit of stopping a study that asks and tells.

    `GridSampler.after_trial` calls `study.stop()`, which raises outside of
    `study.optimize`, and looks for a grid id that an enqueued trial does not have.
    `Search.ask` ends the grid itself.
    """

    def __init__(self, points: Mapping[str, Sequence[Any]], seed: int) -> None:
        super().__init__(points, seed=seed)
        self.size = prod(len(values) for values in points.values())

    def after_trial(self, *_: Any) -> None:
        """Do nothing; see the class."""

    def left(self, trials: Sequence[FrozenTrial]) -> int:
        """Return how many points of the grid no trial has taken yet."""
        taken = {trial.system_attrs.get("grid_id") for trial in trials} - {None}
        return self.size - len(taken)


def _tpe(seed: int, **_: Any) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _gp(seed: int, **_: Any) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)


def _cmaes(seed: int, **_: Any) -> optuna.samplers.BaseSampler:
    if importlib.util.find_spec("cmaes") is None:
        raise StudyError(
            "sampler 'cmaes' needs the package cmaes, which is not installed;"
            " run: pip install cmaes"
        )
    return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _qmc(seed: int, first_seed: int, **_: Any) -> optuna.samplers.BaseSampler:
    # The sequence is a function of the study's first seed; a restart goes on at its next
    # point. Only the point that is drawn before the space is known moves with the seed.
    return optuna.samplers.QMCSampler(
        scramble=True,
        seed=first_seed,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        warn_independent_sampling=False,
    )


def _random(seed: int, **_: Any) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _grid(
    first_seed: int, space: Mapping[str, BaseDistribution], settled: Mapping[str, Any], **_: Any
) -> Grid:
    points = {
        name: [settled[name]] if name in settled else grid_points(distribution, GRID_POINTS)
        for name, distribution in space.items()
    }
    size = prod(len(values) for values in points.values())
    if size > GRID_LIMIT:
        raise StudyError(
            f"the grid of this space has {size} plans, at most {GRID_LIMIT} are allowed;"
            " take sampler 'qmc', or a coarser encoding"
        )
    return Grid(points, seed=first_seed)  # grid ids are positions in the order of this seed


def _autodropout(
    first_seed: int, space: Mapping[str, BaseDistribution], **_: Any
) -> AutoDropoutSampler:
    # It learns again from the stored trials, and draws by seed and number of the trial.
    return AutoDropoutSampler(first_seed, space)


_SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "qmc": _qmc,
    "random": _random,
    "grid": _grid,
    "autodropout": _autodropout,
}
SAMPLERS = tuple(_SAMPLERS)
#: Those that take several objectives: CMA-ES of Optuna does not, nor does AutoDropout's policy.
SEVERAL = ("tpe", "gp", "qmc", "random", "grid")
REFINING = ("tpe", "gp")
#: Those that know nothing but the trials and their generator: each trial gets one of its own
#: seed, so that what is proposed depends on the trials before it and not on who asked for them.
FRESH = ("tpe", "gp", "cmaes", "qmc", "random")
#: The pruner of paired.py, which is no pruner of Optuna.
PAIRED = "paired"
PRUNERS = ("none", PAIRED, "median", "hyperband", "successive-halving")


def check_names(sampler: str, pruner: str, objectives: int = 1) -> None:
    """Raise a StudyError that lists what is allowed if a name is unknown or for one objective."""
    for what, name, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if name not in known:
            raise StudyError(
                f"there is no {what} {name!r}{nearest(str(name), known)};"
                f" choose one of {', '.join(known)}"
            )
    if objectives > 1 and (sampler not in SEVERAL or pruner != "none"):
        raise StudyError(
            f"sampler {sampler!r} with pruner {pruner!r} is for one objective, and there are"
            f" {objectives}; take one of {', '.join(SEVERAL)}, and pruner 'none'"
        )


def check_numbers(directions: Sequence[str], seed: int, epochs: int, rungs: Sequence[int]) -> None:
    """Raise a StudyError for the first argument that is not allowed."""
    wrong = [one for one in directions if one not in ("minimize", "maximize")]
    if wrong or not directions:
        given = repr(wrong[0]) if wrong else "missing"
        raise StudyError(f"the direction is {given}; give 'minimize' or 'maximize'")
    if not isinstance(seed, int) or seed < 0:
        raise StudyError(f"the seed is {seed!r}; give an integer from 0")
    if not isinstance(epochs, int) or epochs < 1:
        raise StudyError(f"the number of epochs is {epochs!r}; give an integer from 1")
    rising = all(a < b for a, b in zip(rungs, rungs[1:], strict=False))
    if not rising or any(not 1 <= rung <= epochs for rung in rungs):
        raise StudyError(f"the rungs are {list(rungs)}; give rising epochs from 1 to {epochs}")


def make_sampler(
    name: str,
    seed: int,
    past: int,
    space: Mapping[str, BaseDistribution],
    settled: Mapping[str, Any],
    finer: Mapping[str, Sequence[str]] = MappingProxyType({}),
    landscape: Landscape | None = None,
) -> optuna.samplers.BaseSampler:
    """Return the sampler called `name`.

    Args:
        name: one of `SAMPLERS`: `tpe` (multivariate, https://arxiv.org/abs/2304.11127),
            `gp` (Gaussian process), `cmaes` (https://arxiv.org/abs/1604.00772; categorical
            parameters are drawn at random), `qmc` (scrambled Sobol), `random`, `grid`,
            `autodropout` (https://arxiv.org/abs/2101.01761).
        seed: of the study, not negative.
        past: number of trials the study has already; moves the seed on, so that a resumed
            study does not draw its startup points again.
        space: the parameters of every trial.
        settled: parameters that the sampler is not to vary, with their values.
        finer: coarse parameter -> those that refine it, neutral at 0. Samplers that learn
            from results in whatever space they are given (`REFINING`) turn to them as far as
            the results bear it out, the others never.
        landscape: where the plans lie, for them.
    """
    neutral = {parameter: 0.0 for names in finer.values() for parameter in names}
    if name not in REFINING:
        settled = {**settled, **neutral}
    moved = (seed + SEED_STEP * past) % 2**32
    sampler = _SAMPLERS[name](seed=moved, first_seed=seed % 2**32, space=space, settled=settled)
    if isinstance(sampler, Grid):
        return sampler
    if finer and landscape and name in REFINING:
        return Refining(sampler, settled, neutral, landscape, seed % 2**32)
    if not settled:
        return sampler
    with quiet():  # it is called experimental
        return optuna.samplers.PartialFixedSampler(dict(settled), sampler)


def renewed(
    old: optuna.samplers.BaseSampler, new: optuna.samplers.BaseSampler
) -> optuna.samplers.BaseSampler:
    """Return a sampler with the generator of `new`, and what `old` has found out of the trials."""
    if isinstance(old, Refining) and isinstance(new, Refining):
        new.remember(old)
    return new


def make_pruner(name: str, rungs: Sequence[int], epochs: int) -> optuna.pruners.BasePruner:
    """Return the pruner called `name`, set up so that its rungs are ours.

    Args:
        name: one of `PRUNERS`. Nothing is pruned before the first rung. For `paired`, which
            `Search` asks itself, one that prunes nothing.
        rungs: increasing epochs at which trials are compared; the ratio of the first two is
            the reduction factor of the halving pruners (3 when there is one rung).
        epochs: of a full training, the largest budget of a trial.

    Raises:
        StudyError: a pruner is asked for and there is no rung.
    """
    if name in ("none", PAIRED):
        return optuna.pruners.NopPruner()
    if not rungs:
        raise StudyError(
            f"pruner {name!r} needs a rung, an epoch before the last at which trials are"
            " compared; train for more epochs, or take pruner 'none'"
        )
    first = rungs[0]
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=first)
    factor = max(2, round(rungs[1] / first)) if len(rungs) > 1 else 3
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=first, max_resource=max(epochs, first), reduction_factor=factor
        )
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)


def kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return those system attributes of a trial that outlive the process."""
    return {key: value for key, value in attributes.items() if key.startswith(KEPT)}


def recall_cmaes(trials: Sequence[FrozenTrial], direction: str) -> None:
    """Give trials read from the store the CMA-ES state that they had led to.

    Optuna resumes CMA-ES from a pickle in the trials; droptune never unpickles what a
    store says. The state is a function of the told trials, one step a generation, so it is
    computed again: a probe trial in a scratch study makes the next step, and its state is
    handed to the last complete trial, until no full generation is left. The state is the
    same where trials ran one after another; where many ran at once, a generation may count
    a trial that had not ended when it was first stepped.

    Args:
        trials: all stored trials; the last complete one gets the state as attributes.
        direction: `minimize` or `maximize`.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    state: dict[str, Any] = {}
    while complete:
        last = complete[-1]
        last.system_attrs = kept(last.system_attrs) | state
        # A sampler remembers the trials it has seen by number, so each probe gets its own.
        scratch = optuna.create_study(direction=direction, sampler=_cmaes(seed=0))
        scratch.add_trials(complete)
        probe = scratch.ask(last.distributions)
        attributes = scratch.get_trials(deepcopy=False)[probe.number].system_attrs
        state = {key: value for key, value in attributes.items() if key.startswith(_OPTIMIZER)}
        if not state:
            return
