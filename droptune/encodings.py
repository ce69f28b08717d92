"""How the rates of a model's sites are spelled as parameters: from few to many."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

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

    @abstractmethod
    def rates(self, trial: Suggester) -> dict[str, float]:
        """Suggest a rate for every site."""

    @abstractmethod
    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Return the parameters whose rates are nearest to these."""


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
        means = {
            group: _rate(trial, f"rate.{group}", highest_rate(role))
            for group, role in self.groups.items()
        }
        slope = trial.suggest_float("slope", -1.0, 1.0, step=0.1) if self._sloped else 0.0
        return self._at(means, slope)

    def _at(self, means: Mapping[str, float], slope: float) -> dict[str, float]:
        rates = {}
        for group, mean in means.items():
            steepest = CEILING / mean - 1 if mean else 1.0
            within = min(max(slope, -steepest), steepest)
            for name, tilt in self._tilts(group).items():
                rates[name] = round(mean * (1 + within * tilt), 4)
        return rates

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        means = {
            group: _step(_mean(rates[name] for name in self._tilts(group)), 0.0, highest_rate(role))
            for group, role in self.groups.items()
        }
        params = {f"rate.{group}": mean for group, mean in means.items()}
        if self._sloped:
            # By trying each slope of the grid, flat first: a capped slope has no formula.
            slopes = sorted((i / 10 for i in range(-10, 11)), key=abs)
            params["slope"] = min(slopes, key=lambda s: _distance(self._at(means, s), rates))
        return params


class BySite(Encoding):
    """A rate for each site."""

    def rates(self, trial: Suggester) -> dict[str, float]:
        return {s.name: _rate(trial, f"rate.{s.name}", highest_rate(s.role)) for s in self.sites}

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        return {
            f"rate.{s.name}": _step(rates[s.name], 0.0, highest_rate(s.role)) for s in self.sites
        }


ENCODINGS: dict[str, type[Encoding]] = {"uniform": Uniform, "shape": Shape, "site": BySite}


def _rate(trial: Suggester, name: str, high: float) -> float:
    return round(trial.suggest_float(name, 0.0, high, step=STEP), 4)


def _step(value: float, low: float, high: float) -> float:
    return round(min(max(round(value / STEP) * STEP, low), high), 4)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def _distance(rates: Mapping[str, float], others: Mapping[str, float]) -> float:
    return round(sum((rate - others[name]) ** 2 for name, rate in rates.items()), 9)
