"""The plans a study may try, as parameters: suggest a plan, and encode one back.

A space is fixed-shape: the same parameters are suggested in every trial, off or on.
A sampler that models parameters jointly (multivariate TPE, GP) then sees one space; with
parameters that come and go Optuna falls back to modelling each alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from droptune.consistency import FLIPS, TERMS, Term, masked_place
from droptune.encodings import ENCODINGS, Suggester, group_of
from droptune.errors import SpaceError, nearest
from droptune.kinds import KINDS, Setting
from droptune.listed import Listed
from droptune.plan import Entry, Plan
from droptune.recipe import TRAINING, Range, range_of
from droptune.schedule import SCHEDULES
from droptune.sites import Site

#: Names of the plans that every study has and compares with.
CONTROL, AS_GIVEN = "no dropout", "as given"
#: The name of the best plan without dropout, where training is tuned together with it.
TUNED = "no dropout, tuned"

_GATE, _SCHEDULE, _FRACTION, _TERM = "dropout", "schedule", "fraction", "term"
_FLIPS = f"{_TERM}.flips"
#: The choice of adding nothing to the loss.
NO_TERM = "none"
#: Of training: the least fraction suggested, and the step between two.
_PART = 0.05
#: Where training is tuned, one trial in so many is without dropout: a comparison with dropout
#: is fair if both were tuned. The low end of the prior of 0.3 to 0.5 on none that published
#: tuned networks suggest (Gorishniy et al. 2021; LCBench).
_BARE = 3


class Space:
    """The plans a study may try.

    Parameters, the same in every trial: a gate `dropout` ("off" or "on"), the rates as the
    encoding spells them, `kind.GROUP` for each group of sites that more than one kind fits,
    `KIND.SETTING.GROUP` for each setting of an asked kind; where rates may move, one
    `schedule` for all sites and its `fraction`; where the loss may gain a term, `term`, and
    `term.weight.NAME` for each that may, with `term.flips` for adversarial; and what is tuned
    of training, `lr`, `weight_decay` and `label_smoothing`, which plans without dropout have,
    too. A group is a role; for places inside layers, where other kinds act, `ROLE@PLACE`.

    Attributes:
        settled: parameters that a sampler is not to vary, with their values. The gate: no
            dropout is in every study as trial 0, and a sampler left to itself proposes it
            again and again (measured: 8 of the first 12 trials, where it is a good plan).
            Where training is tuned, `given` turns it off by turns.
        finer: parameter -> the parameters that refine it, neutral at 0, which a sampler turns to
            as far as the results bear it out (droptune/refining.py); only of encoding "auto".

    Args:
        sites: where dropout may act; of residual branches those that take part
            (`Site.takes_part`): dropout is there today, or a kind for them is asked.
        encoding: "uniform" (one rate), "shape" (a mean rate for each role, and a slope over
            depth) or "site" (a rate for each site), from few parameters to many; or "auto",
            which is shape with finer parameters, for steps as fine as the results allow.
        kinds: the kinds that may be tried where layout and role fit. None, or where none of
            them fits a role: the kind found at the site, else channel for convolutions and
            standard for the rest.
        schedules: how rates may move over training, names in `droptune.schedule.SCHEDULES`.
        terms: what may be added to the loss, "none" or names in `droptune.consistency.TERMS`.
        tune: what of training is tuned, names in `droptune.recipe.TRAINING` -> the study's own
            values, around which it is tried.
        rates: site -> the rates to try there, a rate for each site; other sites take none, and
            of the fixed plans only those remain that keep to it. None: as the encoding says.

    Raises:
        SpaceError: no sites, an unknown encoding, kind, schedule, term or name of training, a
            learning rate of 0 to be tuned, none of the sites can take the masks of an
            adversarial term, or rates of no site or outside [0, 1).
    """

    settled: Mapping[str, str] = MappingProxyType({_GATE: "on"})

    def __init__(
        self,
        sites: Iterable[Site],
        encoding: str = "shape",
        kinds: Sequence[str] | None = None,
        schedules: Sequence[str] = ("constant",),
        terms: Sequence[str] = (NO_TERM,),
        tune: Mapping[str, float] | None = None,
        rates: Mapping[str, Sequence[float]] | None = None,
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
        self.schedules = _checked_names("schedule", schedules, SCHEDULES)
        self.terms = _checked_names("term", terms, (NO_TERM, *TERMS))
        self.tune = _checked_tune(tune or {})
        self._masked = masked_place(self.sites)
        if self._masked is None and any(TERMS[t].flips for t in self.terms if t != NO_TERM):
            raise SpaceError(
                "term 'adversarial' masks units, and the model has no site with features or "
                "channels on a known axis; leave it out of terms"
            )
        listed = None if rates is None else Listed(self.sites, rates)
        self.encoding = encoding if listed is None else listed.name
        self.asked_kinds = kinds
        self._listed = listed
        self._encoding = listed or ENCODINGS[encoding](self.sites)
        self.finer = self._encoding.finer
        self._groups = {site.name: group_of(site) for site in self.sites}
        self._choices = {group: self._kinds_of(group) for group in self._groups.values()}

    def _kinds_of(self, group: str) -> tuple[str, ...]:
        """Return the asked kinds that fit every site of a group."""
        sites = [site for site in self.sites if group_of(site) == group]
        return tuple(kind for kind in self.asked_kinds if all(site.fits(kind) for site in sites))

    @property
    def unused_kinds(self) -> list[str]:
        """The asked kinds that fit all sites of no group, and are not tried."""
        used = {kind for choices in self._choices.values() for kind in choices}
        return [kind for kind in self.asked_kinds if kind not in used]

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
        term = self._suggest_term(trial)
        training = self._suggest_training(trial)
        if not on:
            return Plan(training=training)
        entries = {}
        for site, (default, *_) in self.kinds.items():
            group = self._groups[site]
            kind = chosen.get(group, default)
            tuned = settings.get((group, kind), {})
            entries[site] = Entry(kind, rates[site], schedule, fraction, tuned)
        return Plan(entries, term, training)

    @property
    def spelled(self) -> tuple[str, ...]:
        """The parameters that say the rates: the gate, and those of the encoding."""
        return (_GATE, *self._encoding.names)

    def rates_of(self, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """Return the rates of many plans, shape (plans, sites).

        Args:
            columns: name -> its value in each plan, for all that is `spelled`.
        """
        on = np.array([gate == "on" for gate in columns[_GATE]])
        return self._encoding.table({n: columns[n] for n in self._encoding.names}) * on[:, None]

    def given(self, number: int) -> dict[str, Any]:
        """Return the parameters of a trial that are not left to the sampler, or none.

        Where training is tuned, one trial in three is without dropout. Its rates are 0 to the
        sampler, too, so that what it learns of rates is true.

        Args:
            number: of the trial.
        """
        if not self.tune or number % _BARE:
            return {}
        bare = self.encode(Plan.none())
        return {name: value for name, value in bare.items() if name not in self.tune}

    @property
    def _ranges(self) -> dict[str, tuple[float, Range]]:
        """What is tuned of training -> the study's own value, and those that are tried."""
        return {name: (own, range_of(name, own)) for name, own in self.tune.items()}

    def _suggest_training(self, trial: Suggester) -> dict[str, float]:
        """Suggest what training does in another way than the study."""
        found = {}
        for name, (own, (low, high, step)) in self._ranges.items():
            value = trial.suggest_float(name, low, high, step=step, log=step is None)
            if _digits(value) != _digits(own):
                found[name] = _digits(value)
        return found

    def _encode_training(self, plan: Plan) -> dict[str, float]:
        return {
            name: known.nearest(plan.training.get(name, own))
            for name, (own, known) in self._ranges.items()
        }

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
        params |= self._encoding.encode(rates) | self._encode_settings(plan)
        params |= self._encode_schedule(plan) | self._encode_term(plan.term)
        params |= self._encode_training(plan)
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
            kept = name in (CONTROL, AS_GIVEN) or self._listed is None or self._listed.has(plan)
            if kept and plan not in distinct.values():
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
            **({"rates": self._listed.to_json()} if self._listed else {}),
            **({} if self.terms == (NO_TERM,) else {"terms": list(self.terms)}),
            **({"tune": list(self.tune)} if self.tune else {}),
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


def _checked_tune(tune: Mapping[str, float]) -> dict[str, float]:
    """Return what is tuned, in a fixed order.

    Raises:
        SpaceError: a name is unknown, or there is nothing to start from.
    """
    for name in tune:
        if name not in TRAINING:
            raise SpaceError(f"cannot tune {name!r}{nearest(str(name), TRAINING)}")
    if tune.get("lr", 1.0) <= 0:
        raise SpaceError("lr 0 cannot be tuned: values are tried around it; give one above 0")
    return {name: tune[name] for name in TRAINING if name in tune}


def _weight(term: str) -> str:
    """Return the name of a term's weight: each has its own, since their ranges differ."""
    return f"{_TERM}.weight.{term}"


def _digits(value: float) -> float:
    """Return a number to three digits: finer steps cannot be told apart by training."""
    return float(f"{value:.3g}")


def _setting(trial: Suggester, name: str, known: Setting) -> float:
    return round(trial.suggest_float(name, known.low, known.high, step=known.step), 4)
