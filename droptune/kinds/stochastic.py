"""Dropout whose rate is drawn anew at each call."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.coarse import times_mask
from droptune.kinds.standard import mask

#: No drawn rate is above this.
CEILING = 0.95


class Stochastic(Kind):
    """Drop single elements at a rate that each call draws: `x * m / (1 - p)`.

    `p = min(2 * rate * u, 0.95)` with one u ~ U(0, 1) a call, then m ~ Bernoulli(1 - p) for
    each element, scaled by its own 1 / (1 - p). The mean of p is `rate` up to 0.475; above,
    clipping holds it back: it is `0.95 - 0.95^2 / (4 * rate)`, 0.66 at rate 0.8 and never
    above 0.73. The mean of `x` is kept at every rate.

    Stochastic dropout: Park, Kwak, "Analysis on the Dropout Effect in Convolutional Neural
    Networks", ACCV 2016, https://doi.org/10.1007/978-3-319-54184-6_12, where the rate varies
    at each iteration. Which distribution the authors draw from was not checked; the uniform
    one is this module's choice.

    Any layout; the authors use it after convolutions. On CPU a drawn rate is one of 65536
    (`coarse.kept_share`). Sensible rates: 0.05 to 0.4.
    """

    name: ClassVar[str] = "stochastic"

    def drop(self, x: Tensor) -> Tensor:
        drawn = (2 * self.rate * self.stream.uniform((), x.device)).clamp(max=CEILING)
        if x.device.type == "cpu":
            return times_mask(x, self.stream.words(x.shape), drawn)
        return x * mask(self.stream.uniform(x.shape, x.device), drawn).to(x.dtype)
