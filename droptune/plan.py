"""Plans: which dropout acts where, at which rate."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from droptune.consistency import Term, term_of
from droptune.errors import PlanError, nearest
from droptune.kinds import KINDS
from droptune.kinds.setting import Settings, checked
from droptune.recipe import recipe_of
from droptune.schedule import SCHEDULES, STEPS, factor, settled, step_at
from droptune.sites import Site

_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """What a plan says of one site.

    Attributes:
        kind: a name in `droptune.kinds.KINDS`.
        rate: probability of dropping, in [0, 1); the highest, where it moves.
        schedule: how the rate moves over training, a name in `droptune.schedule.SCHEDULES`, or
            "steps".
        fraction: the part of training that the schedule takes, in (0, 1]; None for constant,
            and elsewhere the schedule's own.
        settings: the kind's settings that differ from its defaults, name -> number.
        steps: of the schedule "steps": (part of training that is over, rate from there on),
            rising from 0. The rate is then the highest of theirs.

    Raises:
        PlanError: an unknown kind, schedule or setting, a rate outside [0, 1), a fraction
            outside (0, 1], a setting outside its bounds, or steps that are none.
    """

    kind: str
    rate: float
    schedule: str = "constant"
    fraction: float | None = None
    settings: Mapping[str, float] = field(default_factory=Settings)
    steps: Sequence[tuple[float, float]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise PlanError(f"unknown kind {self.kind!r}{nearest(str(self.kind), KINDS)}")
        known = (*SCHEDULES, STEPS)
        if not isinstance(self.schedule, str) or self.schedule not in known:
            raise PlanError(
                f"unknown schedule {self.schedule!r}{nearest(str(self.schedule), known)}"
            )
        steps = _checked_steps(self.schedule, self.steps)
        object.__setattr__(self, "steps", steps)
        if steps:
            object.__setattr__(self, "rate", max(rate for _, rate in steps))
        object.__setattr__(self, "rate", checked_rate(self.rate))
        object.__setattr__(self, "fraction", _checked_fraction(self.schedule, self.fraction))
        settings = checked(self.kind, KINDS[self.kind].settings, self.settings)
        object.__setattr__(self, "settings", settings)

    def at(self, progress: float) -> float:
        """Return the rate at some point of training, from 0 (first epoch) to 1 (last)."""
        if self.steps:
            return step_at(self.steps, progress)
        return self.rate * factor(self.schedule, self.fraction, progress)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON values; what says nothing (no fraction) is left out."""
        values = {**vars(self), "settings": dict(self.settings) or None}
        values["steps"] = [list(step) for step in self.steps] or None
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        moves = "" if self.fraction is None else f" {self.schedule} {self.fraction:.2g}"
        if self.steps:
            moves = f" {STEPS} {' '.join(f'{rate:g}' for _, rate in self.steps)}"
        settings = f" ({self.settings})" if self.settings else ""
        return f"{self.kind} {self.rate:g}{moves}{settings}"


def checked_rate(rate: Any) -> float:
    """Return a rate as a float.

    Raises:
        PlanError: it is no number in [0, 1).
    """
    try:
        value = float(rate)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < 1 - 2**-25:  # nearer to 1 it would be 1 in float32
        raise PlanError(
            f"rate {rate!r} is outside [0, 1); a rate is the probability of DROPPING, 0 is off"
        )
    return value


def _checked_fraction(schedule: str, fraction: Any) -> float | None:
    """Return a schedule's fraction: its own by default, None for constant."""
    if schedule in ("constant", STEPS):
        return None  # whatever was given: equal behaviour is an equal plan
    if fraction is None:
        return SCHEDULES[schedule]
    if isinstance(fraction, int | float) and 0 < fraction <= 1:
        return float(fraction)
    raise PlanError(f"fraction {fraction!r} of schedule {schedule!r} is outside (0, 1]")


def _checked_steps(schedule: str, steps: Any) -> tuple[tuple[float, float], ...]:
    """Return the steps of a schedule, those that change nothing left out.

    Raises:
        PlanError: they are not steps, or another schedule has some.
    """
    if (schedule == STEPS) != bool(steps):
        raise PlanError(
            f"schedule {schedule!r} with steps {steps!r}: give steps with schedule 'steps', "
            "and with no other"
        )
    try:
        pairs = [(float(start), checked_rate(rate)) for start, rate in steps]
    except (TypeError, ValueError) as error:
        raise PlanError(f"steps {steps!r}: give pairs (part of training, rate)") from error
    starts = [start for start, _ in pairs]
    rising = all(a < b for a, b in zip(starts, starts[1:], strict=False))
    if pairs and not (starts[0] == 0 and rising and starts[-1] <= 1):
        raise PlanError(f"steps {steps!r}: they must begin at 0 and rise up to 1")
    return tuple(pair for i, pair in enumerate(pairs) if i == 0 or pair[1] != pairs[i - 1][1])


