"""A plan of one model carried over to another, by role and relative depth."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from droptune.consistency import Term, masked_place
from droptune.encodings import group_of
from droptune.plan import Entry, Plan
from droptune.sites import Site


@dataclass(frozen=True)
class Moved:
    """A plan on its new model.

    Attributes:
        plan: there; empty where nothing of it fits.
        left: what was left out or changed on the way, one line each.
    """

    plan: Plan
    left: tuple[str, ...]


def site_of(row: Mapping[str, Any]) -> Site:
    """Return a site as far as a store keeps it."""
    return Site(
        row["name"],
        row["name"],
        row["reach"],
        row["role"],
        row["layout"],
        row["position"],
        tuple(row["shape"]),
        row["kind"],
        row["rate"],
    )


def move(
    plan: Plan,
    there: Sequence[Site],
    here: Sequence[Site],
    *,
    terms: Collection[str] = (),
    tune: Collection[str] = (),
) -> Moved:
    """Carry a plan over to another model.

    Each site takes what the plan says of the site of its role (inside layers, of its place
    in them) at the nearest relative depth, which runs from 0, the first of that role, to 1, the
    last. A kind that does not fit gives way to the site's own, at the same rate.

    Args:
        plan: of the model with the sites `there`.
        there: in call order, with those where the plan does nothing.
        here: the sites of the other model, in call order.
        terms: of the loss that may come along.
        tune: what may come along of training.
    """
    theirs, mine = _grouped(there), _grouped(here)
    entries: dict[str, Entry] = {}
    used, changed = set(), []
    for group, sites in mine.items():
        others = theirs.get(group, [])
        for index, site in enumerate(sites):
            source = _nearest(index, len(sites), others)
            if source is None or source.name not in plan:
                continue
            used.add(source.name)
            entry = plan[source.name]
            if not site.fits(entry.kind):
                changed.append(f"{entry.kind} at {site.name}, which takes {site.default_kind}")
                entry = replace(entry, kind=site.default_kind, settings={})
            entries[site.name] = entry
    lost = Counter(group_of(site) for site in there if site.name in plan and site.name not in used)
    left = [f"{number} of its {group} sites" for group, number in lost.items()] + changed
    term, note = _moved_term(plan.term, [s for s in here if s.name in entries], terms)
    training = {name: value for name, value in plan.training.items() if name in tune}
    left += [note] if note else []
    left += [f"{n} {value:g}" for n, value in plan.training.items() if n not in tune]
    return Moved(Plan(entries, term, training), tuple(left))


def _grouped(sites: Sequence[Site]) -> dict[str, list[Site]]:
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(group_of(site), []).append(site)
    return groups


def _nearest(index: int, count: int, others: Sequence[Site]) -> Site | None:
    """Return the one of the others at the relative depth of place `index` of `count`."""
    if not others:
        return None
    depth = index / (count - 1) if count > 1 else 0.5
    return others[int(depth * (len(others) - 1) + 0.5)]


def _moved_term(
    term: Term | None, sites: Sequence[Site], allowed: Collection[str]
) -> tuple[Term | None, str | None]:
    """Return a term on the other model, and what is to be said if it stays behind."""
    if term is None or not sites:
        return None, None
    if term.name not in allowed:
        return None, f"{term.name}, which is not among the terms here"
    if not term.is_adversarial:
        return term, None
    place = masked_place(sites)
    if place is None:
        return None, f"{term.name}, for whose masks there is no place"
    return replace(term, site=place.site), None
