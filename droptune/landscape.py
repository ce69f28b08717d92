"""Where plans lie, so that those lie near each other which do alike, and what results say there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from droptune.encodings import HIGHEST_ELSEWHERE, group_of
from droptune.posterior import Learnt, Posterior, coordinates, kept

#: Weights of the mean over all sites, of the mean and the slope of each group, of each site, and
#: of what is no rate, such as a kind. Coarse first: their order is the idea, their size a guess.
OVERALL, BY_GROUP, ALONE, OTHER = 1.0, 0.5, 0.7, 0.5
#: Shortest length of the kernel. What changes over less is the luck of one seed: in a block,
#: plans that are nearly alike share their luck, and it looks like a valley.
SHORTEST = 0.6


def amplitude(rates: np.ndarray) -> np.ndarray:
    """Return the strength of dropout's noise, of any shape: sqrt(rate / (1 - rate)).

    Dropout multiplies by a factor of mean 1 with this standard deviation, and noise of another
    form with the same deviation does as well (Srivastava et al. 2014, section 10,
    https://jmlr.org/papers/v15/srivastava14a.html). Of the way from 0 to 0.6, a rate of 0.1
    has gone a quarter.
    """
    return np.sqrt(rates / (1 - rates))


def rate(amplitudes: np.ndarray) -> np.ndarray:
    """Return the rates whose noise has these amplitudes."""
    return amplitudes**2 / (1 + amplitudes**2)


#: The amplitude that is 1 in a landscape: that of the highest rate suggested.
UNIT = float(amplitude(np.array(HIGHEST_ELSEWHERE)))


class Landscape:
    """Where the plans of a study lie.

    A point has the mean amplitude over all sites, mean and slope over depth of each group's,
    that of each site, and what is no rate. For a kernel of one length, plans of another mean
    are then far apart, and plans that differ at one site of many are near: few results tell
    how much dropout is good, many tell it of single sites. Coarse first, and then finer, comes
    of it without a phase or a threshold. It is a kernel whose distance is a quadratic form of
    low rank and a diagonal ("factor analysis distance", Rasmussen, Williams 2006, section 5.1,
    https://gaussianprocess.org/gpml/), with the form given and not learnt.

    Args:
        space: of the study (droptune/space.py).
        parameters: parameter -> its Optuna distribution, of every trial.
    """

    def __init__(self, space: Any, parameters: Mapping[str, Any]) -> None:
        self._space, self.parameters = space, parameters
        self._others = {name: d for name, d in parameters.items() if name not in space.spelled}
        self._groups = np.array([group_of(site) for site in space.sites])

    def rates(self, params: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the rates of plans, shape (plans, sites)."""
        return self._space.rates_of({n: [one[n] for one in params] for n in self._space.spelled})

    def points(self, params: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return where plans lie, shape (plans, coordinates)."""
        strength = amplitude(self.rates(params)) / UNIT
        sites = strength.shape[1]
        columns = [OVERALL * strength.mean(1, keepdims=True), ALONE * strength / np.sqrt(sites)]
        for group in dict.fromkeys(self._groups):
            own = strength[:, self._groups == group]
            count = own.shape[1]
            tilts = np.linspace(-1, 1, count) / count if count > 1 else np.zeros(1)
            shape = np.stack([own.mean(1), own @ tilts], axis=1)
            columns.append(BY_GROUP * np.sqrt(count / sites) * shape)
        others = coordinates(self._others, params)
        return np.hstack([*columns, *(OTHER * block for block in others.values())])

    def posterior(
        self,
        params: Sequence[Mapping[str, Any]],
        values: Sequence[float],
        learnt: Learnt | None = None,
    ) -> Posterior:
        """Return what results say, of very many those that count most.

        Args:
            params: of the plans.
            values: of the results, to be made small.
            learnt: by an earlier posterior, from some of these results.
        """
        known = kept(values)
        points = self.points([params[i] for i in known])
        return Posterior(points, [values[i] for i in known], SHORTEST, learnt)
