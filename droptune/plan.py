"""Plans: which dropout acts where, at which rate; and putting them on a model."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from droptune import functional
from droptune.errors import ModelError, PlanError, nearest
from droptune.kinds import KINDS, Kind
from droptune.schedule import SCHEDULES, factor
from droptune.sites import GIVEN, Site, dropout_kind, has_plan

_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """What a plan says of one site.

    Attributes:
        kind: a name in `droptune.kinds.KINDS`.
        rate: probability of dropping, in [0, 1); the highest, where it moves.
        schedule: how the rate moves over training, a name in `droptune.schedule.SCHEDULES`.
        fraction: the part of training that the schedule takes, in (0, 1]; None for constant,
            and elsewhere the schedule's own.

    Raises:
        PlanError: an unknown kind or schedule, a rate outside [0, 1), a fraction outside
            (0, 1].
    """

    kind: str
    rate: float
    schedule: str = "constant"
    fraction: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise PlanError(f"unknown kind {self.kind!r}{nearest(str(self.kind), KINDS)}")
        if not isinstance(self.schedule, str) or self.schedule not in SCHEDULES:
            raise PlanError(
                f"unknown schedule {self.schedule!r}{nearest(str(self.schedule), SCHEDULES)}"
            )
        object.__setattr__(self, "rate", checked_rate(self.rate))
        object.__setattr__(self, "fraction", _checked_fraction(self.schedule, self.fraction))

    def at(self, progress: float) -> float:
        """Return the rate at some point of training, from 0 (first epoch) to 1 (last)."""
        return self.rate * factor(self.schedule, self.fraction, progress)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON values; without a fraction where the rate is constant."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        moves = "" if self.fraction is None else f" {self.schedule} {self.fraction:.2g}"
        return f"{self.kind} {self.rate:g}{moves}"


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
    if schedule == "constant":
        return None  # whatever was given: equal behaviour is an equal plan
    if fraction is None:
        return SCHEDULES[schedule]
    if isinstance(fraction, int | float) and 0 < fraction <= 1:
        return float(fraction)
    raise PlanError(f"fraction {fraction!r} of schedule {schedule!r} is outside (0, 1]")


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

    Entries at rate 0 are left out, so that equal behaviour is an equal plan. A plan says
    all: an existing dropout that it does not name is switched off.

    Args:
        entries: site name -> `Entry`, or -> (kind, rate).

    Raises:
        PlanError: an unknown kind or schedule, or a rate outside [0, 1), at a named site.

    Example:
        >>> Plan({"0": ("standard", 0.2), "2": ("gaussian", 0.0)})
        Plan(0: standard 0.2)
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, Entry | tuple] = {}) -> None:  # noqa: B006
        made = {
            str(name): entry if isinstance(entry, Entry) else _entry(str(name), entry)
            for name, entry in entries.items()
        }
        self._entries = {name: entry for name, entry in made.items() if entry.rate > 0}

    @classmethod
    def none(cls) -> "Plan":
        """Return the empty plan, "no dropout"."""
        return cls()

    @classmethod
    def everywhere(cls, sites: Iterable[Site], rate: float, kind: str | None = None) -> "Plan":
        """Return the plan with one rate at all sites; each site's default kind by default."""
        return cls({site.name: Entry(kind or site.default_kind, rate) for site in sites})

    @property
    def moves(self) -> bool:
        """Whether a rate changes over training."""
        return any(entry.fraction is not None for entry in self._entries.values())

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._entries == other._entries

    def __reduce__(self) -> tuple:
        return Plan, (self._entries,)

    def __str__(self) -> str:
        if not self:
            return "no dropout"
        return ", ".join(f"{name}: {e}" for name, e in self._entries.items())

    def __repr__(self) -> str:
        return f"Plan({self})"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {"version": _VERSION, "sites": {n: e.to_json() for n, e in self._entries.items()}}

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
        return cls(value["sites"])

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


class SiteDropout(nn.Module):
    """The kinds of dropout at one site, one after the other.

    A chain, because members of a fused trainer share it: a member that uses one kind has
    rate 0 in the others, where a kind is exactly the identity.
    """

    def __init__(self, site: str, kinds: Iterable[str]) -> None:
        super().__init__()
        self.site = site
        self.entry: Entry | None = None
        for name in kinds:
            self.add_module(name, KINDS[name](site))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds by name, in the order they act."""
        return dict(self.named_children())  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for kind in self.children():
            x = kind(x)
        return x

    def drop(self, x: Tensor) -> Tensor:
        """Act as in training, whatever the mode: for a call of a module that trains."""
        for kind in self.kinds.values():
            x = kind.drop(x)
        return x

    def set(self, entry: Entry | None, progress: float = 0.0) -> None:
        """Set the rate of the entry's kind at a point of training, and 0 for the others."""
        self.entry = entry
        for name, kind in self.kinds.items():
            on = entry is not None and entry.kind == name
            kind.rate.fill_(entry.at(progress) if on else 0.0)  # type: ignore[union-attr]


