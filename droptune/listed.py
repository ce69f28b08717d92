"""Rates from lists: a few rates at a few sites, where not any rate will do."""

from collections.abc import Mapping, Sequence
from typing import Any

from droptune.encodings import Encoding, Suggester
from droptune.errors import PlanError, SpaceError, nearest
from droptune.plan import Plan, checked_rate
from droptune.sites import Site


class Listed(Encoding):
    """A rate for each site, one of its list; sites without a list take none.

    A parameter is categorical, so that the grid tries every listed rate and no other.

    Args:
        sites: all that may take dropout.
        rates: site -> its rates.

    Raises:
        SpaceError: it names no site, or has no rate for one, or what is no rate.
    """

    name = "listed"

    def __init__(self, sites: Sequence[Site], rates: Mapping[str, Sequence[float]]) -> None:
        super().__init__(sites)
        self._rates = _checked(rates, [site.name for site in sites])

    def rates(self, trial: Suggester) -> dict[str, float]:
        chosen = {
            site: trial.suggest_categorical(f"rate.{site}", list(listed))
            for site, listed in self._rates.items()
        }
        return {site.name: chosen.get(site.name, 0.0) for site in self.sites}

    def encode(self, rates: Mapping[str, float]) -> dict[str, float]:
        return {
            f"rate.{site}": _closest(listed, rates[site]) for site, listed in self._rates.items()
        }

    def has(self, plan: Plan) -> bool:
        """Whether a plan's rates are all listed."""
        rates = {site.name: 0.0 for site in self.sites} | {s: e.rate for s, e in plan.items()}
        return all(rate in self._rates.get(site, (0.0,)) for site, rate in rates.items())

    def to_json(self) -> dict[str, list[float]]:
        """Return the lists as JSON values."""
        return {site: list(listed) for site, listed in self._rates.items()}


def _closest(listed: Sequence[float], rate: float) -> float:
    return min(listed, key=lambda known: abs(known - rate))


def _checked(rates: Any, sites: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return the rates of each site that has some, each rate once."""
    if not isinstance(rates, Mapping) or not rates:
        raise SpaceError(f"rates {rates!r}: give a site -> its rates, such as {{'2': (0, 0.3)}}")
    result = {}
    for site, listed in rates.items():
        if site not in sites:
            raise SpaceError(f"rates: unknown site {site!r}{nearest(str(site), sites)}")
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
            raise SpaceError(f"rates of {site!r}: {listed!r} is no list of rates such as (0, 0.3)")
        try:
            result[site] = tuple(dict.fromkeys(map(checked_rate, listed)))
        except PlanError as error:
            raise SpaceError(f"rates of {site!r}: {error}") from error
    return result
