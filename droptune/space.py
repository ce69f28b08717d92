"""The plans a study may try, as parameters: suggest a plan, and encode one back.

Every encoding is fixed-shape: the same parameters are suggested in every trial, off or on.
A sampler that models parameters jointly (multivariate TPE, GP) then sees one space; with
parameters that come and go Optuna falls back to modelling each alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from droptune.consistency import FLIPS, TERMS, Term, masked_place
from droptune.errors import SpaceError, nearest
from droptune.kinds import KINDS
from droptune.plan import Entry, Plan
from droptune.schedule import SCHEDULES
from droptune.sites import Site

#: Highest rate suggested, by role: small where noise hits raw information (inputs,
#: embeddings, residual streams), and a little over 0.5 elsewhere, since tuned rates press
#: against a bound of 0.5 (rtdl's best configurations, Gorishniy et al. 2021).
HIGHEST_RATE = {"input": 0.3, "embedding": 0.3, "residual": 0.3}
HIGHEST_ELSEWHERE = 0.6
#: No slope lifts a rate above this.
CEILING = 0.95
#: Rates are suggested in steps of this size: finer ones cannot be told apart by training.
STEP = 0.01

#: Names of the plans that every study has and compares with.
CONTROL, AS_GIVEN = "no dropout", "as given"

_GATE, _SCHEDULE, _FRACTION, _TERM = "dropout", "schedule", "fraction", "term"
_FLIPS = f"{_TERM}.flips"
#: The choice of adding nothing to the loss.
NO_TERM = "none"
#: Of training: the least fraction suggested, and the step between two.
_PART = 0.05


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


class Encoding(ABC):
    """How rates are spelled as parameters. A strategy of `Space`."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        self.roles = list(dict.fromkeys(site.role for site in sites))

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
    """A mean rate for each role, and a slope over depth that leaves these means alone.

    The rate of a site is `mean * (1 + slope * t)`, where t runs from -1 (first) to 1 (last)
    over the sites of its role: slope -1 puts all weight in front, 1 at the end. A role whose
    highest rate would pass `CEILING` takes the steepest slope that keeps below it. After the
    front- and back-loaded schedules of METHODS' evidence: Dropout Universality,
    https://arxiv.org/abs/2605.21648, and the shaped dropout of Auto-PyTorch.
    """

    def _tilts(self, role: str) -> dict[str, float]:
        names = [site.name for site in self.sites if site.role == role]
        if len(names) == 1:
            return {names[0]: 0.0}
        return {name: 2 * i / (len(names) - 1) - 1 for i, name in enumerate(names)}

    @property
    def _sloped(self) -> bool:
        return len(self.sites) > len(self.roles)

    def rates(self, trial: Suggester) -> dict[str, float]:
        means = {role: _rate(trial, f"rate.{role}", highest_rate(role)) for role in self.roles}
        slope = trial.suggest_float("slope", -1.0, 1.0, step=0.1) if self._sloped else 0.0
        return self._at(means, slope)

    def _at(self, means: Mapping[str, float], slope: float) -> dict[str, float]:
        rates = {}
        for role, mean in means.items():
            steepest = CEILING / mean - 1 if mean else 1.0
            within = min(max(slope, -steepest), steepest)
            for name, tilt in self._tilts(role).items():
                rates[name] = round(mean * (1 + within * tilt), 4)
        return rates

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        means = {
            role: _step(_mean(rates[name] for name in self._tilts(role)), 0.0, highest_rate(role))
            for role in self.roles
        }
        params = {f"rate.{role}": mean for role, mean in means.items()}
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
    encoding spells them, `kind.ROLE` for each role that more than one kind fits; where rates
    may move, one `schedule` for all sites and its `fraction`; where the loss may gain a term,
    `term`, and `term.weight.NAME` for each that may, with `term.flips` for adversarial.

    Attributes:
        settled: parameters that a sampler is not to vary, with their values. The gate: no
            dropout is in every study as trial 0, and a sampler left to itself proposes it
            again and again (measured: 8 of the first 12 trials, where it is a good plan).

    Args:
        sites: where dropout may act.
        encoding: "uniform" (one rate), "shape" (a mean rate for each role, and a slope over
            depth) or "site" (a rate for each site); from few parameters to many.
        kinds: the kinds that may be tried where layout and role fit. None, or where none of
            them fits a role: the kind found at the site, else channel for convolutions and
            standard for the rest.
        schedules: how rates may move over training, names in `droptune.schedule.SCHEDULES`.
        terms: what may be added to the loss, "none" or names in `droptune.consistency.TERMS`.

    Raises:
        SpaceError: no sites, an unknown encoding, kind, schedule or term, or none of the sites
            can take the masks of an adversarial term.
    """

    settled: Mapping[str, str] = MappingProxyType({_GATE: "on"})

    def __init__(
        self,
        sites: Iterable[Site],
        encoding: str = "shape",
        kinds: Sequence[str] | None = None,
        schedules: Sequence[str] = ("constant",),
        terms: Sequence[str] = (NO_TERM,),
    ) -> None:
        self.sites = tuple(sites)
        if not self.sites:
            raise SpaceError(
                "the model has no place for dropout that droptune finds; it needs a layer with "
                "an activation behind it, a float input, or a dropout module"
            )
        if encoding not in ENCODINGS:
            raise SpaceError(f"unknown encoding {encoding!r}; allowed: {', '.join(ENCODINGS)}")
        kinds = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds or ()))
        for kind in kinds:
            if kind not in KINDS:
                raise SpaceError(f"unknown kind {kind!r}{nearest(str(kind), KINDS)}")
        self.schedules = _checked_names("schedule", schedules, SCHEDULES)
        self.terms = _checked_names("term", terms, (NO_TERM, *TERMS))
        self._masked = masked_place(self.sites)
        if self._masked is None and any(TERMS[t].flips for t in self.terms if t != NO_TERM):
            raise SpaceError(
                "term 'adversarial' masks units, and the model has no site with features or "
                "channels on a known axis; leave it out of terms"
            )
        self.encoding = encoding
        self.asked_kinds = kinds
        self._encoding = ENCODINGS[encoding](self.sites)
        self._choices = {role: self._kinds_of(role) for role in self._encoding.roles}

    def _kinds_of(self, role: str) -> tuple[str, ...]:
        """Return the asked kinds that fit every site of a role."""
        sites = [site for site in self.sites if site.role == role]
        return tuple(
            kind
            for kind in self.asked_kinds
            if all(KINDS[kind].fits(site.layout, site.role) for site in sites)
        )

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """Site name -> the kinds that may act there."""
        return {s.name: self._choices[s.role] or (s.default_kind,) for s in self.sites}

    def suggest(self, trial: Suggester) -> Plan:
        """Suggest a plan; `trial` is an Optuna trial or anything with its suggest methods."""
        on = trial.suggest_categorical(_GATE, ["on", "off"]) == "on"
        rates = self._encoding.rates(trial)
        chosen = {
            role: trial.suggest_categorical(f"kind.{role}", list(choices))
            for role, choices in self._choices.items()
            if len(choices) > 1
        }
        schedule, fraction = self._suggest_schedule(trial)
        term = self._suggest_term(trial)
        if not on:
            return Plan.none()
        kinds = self.kinds
        return Plan(
            {
                s.name: Entry(
                    chosen.get(s.role, kinds[s.name][0]), rates[s.name], schedule, fraction
                )
                for s in self.sites
            },
            term,
        )

    def _suggest_term(self, trial: Suggester) -> Term | None:
        """Suggest a term of the loss and its numbers, as far as there is a choice."""
        name, found = self.terms[0], {}
        if len(self.terms) > 1:
            name = trial.suggest_categorical(_TERM, list(self.terms))
        for parameter, (low, high) in self._term_ranges.items():
            found[parameter] = _digits(trial.suggest_float(parameter, low, high, log=True))
        if name == NO_TERM:
            return None
        if TERMS[name].flips is None:
            return Term(name, found[_weight(name)])
        return Term(name, found[_weight(name)], flips=found[_FLIPS], site=self._masked.site)

    @property
    def _term_ranges(self) -> dict[str, tuple[float, float]]:
        """Parameter -> its lowest and highest value, for the terms that may be tried."""
        ranges = {}
        for name in self.terms:
            if name != NO_TERM:
                ranges[_weight(name)] = TERMS[name].low, TERMS[name].high
                if TERMS[name].flips is not None:
                    ranges[_FLIPS] = FLIPS
        return ranges

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
        params |= self._encoding.encode(rates) | self._encode_schedule(plan)
        params |= self._encode_term(plan.term)
        for role, choices in self._choices.items():
            if len(choices) > 1:
                used = [plan[s.name].kind for s in self.sites if s.role == role and s.name in plan]
                params[f"kind.{role}"] = next((k for k in used if k in choices), choices[0])
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

    def _encode_term(self, term: Term | None) -> dict[str, Any]:
        """Return the term's parameters; those of other terms are their defaults."""
        name = term.name if term is not None else NO_TERM
        if name not in self.terms:
            name = NO_TERM if NO_TERM in self.terms else self.terms[0]
        params: dict[str, Any] = {_TERM: name} if len(self.terms) > 1 else {}
        for each in self.terms:
            if each != NO_TERM:
                given = term if term is not None and term.name == each else Term(each)
                params[_weight(each)] = given.weight
                params |= {_FLIPS: given.flips} if given.flips is not None else {}
        for parameter, (low, high) in self._term_ranges.items():
            params[parameter] = min(max(_digits(params[parameter]), low), high)
        return params

    def fixed_plans(self, as_given: Plan) -> dict[str, Plan]:
        """Return the plans that every study tries first, by name.

        No dropout and the model as given are the controls; the rest is what the field does
        by habit (Srivastava et al. 2014 for 0.2 at the input and 0.5 at hidden layers).
        """
        heads = [site for site in self.sites if site.role == "head"]
        inputs = [site for site in self.sites if site.role == "input"]
        inner = [site for site in self.sites if site.role not in ("input", "embedding")]
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
            **({} if self.terms == (NO_TERM,) else {"terms": list(self.terms)}),
        }


def _checked_names(what: str, names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return schedules or terms, each once.

    Raises:
        SpaceError: there is none, or one is unknown.
    """
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in names:
        if name not in known:
            raise SpaceError(f"unknown {what} {name!r}{nearest(str(name), known)}")
    if not names:
        raise SpaceError(f"no {what}; give one or more of {', '.join(known)}")
    return names


def _weight(term: str) -> str:
    """Return the name of a term's weight: each has its own, since their ranges differ."""
    return f"{_TERM}.weight.{term}"


def _digits(value: float) -> float:
    """Return a number to three digits: finer steps cannot be told apart by training."""
    return float(f"{value:.3g}")


def _rate(trial: Suggester, name: str, high: float) -> float:
    return round(trial.suggest_float(name, 0.0, high, step=STEP), 4)


def _step(value: float, low: float, high: float) -> float:
    return round(min(max(round(value / STEP) * STEP, low), high), 4)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def _distance(rates: Mapping[str, float], others: Mapping[str, float]) -> float:
    return round(sum((rate - others[name]) ** 2 for name, rate in rates.items()), 9)
