"""How the rates of a model's sites are spelled as parameters: from few to many."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from droptune.kinds.base import INSIDE
from droptune.sites import Site

#: Highest rate suggested, by role: small where noise hits raw information (inputs,
#: embeddings), that of stochastic depth's authors for residual branches, and a little over 0.5
#: elsewhere, since tuned rates press against a bound of 0.5 (rtdl's best configurations,
#: Gorishniy et al. 2021).
HIGHEST_RATE = {"input": 0.3, "embedding": 0.3, "residual": 0.5}
HIGHEST_ELSEWHERE = 0.6
#: No slope lifts a rate above this.
CEILING = 0.95
#: Rates are suggested in steps of this size: finer ones cannot be told apart by training.
STEP = 0.01
#: The most parts in which the sites of a group are refined: few, for each costs trials.
PARTS = 4
#: The largest offset of a part from the rates of its group's shape.
FARTHEST = 0.3
#: The slopes that are suggested, flat first.
SLOPES = tuple(sorted((i / 10 for i in range(-10, 11)), key=abs))


class Suggester(Protocol):
    """The part of an Optuna trial that a space calls."""

    def suggest_float(
        self,
        name: str,
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,
    ) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...


def highest_rate(role: str) -> float:
    """Return the highest rate that is suggested for a role."""
    return HIGHEST_RATE.get(role, HIGHEST_ELSEWHERE)


def group_of(site: Site) -> str:
    """Return what a site shares parameters with: its role, or what is in that place of a layer."""
    if site.layout in INSIDE:
        return f"{site.role}@{site.name.rpartition('@')[2]}"
    return site.role


class Encoding(ABC):
    """How rates are spelled as parameters. A strategy of `Space`."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        #: Group -> the role of its sites; a group shares parameters.
        self.groups = {group_of(site): site.role for site in sites}

    @property
    def finer(self) -> dict[str, tuple[str, ...]]:
        """Coarse parameter -> the parameters that refine it, neutral at 0; mostly none."""
        return {}

    @abstractmethod
    def rates(self, trial: Suggester) -> dict[str, float]:
        """Suggest a rate for every site."""

    @abstractmethod
    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Return the parameters whose rates are nearest to these."""

    @cached_property
    def names(self) -> list[str]:
        """The parameters that spell the rates."""
        return list(self.encode({site.name: 0.0 for site in self.sites}))

    def table(self, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """Return the rates of many plans, shape (plans, sites).

        Args:
            columns: name -> its value in each plan, for all `names`.
        """
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        found = [self.rates(_Row(row)) for row in rows]
        return np.array([[rates[site.name] for site in self.sites] for rates in found], float)


class _Row:
    """Parameters that are known already, asked for as of a trial."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values

    def suggest_float(self, name: str, *_: float, **__: Any) -> float:
        return self._values[name]

    def suggest_categorical(self, name: str, _: Sequence[str]) -> Any:
        return self._values[name]


class Uniform(Encoding):
    """One rate, everywhere."""

    def rates(self, trial: Suggester) -> dict[str, float]:
        rate = _rate(trial, "rate", HIGHEST_ELSEWHERE)
        return {site.name: rate for site in self.sites}

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        return {"rate": _step(_mean(rates.values()), 0.0, HIGHEST_ELSEWHERE)}


