"""The plans a study may try, as parameters: suggest a plan, and encode one back.

Every encoding is fixed-shape: the same parameters are suggested in every trial, off or on.
A sampler that models parameters jointly (multivariate TPE, GP) then sees one space; with
parameters that come and go Optuna falls back to modelling each alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from droptune.errors import SpaceError, nearest
from droptune.kinds import KINDS, Setting
from droptune.kinds.base import INSIDE
from droptune.plan import Entry, Plan
from droptune.schedule import SCHEDULES
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

#: Names of the plans that every study has and compares with.
CONTROL, AS_GIVEN = "no dropout", "as given"

_GATE, _SCHEDULE, _FRACTION = "dropout", "schedule", "fraction"
#: Of training: the least fraction suggested, and the step between two.
_PART = 0.05


class Suggester(Protocol):
    """The part of an Optuna trial that a space calls."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None
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


class Space:
    """The plans a study may try.

    Parameters, the same in every trial: a gate `dropout` ("off" or "on"), the rates as the
    encoding spells them, `kind.GROUP` for each group of sites that more than one kind fits,
    `KIND.SETTING.GROUP` for each setting of an asked kind, and, where rates may move, one
    `schedule` for all sites and its `fraction`. A group is a role; for places inside layers,
    where other kinds act, `ROLE@PLACE`.

    Attributes:
        settled: parameters that a sampler is not to vary, with their values. The gate: no
            dropout is in every study as trial 0, and a sampler left to itself proposes it
            again and again (measured: 8 of the first 12 trials, where it is a good plan).

    Args:
        sites: where dropout may act; of residual branches those that take part
            (`Site.takes_part`): dropout is there today, or a kind for them is asked.
        encoding: "uniform" (one rate), "shape" (a mean rate for each role, and a slope over
            depth) or "site" (a rate for each site); from few parameters to many.
        kinds: the kinds that may be tried where layout and role fit. None, or where none of
            them fits a role: the kind found at the site, else channel for convolutions and
            standard for the rest.
        schedules: how rates may move over training, names in `droptune.schedule.SCHEDULES`.

    Raises:
        SpaceError: no sites, or an unknown encoding, kind or schedule.
    """

    settled: Mapping[str, str] = MappingProxyType({_GATE: "on"})

    def __init__(
        self,
        sites: Iterable[Site],
        encoding: str = "shape",
        kinds: Sequence[str] | None = None,
        schedules: Sequence[str] = ("constant",),
    ) -> None:
        if encoding not in ENCODINGS:
            raise SpaceError(f"unknown encoding {encoding!r}; allowed: {', '.join(ENCODINGS)}")
        kinds = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds or ()))
        for kind in kinds:
            if kind not in KINDS:
                raise SpaceError(f"unknown kind {kind!r}{nearest(str(kind), KINDS)}")
        self.sites = tuple(site for site in sites if site.takes_part(kinds))
        if not self.sites:
            raise SpaceError(
                "the model has no place for dropout that droptune finds; it needs a layer with "
                "an activation behind it, a float input, or a dropout module"
            )
        self.schedules = _checked_schedules(schedules)
        self.encoding = encoding
        self.asked_kinds = kinds
        self._encoding = ENCODINGS[encoding](self.sites)
        self._groups = {site.name: group_of(site) for site in self.sites}
        self._choices = {group: self._kinds_of(group) for group in self._groups.values()}

    def _kinds_of(self, group: str) -> tuple[str, ...]:
        """Return the asked kinds that fit every site of a group."""
        sites = [site for site in self.sites if group_of(site) == group]
        return tuple(
            kind
            for kind in self.asked_kinds
            if all(KINDS[kind].fits(site.layout, site.role) for site in sites)
        )

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """Site name -> the kinds that may act there."""
        return {
            s.name: self._choices[self._groups[s.name]] or (s.default_kind,) for s in self.sites
        }

    def suggest(self, trial: Suggester) -> Plan:
        """Suggest a plan; `trial` is an Optuna trial or anything with its suggest methods."""
        on = trial.suggest_categorical(_GATE, ["on", "off"]) == "on"
        rates = self._encoding.rates(trial)
        chosen = {
            group: trial.suggest_categorical(f"kind.{group}", list(choices))
            for group, choices in self._choices.items()
            if len(choices) > 1
        }
        settings = self._suggest_settings(trial)
        schedule, fraction = self._suggest_schedule(trial)
        if not on:
            return Plan.none()
        entries = {}
        for site, (default, *_) in self.kinds.items():
            group = self._groups[site]
            kind = chosen.get(group, default)
            tuned = settings.get((group, kind), {})
            entries[site] = Entry(kind, rates[site], schedule, fraction, tuned)
        return Plan(entries)

    @property
    def _tuned(self) -> list[tuple[str, str]]:
        """The pairs of a group and an asked kind that has settings."""
        pairs = [(group, kind) for group, choices in self._choices.items() for kind in choices]
        return [(group, kind) for group, kind in pairs if KINDS[kind].settings]

    def _suggest_settings(self, trial: Suggester) -> dict[tuple[str, str], dict[str, float]]:
        """Suggest the settings of each kind that has any, for each group."""
        return {
            (group, kind): {
                name: _setting(trial, f"{kind}.{name}.{group}", known)
                for name, known in KINDS[kind].settings.items()
            }
            for group, kind in self._tuned
        }

    def _suggest_schedule(self, trial: Suggester) -> tuple[str, float | None]:
        """Suggest a schedule and its fraction, as far as there is a choice."""
        schedule = self.schedules[0]
        if len(self.schedules) > 1:
            schedule = trial.suggest_categorical(_SCHEDULE, list(self.schedules))
        if self.schedules == ("constant",):
            return schedule, None
        return schedule, round(trial.suggest_float(_FRACTION, _PART, 1.0, step=_PART), 4)

    def encode(self, plan: Plan) -> dict[str, Any]:
        """Return the parameters nearest to a plan.

        A plan that the space can express comes back from `suggest` on them; another is
        replaced by its nearest neighbour (a mean of rates, a rate within the bounds).
        """
        rates = {s.name: plan[s.name].rate if s.name in plan else 0.0 for s in self.sites}
        params: dict[str, Any] = {_GATE: "on" if any(rates.values()) else "off"}
        params |= self._encoding.encode(rates)
        params |= self._encode_settings(plan) | self._encode_schedule(plan)
        for group, choices in self._choices.items():
            if len(choices) > 1:
                there = [s.name for s in self.sites if group_of(s) == group and s.name in plan]
                used = [plan[name].kind for name in there]
                params[f"kind.{group}"] = next((k for k in used if k in choices), choices[0])
        return params

    def _encode_settings(self, plan: Plan) -> dict[str, float]:
        """Return the settings of each kind at the first site of a group that has it."""
        params = {}
        for group, kind in self._tuned:
            used = [
                e for site, e in plan.items() if (self._groups.get(site), e.kind) == (group, kind)
            ]
            values = KINDS[kind].values(used[0].settings if used else {})
            for name, known in KINDS[kind].settings.items():
                params[f"{kind}.{name}.{group}"] = known.nearest(values[name])
        return params

    def _encode_schedule(self, plan: Plan) -> dict[str, Any]:
        """Return the schedule parameters of the first entry that the space can express."""
        used = [entry for entry in plan.values() if entry.schedule in self.schedules]
        schedule = used[0].schedule if used else self.schedules[0]
        fraction = used[0].fraction if used else SCHEDULES[schedule]
        params: dict[str, Any] = {_SCHEDULE: schedule} if len(self.schedules) > 1 else {}
        if self.schedules != ("constant",):
            steps = round((fraction or 1.0) / _PART)
            params[_FRACTION] = round(max(steps, 1) * _PART, 4)
        return params

    def fixed_plans(self, as_given: Plan) -> dict[str, Plan]:
        """Return the plans that every study tries first, by name.

        No dropout and the model as given are the controls; the rest is what the field does
        by habit (Srivastava et al. 2014 for 0.2 at the input and 0.5 at hidden layers).
        """
        heads = [site for site in self.sites if site.role == "head"]
        inputs = [site for site in self.sites if site.role == "input"]
        outer = ("input", "embedding", "residual")
        inner = [site for site in self.sites if site.role not in outer]
        plans = {
            CONTROL: Plan.none(),
            AS_GIVEN: as_given,
            "0.1 everywhere": self._at({site: 0.1 for site in self.sites}),
            "0.5 before the head": self._at({site: 0.5 for site in heads}),
            "0.2 input + 0.5 hidden": self._at(
                dict.fromkeys(inner, 0.5) | dict.fromkeys(inputs, 0.2)
            ),
        }
        distinct: dict[str, Plan] = {}
        for name, plan in plans.items():
            if plan not in distinct.values():
                distinct[name] = plan
        return distinct

    def _at(self, rates: Mapping[Site, float]) -> Plan:
        kinds = self.kinds
        return Plan({s.name: Entry(kinds[s.name][0], rate) for s, rate in rates.items()})

    def to_json(self) -> dict[str, Any]:
        """Return what makes two spaces the same, as JSON values."""
        moving = {} if self.schedules == ("constant",) else {"schedules": list(self.schedules)}
        return {
            "encoding": self.encoding,
            "sites": [
                {"name": s.name, "role": s.role, "kinds": list(self.kinds[s.name])}
                for s in self.sites
            ],
            **moving,
        }


def _checked_schedules(schedules: Sequence[str]) -> tuple[str, ...]:
    """Return the schedules, each once.

    Raises:
        SpaceError: there is none, or one is unknown.
    """
    names = (schedules,) if isinstance(schedules, str) else tuple(dict.fromkeys(schedules))
    for name in names:
        if name not in SCHEDULES:
            raise SpaceError(f"unknown schedule {name!r}{nearest(str(name), SCHEDULES)}")
    if not names:
        raise SpaceError(f"no schedule; give one or more of {', '.join(SCHEDULES)}")
    return names


def _rate(trial: Suggester, name: str, high: float) -> float:
    return round(trial.suggest_float(name, 0.0, high, step=STEP), 4)


def _setting(trial: Suggester, name: str, known: Setting) -> float:
    return round(trial.suggest_float(name, known.low, known.high, step=known.step), 4)


def _step(value: float, low: float, high: float) -> float:
    return round(min(max(round(value / STEP) * STEP, low), high), 4)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def _distance(rates: Mapping[str, float], others: Mapping[str, float]) -> float:
    return round(sum((rate - others[name]) ** 2 for name, rate in rates.items()), 9)
