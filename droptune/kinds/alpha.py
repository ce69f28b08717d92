"""Alpha dropout, for networks of SELU units."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import CHANNELS_FIRST, Kind, channel_shape
from droptune.kinds.coarse import gate, kept_share
from droptune.kinds.standard import kept

#: What a dropped unit is set to: the limit of SELU towards minus infinity, -lambda * alpha.
SATURATION = -1.7580993408473766


def alpha_drop(x: Tensor, gates: Tensor, keep: Tensor) -> Tensor:
    """Set dropped units to SELU's saturation value and restore mean 0 and variance 1.

    `a * (x * m + s * (1 - m)) + b` with m ~ Bernoulli(q), s = SATURATION,
    `a = (q + s^2 q (1 - q))^(-1/2)` and `b = -a (1 - q) s`.

    Args:
        x: activations with mean 0 and variance 1, any shape.
        gates: m, 1 where a unit is kept and 0 elsewhere, broadcastable to `x`; overwritten.
        keep: q, the probability of keeping, in (0, 1]; a scalar.
    """
    scale = (keep + SATURATION**2 * keep * (1 - keep)).rsqrt()
    factor = gates.mul_(scale)
    # The formula solved for what is subtracted: +0 where the rate is 0 and x must stay x.
    offset = (factor * SATURATION).sub_(scale * SATURATION * keep)
    return (x * factor.to(x.dtype)).sub_(offset.to(x.dtype))


class Alpha(Kind):
    """Alpha dropout of single elements, as `torch.nn.AlphaDropout`.

    Klambauer, Unterthiner, Mayr, Hochreiter, "Self-Normalizing Neural Networks",
    https://arxiv.org/abs/1706.02515. On CPU the rate is one of 65536 (`kept_share`).
    """

    name: ClassVar[str] = "alpha"

    def drop(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            keep = kept_share(self.rate)
            return alpha_drop(x, gate(self.stream.words(x.shape), keep), keep)
        gates = kept(self.stream.uniform(x.shape, x.device), self.rate)
        return alpha_drop(x, gates, 1 - self.rate)


class FeatureAlpha(Kind):
    """Alpha dropout of whole channels, as `torch.nn.FeatureAlphaDropout`."""

    name: ClassVar[str] = "feature_alpha"
    layouts: ClassVar[frozenset[str]] = CHANNELS_FIRST

    def drop(self, x: Tensor) -> Tensor:
        gates = kept(self.stream.uniform(channel_shape(x), x.device), self.rate)
        return alpha_drop(x, gates, 1 - self.rate)