class Shape(Encoding):
    """A mean rate for each group, and a slope over depth that leaves these means alone.

    The rate of a site is `mean * (1 + slope * t)`, where t runs from -1 (first) to 1 (last)
    over the sites of its group: slope -1 puts all weight in front, 1 at the end. A group whose
    highest rate would pass `CEILING` takes the steepest slope that keeps below it. After the
    front- and back-loaded schedules of METHODS' evidence: Dropout Universality,
    https://arxiv.org/abs/2605.21648, and the shaped dropout of Auto-PyTorch.
    """

    def _tilts(self, group: str) -> dict[str, float]:
        names = [site.name for site in self.sites if group_of(site) == group]
        if len(names) == 1:
            return {names[0]: 0.0}
        return {name: 2 * i / (len(names) - 1) - 1 for i, name in enumerate(names)}

    @property
    def _sloped(self) -> bool:
        return len(self.sites) > len(self.groups)

    def rates(self, trial: Suggester) -> dict[str, float]:
        return self._at(*self._suggest_shape(trial))

    def _suggest_shape(self, trial: Suggester) -> tuple[dict[str, float], float]:
        """Suggest the mean rate of each group, and the slope."""
        means = {
            group: _rate(trial, f"rate.{group}", highest_rate(role))
            for group, role in self.groups.items()
        }
        slope = trial.suggest_float("slope", -1.0, 1.0, step=0.1) if self._sloped else 0.0
        return means, slope

    def _at(self, means: Mapping[str, float], slope: float) -> dict[str, float]:
        rates = {}
        for group, mean in means.items():
            rates |= _tilted(mean, slope, self._tilts(group))
        return rates

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        means = {
            group: _step(_mean(rates[name] for name in self._tilts(group)), 0.0, highest_rate(role))
            for group, role in self.groups.items()
        }
        params = {f"rate.{group}": mean for group, mean in means.items()}
        if self._sloped:
            # By trying each slope of the grid, flat first: a capped slope has no formula.
            params["slope"] = min(SLOPES, key=lambda s: _distance(self._at(means, s), rates))
        return params


