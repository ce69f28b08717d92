"""Warm start: plans of earlier studies that a new one tries first.

What was taken becomes part of the new study's definition, plan by plan, so that it stays the
same study when it goes on, whatever becomes of the earlier ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from droptune.errors import PlanError, StudyError
from droptune.mapping import move, site_of
from droptune.plan import Plan
from droptune.space import Space
from droptune.store import Queries

#: Trials taken of an earlier study besides its confirmed plan: a model or data that differ a
#: little often turn the order of the best few.
_BEST = 3
_KEY = "warm_start"


@dataclass(frozen=True)
class Seeds:
    """The plans that a study starts with.

    Attributes:
        plans: name, such as "from digits, trial 31" -> plan.
        sources: names of the studies.
        notes: what is to be said of them.
    """

    plans: Mapping[str, Plan]
    sources: Sequence[str]
    notes: Sequence[str] = ()

    def definition(self) -> dict[str, Any]:
        """Return what a study's definition says of them; nothing where there are none."""
        plans = [{"name": name, "plan": plan.to_json()} for name, plan in self.plans.items()]
        return {_KEY: {"from": list(self.sources), "plans": plans}} if self.sources else {}


def stored_seeds(name: str, definition: Mapping[str, Any], asked: Sequence[str] | None) -> Seeds:
    """Return the plans that a stored study started with.

    Args:
        name: of the study.
        definition: as it is stored.
        asked: the sources that are asked for now; None: whatever it started with.

    Raises:
        StudyError: it started with those of other studies.
    """
    kept = definition.get(_KEY, {"from": [], "plans": []})
    if asked is not None and {*map(_name, asked)} != {*kept["from"]}:
        began = ", ".join(map(repr, kept["from"])) or "none"
        raise StudyError(
            f"study {name!r} started with plans of other studies: {began}, and that cannot be "
            "changed; leave warm_start (--from) out, or take a new name (--study NAME)"
        )
    plans = {row["name"]: Plan.from_json(row["plan"]) for row in kept["plans"]}
    return Seeds(plans, kept["from"])


def new_seeds(
    name: str, space: Space, fingerprint: str, asked: Sequence[str] | None, queries: Queries
) -> Seeds:
    """Return the plans that a new study is to start with.

    Args:
        name: of the study.
        space: its.
        fingerprint: of its model.
        asked: studies of the same store, or `URL#STUDY`; None: the confirmed plan of a similar
            study of the store, if there is one.
        queries: of the store.

    Raises:
        StudyError: there is no such study, or nothing in it.
        StoreError: the other database cannot be read.
    """
    if asked is not None:
        found = [_asked(source, name, space, queries) for source in dict.fromkeys(asked)]
    else:
        similar = _similar(name, space, fingerprint, queries)
        found = [] if similar is None else [_confirmed(similar, space)]
    plans: dict[str, Plan] = {}
    for seeds in found:
        plans |= {n: plan for n, plan in seeds.plans.items() if plan not in plans.values()}
    sources = [source for seeds in found for source in seeds.sources]
    return Seeds(plans, sources, [note for seeds in found for note in seeds.notes])


def _name(source: str) -> str:
    return source.rpartition("#")[2] if "://" in source else source


def _asked(source: str, name: str, space: Space, queries: Queries) -> Seeds:
    """Return the plans of a study that is asked for by name."""
    if "://" in source:
        url, _, other = source.rpartition("#")
        if not url:
            raise StudyError(
                "warm_start with a database (--from) needs the study's name behind it: "
                "sqlite:///other.db#STUDY"
            )
        with Queries(url) as elsewhere:
            return _taken(elsewhere, other, space)
    if source == name:
        raise StudyError(
            f"study {name!r} cannot start with plans of its own; leave it out of warm_start "
            "(--from): it goes on where it was anyway"
        )
    return _taken(queries, source, space)


def _taken(queries: Queries, name: str, space: Space) -> Seeds:
    """Return the confirmed plan of a study and its best trials, on this space's sites."""
    study = queries.study(name)
    ended = [row for row in queries.trials(name) if row["state"] == "complete"]
    if not ended:
        raise StudyError(
            f"study {name!r} has no complete trial to start from; run it first, or leave it out "
            "of warm_start (--from)"
        )
    sign = -1 if study["direction"] == "maximize" else 1
    ended.sort(key=lambda row: (sign * row["value"], row["number"]))
    verdict = study["verdict"] or {}
    given = {f"from {name}": verdict["plan"]} if verdict.get("verdict") == "helps" else {}
    given |= {f"from {name}, trial {row['number']}": row["plan"] for row in ended[:_BEST]}
    return _moved(study, given, space)


def _confirmed(study: Mapping[str, Any], space: Space) -> Seeds:
    """Return the confirmed plan of a similar study."""
    name = study["name"]
    try:
        seeds = _moved(study, {f"from {name}": study["plan"]}, space)
    except PlanError:  # of a newer droptune; nobody asked for it
        return Seeds({}, ())
    said = (
        f"study {name!r} has sites of the same roles: the plan that helped there is tried here, "
        "too (warm_start=(), --from none: not)"
    )
    return Seeds(seeds.plans, seeds.sources, [said, *seeds.notes]) if seeds.plans else Seeds({}, ())


def _moved(study: Mapping[str, Any], given: Mapping[str, Any], space: Space) -> Seeds:
    """Return plans of a study on this space's sites; those without dropout say nothing new."""
    there = [site_of(row) for row in study["sites"]]
    plans: dict[str, Plan] = {}
    left: dict[str, None] = {}
    for name, value in given.items():
        plan = Plan.from_json(value)
        moved = move(plan, there, space.sites, terms=space.terms, tune=space.tune)
        left |= dict.fromkeys(moved.left)
        if moved.plan and moved.plan not in plans.values():
            plans[name] = moved.plan
    notes = [f"from study {study['name']!r} left out or changed: {'; '.join(left)}"] if left else []
    if not plans:
        notes.append(f"study {study['name']!r} has no plan with dropout that fits this model")
    return Seeds(plans, [study["name"]], notes)


def _similar(
    name: str, space: Space, fingerprint: str, queries: Queries
) -> Mapping[str, Any] | None:
    """Return a study of the store where dropout helped, with sites of the same roles, or None.

    Of several the same model comes first, then as many sites, then the latest.
    """
    roles = {site.role for site in space.sites}
    found = []
    for index, study in enumerate(queries.helped()):
        if study["name"] != name and {site["role"] for site in study["sites"]} == roles:
            same = study["definition"].get("model") == fingerprint
            alike = len(study["sites"]) == len(space.sites)
            found.append(((same, alike, index), study))
    return max(found, key=lambda pair: pair[0])[1] if found else None
