"""Settings: the numbers that a kind has besides its rate, and what they may be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from droptune.errors import PlanError, nearest


@dataclass(frozen=True)
class Setting:
    """What a setting of a kind may be.

    Attributes:
        default: its value where a plan says nothing of it.
        low: the least value allowed, and the least that a space suggests.
        high: the greatest value allowed, and the greatest that a space suggests.
        step: between two values that a space suggests; a plan by hand may name one between.
        whole: whether only whole numbers are allowed; 0 to 1 is then no or yes.
    """

    default: float
    low: float
    high: float
    step: float
    whole: bool = False

    def allows(self, value: Any) -> bool:
        """Tell whether this is a number within the bounds, whole where it must be."""
        number = isinstance(value, int | float)
        return number and self.low <= value <= self.high and (not self.whole or value % 1 == 0)

    def nearest(self, value: float) -> float:
        """Return the value nearest to this one among those that a space suggests."""
        steps = round((value - self.low) / self.step)
        return round(min(max(self.low + steps * self.step, self.low), self.high), 4)

    def __str__(self) -> str:
        return f"{'whole, ' if self.whole else ''}{self.low:g} to {self.high:g}"


class Settings(Mapping[str, float]):
    """Values of a kind's settings, by name; frozen and hashable.

    Args:
        values: name -> value.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, float] = {}) -> None:  # noqa: B006
        self._values = dict(values)

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __reduce__(self) -> tuple:
        return Settings, (self._values,)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.items())

    def __repr__(self) -> str:
        return f"Settings({self._values})"


def checked(kind: str, known: Mapping[str, Setting], given: Any) -> Settings:
    """Return those of the given settings that differ from their defaults, in the kind's order.

    Args:
        kind: its name, for errors.
        known: the kind's settings.
        given: name -> value.

    Raises:
        PlanError: the kind has no such setting, or the value is not allowed.
    """
    if not isinstance(given, Mapping):
        raise PlanError(f"settings {given!r} of kind {kind!r}: give names and numbers, as a dict")
    for name, value in given.items():
        if name not in known:
            has = nearest(str(name), known) if known else "; it has none, leave it out"
            raise PlanError(f"unknown setting {name!r} of kind {kind!r}{has}")
        if not known[name].allows(value):
            raise PlanError(f"{name} {value!r} of kind {kind!r} is not allowed; {known[name]} is")
    values = {name: float(given[name]) for name in known if name in given}
    return Settings({n: value for n, value in values.items() if value != known[n].default})
