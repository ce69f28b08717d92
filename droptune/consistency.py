"""What a plan may add to the loss: a term that asks noisy passes over a batch to agree.

- r_drop: the outputs of two passes, by a symmetric divergence. Liang et al., "R-Drop",
  https://arxiv.org/abs/2106.14448.
- fraternal: the outputs of two passes, by their mean squared difference. Zolna, Arpit, Suhubdy,
  Bengio, "Fraternal Dropout", https://arxiv.org/abs/1711.00066.
- adversarial: a pass, and one whose units at a site are dropped where that changes the output
  most. Park, Park, Shin, Moon, "Adversarial Dropout for Supervised and Semi-Supervised
  Learning", https://arxiv.org/abs/1707.03631; Park, Song, Ji, Lee, Moon, "Adversarial Dropout
  for Recurrent Neural Networks", https://arxiv.org/abs/1904.09816.

Here is what a term says; droptune/trainers/terms.py has the arithmetic.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from droptune.errors import PlanError, nearest
from droptune.kinds.base import CHANNELS_FIRST
from droptune.sites import Site


class Defaults(NamedTuple):
    """What a term is where a plan does not say, and the weights that a space tries."""

    weight: float
    low: float
    high: float
    ramp: float = 0.0
    flips: float | None = None


#: Weights of r_drop: 5 in translation, 1 in language models, 0.3 in vision (the authors' code);
#: of fraternal: 0.1 to 0.15; of adversarial, with ramp and flips: the authors' language model.
TERMS: dict[str, Defaults] = {
    "r_drop": Defaults(1.0, 0.1, 5.0),
    "fraternal": Defaults(0.15, 0.05, 1.0),
    "adversarial": Defaults(0.1, 0.05, 2.0, round(100 / 750, 2), 0.06),
}
#: The shares of units that a space lets an adversarial term flip.
FLIPS = (0.01, 0.1)
HIGHEST_RAMP = 0.3


@dataclass(frozen=True)
class Term:
    """A term of the loss.

    Attributes:
        name: in `TERMS`.
        weight: what it is multiplied by, above 0; the term's own by default.
        ramp: the fraction of training over which the weight rises, in [0, 0.3].
        flips: of adversarial: the largest share of a site's units that is dropped, in (0, 1).
        site: of adversarial: where; None: the last hidden or head site of the plan. At
            `PATH@weights` the hidden-to-hidden weights of a recurrent layer are masked.

    Raises:
        PlanError: one of them is not allowed.
    """

    name: str
    weight: float | None = None
    ramp: float | None = None
    flips: float | None = None
    site: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in TERMS:
            raise PlanError(f"unknown term {self.name!r}{nearest(str(self.name), TERMS)}")
        own = TERMS[self.name]
        for field in ("weight", "ramp", "flips"):
            value = getattr(self, field)
            object.__setattr__(self, field, getattr(own, field) if value is None else value)
        self._check("weight", 0 < _number(self.weight) < math.inf, "above 0")
        self._check("ramp", 0 <= _number(self.ramp) <= HIGHEST_RAMP, f"from 0 to {HIGHEST_RAMP}")
        if own.flips is not None:
            self._check("flips", 0 < _number(self.flips) < 1, "between 0 and 1")
            if self.site is not None and not isinstance(self.site, str):
                raise PlanError(f"site {self.site!r} of term {self.name}: give a site's name")
        elif self.flips is not None or self.site is not None:
            raise PlanError(f"term {self.name} has no flips and no site; only adversarial does")

    def _check(self, field: str, fine: bool, allowed: str) -> None:
        value = getattr(self, field)
        if not fine:
            raise PlanError(f"{field} {value!r} of term {self.name}: give a number {allowed}")
        if value is not None:
            object.__setattr__(self, field, float(value))

    @property
    def is_adversarial(self) -> bool:
        """Whether the second pass is the worst one, and not just another."""
        return self.flips is not None

    def at(self, progress: float) -> float:
        """Return the weight at some point of training, from 0 (first epoch) to 1 (last).

        It rises as `weight * exp(-5 (1 - t)^2)`, t the part of the ramp that is over (Laine,
        Aila, https://arxiv.org/abs/1610.02242, as the authors of adversarial dropout do).
        """
        over = min(progress / self.ramp, 1.0) if self.ramp else 1.0
        return self.weight * math.exp(-5.0 * (1.0 - over) ** 2)

    def to_json(self) -> dict[str, Any]:
        """Return the term as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        flips = f" flips {self.flips:g}" if self.flips is not None else ""
        place = f" at {self.site}" if self.site is not None else ""
        ramp = f" ramp {self.ramp:g}" if self.ramp else ""
        return f"{self.name} {self.weight:g}{ramp}{flips}{place}"


def term_of(value: Any) -> Term | None:
    """Return what a plan says of its term: a `Term`, its name, or its JSON values; None: none.

    Raises:
        PlanError: it is no term.
    """
    if value is None or isinstance(value, Term):
        return value
    if isinstance(value, str):
        return Term(value)
    try:
        if isinstance(value, Mapping):
            return Term(**value)
    except TypeError:
        pass  # unknown or missing parts
    raise PlanError(f"{value!r} is no term; give its name or Term(name, weight), such as 'r_drop'")


class Place(NamedTuple):
    """Where the masks of an adversarial term act.

    Attributes:
        site: its name.
        shape: of a mask; a sample's where each has its own.
        by_sample: whether each sample has its own; of weights, all share one.
    """

    site: str
    shape: tuple[int, ...]
    by_sample: bool = True


def masked_place(sites: Sequence[Site]) -> Place | None:
    """Return the last of the sites that can be masked, a hidden or head one if there is.

    Masked are units, which are features or channels, with a mask that is shared over positions,
    as locked dropout's is; or the weights of a recurrent layer, with one that its steps share.
    """
    fitting = [(site, place) for site in sites if (place := _place_of(site)) is not None]
    inner = [place for site, place in fitting if site.role in ("hidden", "head")]
    return next(iter(reversed(inner or [place for _, place in fitting])), None)


def _place_of(site: Site) -> Place | None:
    """Return what masks at a site are; None where what is a unit is not known."""
    if site.layout == "NF":
        return Place(site.name, site.shape)
    if site.layout == "NLF":
        return Place(site.name, (1, site.shape[-1]))
    if site.layout in CHANNELS_FIRST:
        return Place(site.name, (site.shape[0], *(1 for _ in site.shape[1:])))
    if site.layout == "GS":  # a mask for each matrix, of all layers and directions
        return Place(site.name, (site.calls, *site.shape), by_sample=False)
    return None


def _number(value: Any) -> float:
    """Return a number; NaN, which passes no check, for what is none."""
    whole_or_not = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if whole_or_not else math.nan