class Auto(Shape):
    """`Shape`, with offsets for parts of each group, for steps that are finer than a shape.

    The sites of a group are cut by depth into up to `PARTS` parts of equal size. The rate of a
    site is `(mean + offset) * (1 + slope * t)`, with the offset of its part and the sum within
    what is suggested for its role. Offsets of 0 give the plan of `Shape`; when a sampler
    varies them says droptune/refining.py. A group of one site has none: its rate says all.
    """

    @property
    def finer(self) -> dict[str, tuple[str, ...]]:
        """The rate of each group of several sites -> the offsets of its parts."""
        counts = {group: len(self._parts(group)) for group in self.groups}
        return {
            f"rate.{group}": tuple(_offset(group, i) for i in range(count))
            for group, count in counts.items()
            if count > 1
        }

    def rates(self, trial: Suggester) -> dict[str, float]:
        means, slope = self._suggest_shape(trial)
        rates = {}
        for group, role in self.groups.items():
            for i, tilts in enumerate(self._parts(group)):
                offset = 0.0
                if f"rate.{group}" in self.finer:
                    name = _offset(group, i)
                    offset = trial.suggest_float(name, -FARTHEST, FARTHEST, step=STEP)
                rates |= _tilted(
                    _step(means[group] + offset, 0.0, highest_rate(role)), slope, tilts
                )
        return rates

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        # By trying each slope, as in Shape; of equally near ones that with the least offsets.
        slopes = SLOPES if self._sloped else (0.0,)
        fits = [self._fit(slope, rates) for slope in slopes]
        return min(fits, key=lambda fit: fit[:2])[2]

    def table(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        # As `rates`, in one go: a sampler weighs hundreds of plans a trial.
        columns = {name: np.asarray(column) for name, column in columns.items()}
        count = len(next(iter(columns.values())))
        slopes, found = columns.get("slope", np.zeros(count))[:, None], {}
        for group, role in self.groups.items():
            for i, tilts in enumerate(self._parts(group)):
                offset = columns.get(_offset(group, i), 0.0)
                steps = np.round((columns[f"rate.{group}"] + offset) / STEP)
                means = np.clip(steps * STEP, 0.0, highest_rate(role))[:, None]
                steepest = CEILING / np.maximum(means, STEP) - 1
                rates = means * (1 + np.clip(slopes, -steepest, steepest) * [*tilts.values()])
                found |= dict(zip(tilts, rates.T, strict=True))
        return np.stack([found[site.name] for site in self.sites], axis=1).round(4)

    def _parts(self, group: str) -> list[dict[str, float]]:
        """Return site -> its place on the slope, for each part of a group."""
        tilts = list(self._tilts(group).items())
        count = min(PARTS, len(tilts))
        cuts = [round(i * len(tilts) / count) for i in range(count + 1)]
        return [dict(tilts[low:high]) for low, high in pairwise(cuts)]

    def _fit(
        self, slope: float, rates: Mapping[str, float]
    ) -> tuple[float, float, dict[str, float]]:
        """Return distance, size of the offsets, and the parameters nearest with a slope."""
        params, nearest, size = {"slope": slope} if self._sloped else {}, {}, 0.0
        for group, role in self.groups.items():
            high, parts = highest_rate(role), self._parts(group)
            fitting = [_levels(rates, slope, tilts, high) for tilts in parts]
            clear = [levels[0] for levels in fitting if len(levels) == 1] or fitting[0][:1]
            about = (min(clear) + max(clear)) / 2
            levels = [
                min(found, key=lambda level, about=about: abs(level - about)) for found in fitting
            ]
            # The middle: from there every part is within reach that is from anywhere.
            middle = _step((min(levels) + max(levels)) / 2, 0.0, high)
            params[f"rate.{group}"] = middle
            for i, tilts in enumerate(parts):
                offset = _step(levels[i] - middle, -FARTHEST, FARTHEST)
                if f"rate.{group}" in self.finer:
                    params[_offset(group, i)] = offset
                    size += abs(offset)
                nearest |= _tilted(round(middle + offset, 4), slope, tilts)
        return _distance(nearest, rates), round(size, 4), params


class BySite(Encoding):
    """A rate for each site."""

    def rates(self, trial: Suggester) -> dict[str, float]:
        return {s.name: _rate(trial, f"rate.{s.name}", highest_rate(s.role)) for s in self.sites}

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        return {
            f"rate.{s.name}": _step(rates[s.name], 0.0, highest_rate(s.role)) for s in self.sites
        }


ENCODINGS: dict[str, type[Encoding]] = {
    "uniform": Uniform,
    "shape": Shape,
    "site": BySite,
    "auto": Auto,
}


def _offset(group: str, part: int) -> str:
    """Return the name of the offset of a part; parts are counted from 1, the first in front."""
    return f"offset.{group}.{part + 1}"


def _tilted(mean: float, slope: float, tilts: Mapping[str, float]) -> dict[str, float]:
    """Return `mean * (1 + slope * tilt)`, with the steepest slope that keeps below `CEILING`."""
    steepest = CEILING / mean - 1 if mean else 1.0
    within = min(max(slope, -steepest), steepest)
    return {name: round(mean * (1 + within * tilt), 4) for name, tilt in tilts.items()}


def _levels(
    rates: Mapping[str, float], slope: float, tilts: Mapping[str, float], high: float
) -> list[float]:
    """Return the means up to `high` for which `_tilted` is nearest, rising; mostly one.

    Several where the slope leaves a site nothing, or all that `CEILING` allows.
    """
    means = np.arange(round(high / STEP) + 1) * STEP
    steepest = CEILING / np.maximum(means, STEP) - 1
    within = np.clip(slope, -steepest, steepest)[:, None]
    reached = means[:, None] * (1 + within * np.array([*tilts.values()]))  # (means, sites)
    distances = ((reached - [rates[name] for name in tilts]) ** 2).sum(1)
    nearest = means[distances <= distances.min() + 1e-9]
    return [round(float(mean), 4) for mean in nearest]


def _rate(trial: Suggester, name: str, high: float) -> float:
    return round(trial.suggest_float(name, 0.0, high, step=STEP), 4)


def _step(value: float, low: float, high: float) -> float:
    return round(min(max(round(value / STEP) * STEP, low), high), 4)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def _distance(rates: Mapping[str, float], others: Mapping[str, float]) -> float:
    return round(sum((rate - others[name]) ** 2 for name, rate in rates.items()), 9)