def _entry(site: str, value: Any) -> Entry:
    """Return what a plan says of a site as an entry; errors name the site."""
    try:
        if isinstance(value, Mapping):
            return Entry(**value)
        if isinstance(value, tuple | list):
            return Entry(*value)
    except PlanError as error:
        raise PlanError(f"site {site!r}: {error}") from error
    except TypeError:
        pass  # too few or too many parts
    raise PlanError(
        f"site {site!r}: {value!r} is no entry; give a kind and a rate, such as ('standard', 0.2)"
    )


class Plan(Mapping[str, Entry]):
    """Site name -> entry; frozen and hashable. The empty plan is "no dropout".

    Entries at rate 0 are left out, so that equal behaviour is an equal plan; so is a term
    without entries, as passes without noise agree. A plan says all: an existing dropout that
    it does not name is switched off.

    Args:
        entries: site name -> `Entry`, or -> (kind, rate).
        term: what training adds to the loss: a `Term`, its name, or None.
        training: what else training is to do in another way than the study does: "lr",
            "weight_decay" and "label_smoothing", name -> number. A plan without dropout may
            have it, too.

    Raises:
        PlanError: an unknown kind or schedule, or a rate outside [0, 1), at a named site; a
            term that is none; or a number of training that is not allowed.

    Example:
        >>> Plan({"0": ("standard", 0.2), "2": ("gaussian", 0.0)})
        Plan(0: standard 0.2)
    """

    __slots__ = ("_entries", "_term", "_training")

    def __init__(
        self,
        entries: Mapping[str, Entry | tuple] = {},  # noqa: B006
        term: Term | str | None = None,
        training: Mapping[str, float] | None = None,
    ) -> None:
        made = {
            str(name): entry if isinstance(entry, Entry) else _entry(str(name), entry)
            for name, entry in entries.items()
        }
        self._entries = {name: entry for name, entry in made.items() if entry.rate > 0}
        found = term_of(term)
        self._term = found if self._entries else None
        self._training = recipe_of(training)

    @classmethod
    def none(cls) -> "Plan":
        """Return the empty plan, "no dropout"."""
        return cls()

    @classmethod
    def everywhere(cls, sites: Iterable[Site], rate: float, kind: str | None = None) -> "Plan":
        """Return the plan with one rate at all sites; each site's default kind by default.

        Of a kind that is named, at the sites that it fits. Residual branches and recurrent
        states without dropout today are left out, unless the kind invites them
        (`Site.takes_part`).

        Raises:
            PlanError: an unknown kind, or a rate outside [0, 1).
        """
        if kind is None:
            return cls({s.name: Entry(s.default_kind, rate) for s in sites if s.takes_part()})
        entry = Entry(kind, rate)
        return cls({s.name: entry for s in sites if s.takes_part((kind,)) and s.fits(kind)})

    @property
    def term(self) -> Term | None:
        """What training adds to the loss."""
        return self._term

    @property
    def training(self) -> Settings:
        """What training does in another way than the study: "lr", "weight_decay" and so on."""
        return self._training

    @property
    def moves(self) -> bool:
        """Whether a rate changes over training."""
        return any(entry.fraction is not None or entry.steps for entry in self._entries.values())

    @property
    def settles(self) -> float:
        """The part of training after which no rate changes any more, in [0, 1]."""
        ends = (settled(entry.schedule, entry.fraction) for entry in self._entries.values())
        return max(ends, default=0.0)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash((frozenset(self._entries.items()), self.term, self.training))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return False
        mine, others = (self.term, self.training), (other.term, other.training)
        return self._entries == other._entries and mine == others

    def __reduce__(self) -> tuple:
        return Plan, (self._entries, self.term, self.training)

    def __str__(self) -> str:
        sites = ", ".join(f"{name}: {e}" for name, e in self._entries.items()) or "no dropout"
        term = "" if self.term is None else f" + {self.term}"
        return f"{sites}{term}; {self.training}" if self.training else f"{sites}{term}"

    def __repr__(self) -> str:
        return f"Plan({self})"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        term = {} if self.term is None else {"term": self.term.to_json()}
        sites = {name: entry.to_json() for name, entry in self._entries.items()}
        training = {"training": dict(self.training)} if self.training else {}
        return {"version": _VERSION, "sites": sites, **term, **training}

    @classmethod
    def from_json(cls, value: Any) -> "Plan":
        """Read a plan from JSON values.

        Raises:
            PlanError: they are no plan, or one of a newer droptune.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("sites"), Mapping):
            raise PlanError('this JSON is no plan; a plan is {"version": 1, "sites": {...}}')
        if value.get("version") != _VERSION:
            raise PlanError(
                f"plan version {value.get('version')!r} is not known here (known: {_VERSION}); "
                "install a newer droptune"
            )
        return cls(value["sites"], value.get("term"), value.get("training"))

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan from a JSON file.

        Raises:
            PlanError: the file is missing, no JSON, or no plan.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except PlanError as error:
            raise PlanError(f"{str(path)!r}: {error}") from error
        except OSError as error:
            reason = error.strerror or error
            raise PlanError(f"cannot read the plan {str(path)!r}: {reason}") from error
        except ValueError as error:
            raise PlanError(f"{str(path)!r} is not JSON: {error}") from error
