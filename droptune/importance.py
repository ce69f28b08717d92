"""Which parameters and sites tell the best trials from the rest: PED-ANOVA.

Knows Optuna; the command line calls it for `show --importance` and the report.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, json_to_distribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from droptune.quiet import quiet

if TYPE_CHECKING:
    from droptune.store.drawn import Drawn

FEWEST = 20
"""Complete trials that are needed: PED-ANOVA compares the best tenth, two trials, to the rest."""
_ELSEWHERE, _TRAINING, _LOSS = "all sites", "training", "loss"
_GATE = "dropout"
# As in droptune/recipe.py, which loads torch; a test holds the two together.
_TUNED = ("lr", "weight_decay", "label_smoothing")


@dataclass(frozen=True)
class Importance:
    """Which parameters tell the best trials from the rest.

    Attributes:
        parameters: name -> share, from 0 to 1; they add up to 1. The most important first.
        places: the same summed by what the parameters act on: a site, a role (where the sites
            of a role share a rate), "all sites", "training" or "loss".
        trials: complete trials behind the figures.
        remark: why there are no figures; None where there are.
    """

    parameters: Mapping[str, float]
    places: Mapping[str, float]
    trials: int
    remark: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "parameters": dict(self.parameters),
            "places": dict(self.places),
            "trials": self.trials,
            "remark": self.remark,
        }


def importance_of(queries: "Drawn", name: str) -> Importance:
    """Return the importance of a stored study's parameters.

    Raises:
        StudyError: there is no such study.
    """
    study = queries.study(name)
    direction = study["direction"] or "minimize"
    return importance(queries.parameters(name), direction, places_of(study["sites"]))


def importance(
    trials: Sequence[Mapping[str, Any]],
    direction: str,
    places: Iterable[str],
) -> Importance:
    """Return the importance of a study's parameters.

    PED-ANOVA (Watanabe, Bansal & Hutter 2023, https://arxiv.org/abs/2304.10255): how far the
    distribution of a parameter in the best tenth of the trials is from that in all of them, by
    Pearson's divergence. It looks at each parameter alone: what only matters together with
    another is not seen. The shares say what the search found important among the trials that
    it made, not how much the objective gains.

    Args:
        trials: complete ones, as `Drawn.parameters` gives them.
        direction: `minimize` or `maximize`.
        places: names of sites, roles and other groups that parameters may end in.
    """
    values = {trial["value"] for trial in trials}
    if len(trials) < FEWEST:
        return _nothing(trials, f"{len(trials)} complete trials, {FEWEST} are needed")
    if len(values) == 1:
        return _nothing(trials, f"all {len(trials)} trials have the same value")
    with quiet():
        study = optuna.create_study(direction=direction)
        study.add_trials([_frozen(trial) for trial in trials])
        known = dict.fromkeys(name for trial in trials for name in trial["params"])
        # Where training is not tuned, the gate is off in the trial of no dropout alone.
        gated = any(name in _TUNED for name in known)
        names = [name for name in known if gated or name != _GATE]
        shares = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), params=names, normalize=False
        )
    total = sum(shares.values())
    if not total > 0:
        return _nothing(trials, "no parameter differs between the best trials and the rest")
    parameters = {name: share / total for name, share in shares.items()}
    return Importance(parameters, _by_place(parameters, set(places)), len(trials))


def _nothing(trials: Sequence[object], why: str) -> Importance:
    return Importance({}, {}, len(trials), f"no importance: {why}")


def _frozen(trial: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    distributions = {name: json_to_distribution(d) for name, (_, d) in trial["params"].items()}
    params = {name: _value(distributions[name], v) for name, (v, _) in trial["params"].items()}
    return create_trial(value=trial["value"], params=params, distributions=distributions)


def _value(distribution: optuna.distributions.BaseDistribution, stored: float) -> Any:
    """Return a stored value as it was suggested."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(stored)]
    return distribution.to_external_repr(stored)


def _by_place(parameters: Mapping[str, float], places: set[str]) -> dict[str, float]:
    """Return the shares summed by place, the highest first."""
    sums: dict[str, float] = {}
    for name, share in parameters.items():
        place = place_of(name, places)
        sums[place] = sums.get(place, 0.0) + share
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def place_of(parameter: str, places: Iterable[str]) -> str:
    """Return what a parameter acts on: training, the loss, or the longest name that it ends in.

    Example:
        >>> place_of("rate.layers.0", ["0", "layers.0"])
        'layers.0'
        >>> place_of("slope", ["layers.0"])
        'all sites'
    """
    if parameter in _TUNED:
        return _TRAINING
    if parameter == "term" or parameter.startswith("term."):
        return _LOSS
    ends = [place for place in places if parameter.endswith(f".{place}")]
    return max(ends, key=len, default=_ELSEWHERE)


def places_of(sites: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names that a parameter may end in: sites, roles, and places inside layers.

    Args:
        sites: of a study, as `Queries.study` gives them.
    """
    names = [(site["name"], site["role"]) for site in sites]
    inside = [f"{role}@{name.rpartition('@')[2]}" for name, role in names if "@" in name]
    return list(dict.fromkeys([*(n for n, _ in names), *(r for _, r in names), *inside]))