def apply(model: nn.Module, plan: Plan, *, seed: int | None = None) -> nn.Module:
    """Put a plan on a model, in place, instead of any dropout it had.

    `state_dict` keys and eval outputs stay as they are; `remove` undoes it. The masks come
    from generators of droptune's own and leave torch's global one alone. A plan in which a
    rate moves stands at the beginning of training: call `advance` before each epoch.

    Args:
        model: the model; the plan's sites must be found in it.
        plan: what to put on; `Plan.none()` switches all dropout off.
        seed: fixes the masks; by default they follow `torch.manual_seed`.

    Returns:
        The same model.

    Raises:
        PlanError: the plan names a site that the model lacks.
    """
    install(model, {name: (entry.kind,) for name, entry in plan.items()})
    for dropout in installed(model).values():
        dropout.set(plan[dropout.site])
    if seed is not None:
        seed_noise(model, seed)
    return model


def advance(model: nn.Module, progress: float) -> None:
    """Move the rates of the plan on a model to a point of training.

    Args:
        model: with a plan on it; where all rates are constant nothing changes.
        progress: from 0 (first epoch) to 1 (last): `epoch / (epochs - 1)`.
    """
    for dropout in installed(model).values():
        dropout.set(dropout.entry, progress)


def remove(model: nn.Module) -> nn.Module:
    """Take a plan off a model, in place: it is again as it was given.

    Returns:
        The same model.
    """
    for module in list(model.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if _is_ours(hook)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key in [k for k, child in module._modules.items() if isinstance(child, SiteDropout)]:
            del module._modules[key]
        if hasattr(module, GIVEN):
            module.p = getattr(module, GIVEN)
            delattr(module, GIVEN)
        if (watched := functional.watched(module)) is not None:
            watched.let_go()
    return model


def read(model: nn.Module) -> Plan:
    """Return the plan that is on a model; without one, the dropout it was given with.

    Without a plan only dropout modules are read: which functions a forward calls, and at
    which rates, shows when it runs (`find_sites`).

    Raises:
        PlanError: the model was given with a dropout of rate 1.
    """
    ours = installed(model)
    if ours or has_plan(model):
        return Plan({site: d.entry for site, d in ours.items() if d.entry is not None})
    given = {path: (dropout_kind(m), m.p) for path, m in model.named_modules() if dropout_kind(m)}
    return Plan(given)  # type: ignore[arg-type]


def install(model: nn.Module, kinds: Mapping[str, Iterable[str]]) -> None:
    """Put kinds at rate 0 on the named sites, and switch existing dropout off.

    Dropout in function calls, too: of these, one that is named is replaced while its module
    trains, and the others do nothing.

    Args:
        model: the model, changed in place.
        kinds: site name -> the kinds that may act there.

    Raises:
        PlanError: the model has no such site.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if not isinstance(module, SiteDropout | Kind)
    }
    for name in kinds:
        path, call = _place(name)
        if path not in modules or name == "" or (call and not functional.can_call(modules[path])):
            known = [path for path in modules if path] + ["@input"]
            raise PlanError(f"the model has no site {name!r}{nearest(name, known)}")
    remove(model)  # only now: a plan that does not fit leaves the one that is on
    for module in modules.values():
        if dropout_kind(module):
            setattr(module, GIVEN, module.p)
            module.p = 0.0
    replaced: dict[str, dict[str, functional.Drop]] = {}
    for name, allowed in kinds.items():
        path, call = _place(name)
        module = modules[path]
        dropout = SiteDropout(name, allowed).train(module.training)
        home = next(m for m in module.modules() if _can_host(m))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        home.add_module(f"droptune {name.replace('.', '/')}", dropout.to(device))
        if call:
            replaced.setdefault(path, {})[call] = dropout.drop
        elif name.endswith("@input"):
            hook = partial(_drop_input, dropout)
            module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        else:
            module.register_forward_hook(partial(_drop_output, dropout))
    callers = {m: replaced.get(p, {}) for p, m in modules.items() if functional.can_call(m)}
    functional.watch(callers, [m for m in modules.values() if dropout_kind(m)])


def installed(model: nn.Module) -> dict[str, SiteDropout]:
    """Return what is installed on a model, by site name."""
    return {m.site: m for m in model.modules() if isinstance(m, SiteDropout)}


def seed_noise(model: nn.Module, seed: int, clock: int = 0) -> None:
    """Start the masks of epoch `clock` of the block with this seed."""
    for dropout in installed(model).values():
        for kind in dropout.kinds.values():
            kind.stream.seed(seed, clock)


def _place(name: str) -> tuple[str, str]:
    """Return the path of a site's module, and which call of a function it is, or ""."""
    return functional.split(name) or (name.removesuffix("@input"), "")


def _can_host(module: nn.Module) -> bool:
    """Tell whether a module can carry kinds: a leaf, which never iterates over children."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False  # not even when empty, such as a shortcut of a residual block
    return all(isinstance(child, SiteDropout) for child in module.children())


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, partial) and hook.func in (_drop_input, _drop_output)


# Module-level functions, so that a model with a plan can be pickled and deep-copied.
def _drop_output(dropout: SiteDropout, module: nn.Module, args: tuple, output: Any) -> Any:
    return _dropped(dropout, output)


def _drop_input(
    dropout: SiteDropout, module: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    if args:
        return (_dropped(dropout, args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: _dropped(dropout, kwargs[first])}


def _dropped(dropout: SiteDropout, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return dropout(value)
    what = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
    raise ModelError(
        f"site {dropout.site!r} holds a {what}, dropout needs a tensor of floats; "
        "leave this site out of the plan"
    )
