"""Alpha dropout, for networks of SELU units."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import CHANNELS_FIRST, Kind, channel_shape

#: What a dropped unit is set to: the limit of SELU towards minus infinity, -lambda * alpha.
SATURATION = -1.7580993408473766


def alpha_drop(x: Tensor, uniform: Tensor, rate: Tensor) -> Tensor:
    """Set dropped units to SELU's saturation value and restore mean 0 and variance 1.

    `a * (x * m + s * (1 - m)) + b` with m ~ Bernoulli(q), q = 1 - rate, s = SATURATION,
    `a = (q + s^2 q (1 - q))^(-1/2)` and `b = -a (1 - q) s`.

    Args:
        x: activations with mean 0 and variance 1, any shape.
        uniform: numbers in [0, 1), broadcastable to `x`.
        rate: probability of dropping, in [0, 1); a scalar.
    """
    keep = 1 - rate
    kept = (keep - uniform).ceil_()
    scale = (keep + SATURATION**2 * keep * rate).rsqrt()
    shift = -scale * rate * SATURATION
    return x * (scale * kept).to(x.dtype) + (scale * SATURATION * (1 - kept) + shift).to(x.dtype)


class Alpha(Kind):
    """Alpha dropout of single elements, as `torch.nn.AlphaDropout`.

    Klambauer, Unterthiner, Mayr, Hochreiter, "Self-Normalizing Neural Networks",
    https://arxiv.org/abs/1706.02515.
    """

    name: ClassVar[str] = "alpha"

    def drop(self, x: Tensor) -> Tensor:
        return alpha_drop(x, self.stream.uniform(x.shape, x.device), self.rate)


class FeatureAlpha(Kind):
    """Alpha dropout of whole channels, as `torch.nn.FeatureAlphaDropout`."""

    name: ClassVar[str] = "feature_alpha"
    layouts: ClassVar[frozenset[str]] = CHANNELS_FIRST

    def drop(self, x: Tensor) -> Tensor:
        return alpha_drop(x, self.stream.uniform(channel_shape(x), x.device), self.rate)
