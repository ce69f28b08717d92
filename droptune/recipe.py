"""What a plan may say of training besides dropout: learning rate, weight decay, smoothing.

They are tuned together with dropout because their best values move with it, and because they
matter more than a rate does: on LCBench (Zimmer, Lindauer, Hutter, https://arxiv.org/abs/2006.13799)
the learning rate explains about 19 times, and weight decay 8 times, the variance of scores that
dropout explains.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from droptune.errors import PlanError, nearest
from droptune.kinds.setting import Settings


class Range(NamedTuple):
    """The values of a parameter that a space suggests.

    Attributes:
        low: the least.
        high: the greatest.
        step: between two of them; None: any, evenly by ratio.
    """

    low: float
    high: float
    step: float | None = None

    def nearest(self, value: float) -> float:
        """Return the suggested value that is nearest to this one."""
        if self.step is not None:
            value = round(round((value - self.low) / self.step) * self.step + self.low, 4)
        return min(max(value, self.low), self.high)


#: What may be said -> the values above which there is nothing sensible; 0 is the least of all.
TRAINING: dict[str, float] = {
    "lr": math.inf,
    "weight_decay": math.inf,
    "label_smoothing": 1.0,
}
#: Of label smoothing, from none: twice the 0.1 of Szegedy et al., https://arxiv.org/abs/1512.00567.
_SMOOTHING = Range(0.0, 0.2, 0.01)
#: Of weight decay where the study has none: that of Gorishniy et al.,
#: https://arxiv.org/abs/2106.11959.
_DECAY = Range(1e-6, 1e-3)


def range_of(name: str, own: float) -> Range:
    """Return the values that a space tries around a study's own.

    A learning rate within a factor of 10 either way: two decades with the user's choice in the
    middle, where LCBench and Gorishniy et al., who start from none, search three. Weight decay
    from a hundredth to ten times: too much ruins a run, too little is no worse than none.

    Args:
        name: in `TRAINING`.
        own: the study's value; of lr above 0.
    """
    if name == "lr":
        return Range(own / 10, own * 10)
    if name == "weight_decay":
        return Range(own / 100, own * 10) if own > 0 else _DECAY
    return _SMOOTHING


def recipe_of(given: Any) -> Settings:
    """Return what a plan says of training, in a fixed order.

    No label smoothing is what training does anyway, and is left out.

    Args:
        given: name -> number, of `TRAINING`; None: nothing.

    Raises:
        PlanError: an unknown name, or a number that is not allowed.
    """
    if given is None:
        return Settings()
    if not isinstance(given, Mapping):
        raise PlanError(f"training {given!r}: give names and numbers, such as {{'lr': 0.001}}")
    for name, value in given.items():
        if name not in TRAINING:
            raise PlanError(f"unknown training {name!r}{nearest(str(name), TRAINING)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < TRAINING[name]:
            most = "" if TRAINING[name] == math.inf else f" and below {TRAINING[name]:g}"
            raise PlanError(f"{name} {value!r} of a plan: a number from 0{most} is needed")
    values = {name: float(given[name]) for name in TRAINING if name in given}
    return Settings({n: v for n, v in values.items() if v or n != "label_smoothing"})
