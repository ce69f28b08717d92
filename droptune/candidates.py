"""Plans that a search may turn to next: coarse ones anywhere, and some around a plan.

Part of refining.py, the only module that imports this one.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from droptune.landscape import UNIT, amplitude, rate

#: How many are drawn, and the part of them that may be anywhere.
COUNT, ANYWHERE = 300, 0.25
#: How far the others are at most, in deviations, as a part of the parameters' ranges.
FAR = 0.15
#: Of parameters that are moved alone or with one or two others, how many are at least and at most.
FEW = 1, 3
_RATE, _SLOPE = "rate.", "slope"


class Candidates:
    """Draws plans, as parameters.

    Rates are drawn on the scale of their noise (`amplitude`): on it a rate of 0.1 is not next
    to none.

    Args:
        space: parameter -> its Optuna distribution, of all that is to vary.
        finer: those that are 0 in coarse plans.
    """

    def __init__(self, space: Mapping[str, Any], finer: Collection[str]) -> None:
        self._choices = {n: d.choices for n, d in space.items() if hasattr(d, "choices")}
        self._axes = {
            name: _Axis(name, d) for name, d in space.items() if name not in self._choices
        }
        self._finer = np.array([name in finer for name in self._axes], bool)
        self._rates = np.array([name.startswith(_RATE) for name in self._axes], bool)

    def draw(self, best: Mapping[str, Any], draw: np.random.Generator) -> list[dict[str, Any]]:
        """Return plans: a part of them coarse and anywhere, the others around the best."""
        wide = round(ANYWHERE * COUNT)
        return self._anywhere(wide, draw) + self._around(COUNT - wide, best, draw)

    def _anywhere(self, count: int, draw: np.random.Generator) -> list[dict[str, Any]]:
        """Return coarse plans; in one half of them all groups have one amplitude."""
        units = draw.random((count, len(self._axes)))
        own = draw.random((count, 1)) * (draw.random((count, 1)) < 0.5)
        level = draw.random((count, 1))
        units[:, self._rates] = (1 - own) * level + own * units[:, self._rates]
        for i, name in enumerate(self._axes):
            if name == _SLOPE:  # in one half flat, in the other mostly moderate
                tilted = 0.25 * draw.standard_normal(count) * (draw.random(count) < 0.5)
                units[:, i] = 0.5 + tilted
        chosen = {
            name: [choices[i] for i in draw.integers(len(choices), size=count)]
            for name, choices in self._choices.items()
        }
        return self._params(np.where(self._finer, self._neutral, units), chosen)

    @property
    def _neutral(self) -> np.ndarray:
        return np.array([axis.unit(0.0) if finer else 0.0 for axis, finer in self._each()])

    def _each(self) -> zip:
        return zip(self._axes.values(), self._finer, strict=True)

    def _around(
        self, count: int, best: Mapping[str, Any], draw: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Return steps from the best: in all coarse parameters, in a few of all, or in all."""
        start = np.array([axis.unit(best[name]) for name, axis in self._axes.items()])
        total = len(self._axes) + len(self._choices)
        few = draw.uniform(*FEW, (count, 1)) / total
        how = draw.integers(3, size=(count, 1))
        moved = draw.random((count, total)) < few
        numeric = np.where(how == 1, moved[:, : len(self._axes)], (how == 2) | ~self._finer)
        size = FAR * draw.random((count, 1))
        step = size * draw.standard_normal((count, len(self._axes)))
        chosen = {}
        for i, (name, choices) in enumerate(self._choices.items(), len(self._axes)):
            other = draw.integers(len(choices), size=count)
            picked = zip(moved[:, i], other, strict=True)
            chosen[name] = [choices[j] if m else best[name] for m, j in picked]
        return self._params(start + np.where(numeric, step, 0.0), chosen)

    def _params(self, units: np.ndarray, chosen: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
        columns = {
            name: axis.values(units[:, i]).tolist()
            for i, (name, axis) in enumerate(self._axes.items())
        }
        columns |= chosen
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class _Axis:
    """One number of a plan: to and from a scale on which its range is about 0 to 1."""

    def __init__(self, name: str, distribution: Any) -> None:
        self._of, self._rate = distribution, name.startswith(_RATE)
        scaled = np.log if distribution.log else np.asarray
        self._low, self._range = scaled(distribution.low), 1.0
        self._range = float(scaled(distribution.high) - self._low) or 1.0

    def unit(self, value: float) -> float:
        if self._rate:
            return float(amplitude(np.asarray(value))) / UNIT
        scaled = np.log(value) if self._of.log else value
        return float((scaled - self._low) / self._range)

    def values(self, units: np.ndarray) -> np.ndarray:
        """Return values within the range, on its grid if it has one."""
        one = self._of
        if self._rate:
            found = rate(np.maximum(units, 0.0) * UNIT)
        else:
            found = self._low + units * self._range
            found = np.exp(found) if one.log else found
        found = np.clip(found, one.low, one.high)
        if one.step:
            steps = np.round((found - one.low) / one.step)
            found = np.clip(np.round(one.low + steps * one.step, 4), one.low, one.high)
        return found
