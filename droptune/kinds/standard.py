"""Bernoulli masks: single elements (standard) or whole channels (channel)."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import CHANNELS_FIRST, Kind, channel_shape
from droptune.kinds.coarse import times_mask


def kept(uniform: Tensor, rate: Tensor) -> Tensor:
    """Turn uniform numbers into 0 with probability `rate`, else 1.

    `ceil(keep - u)` is 1 where u < keep and 0 elsewhere. It stays in floating point, which
    on CPU takes half the time of a boolean mask and its cast, and at rate 0 it is exactly 1.

    Args:
        uniform: numbers in [0, 1), any shape.
        rate: probability of dropping, in [0, 1); broadcastable to `uniform`.

    Returns:
        A tensor of the shape of `uniform`.
    """
    return (1 - rate - uniform).ceil_()


def mask(uniform: Tensor, rate: Tensor) -> Tensor:
    """Turn uniform numbers into a scaled mask: 0 with probability `rate`, else 1 / (1 - rate).

    Args:
        uniform: numbers in [0, 1), any shape.
        rate: probability of dropping, in [0, 1); broadcastable to `uniform`.

    Returns:
        A tensor of the shape of `uniform`, whose mean over draws is 1.
    """
    return kept(uniform, rate).div_(1 - rate)


class Standard(Kind):
    """Drop single elements: `x * m / (1 - rate)`, m ~ Bernoulli(1 - rate) for each element.

    Inverted dropout: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: A
    Simple Way to Prevent Neural Networks from Overfitting", JMLR 15 (2014); the scaling at
    training time as in `torch.nn.Dropout`. On CPU the rate is one of 65536 (`coarse.kept_share`).
    """

    name: ClassVar[str] = "standard"

    def drop(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return times_mask(x, self.stream.words(x.shape), self.rate)
        return x * mask(self.stream.uniform(x.shape, x.device), self.rate).to(x.dtype)


class Channel(Kind):
    """Drop whole channels: one m ~ Bernoulli(1 - rate) for each sample and channel.

    SpatialDropout: Tompson, Goroshin, Jain, LeCun, Bregler, "Efficient Object Localization
    Using Convolutional Networks", https://arxiv.org/abs/1411.4280; `torch.nn.Dropout1d/2d/3d`.
    """

    name: ClassVar[str] = "channel"
    layouts: ClassVar[frozenset[str]] = CHANNELS_FIRST

    def drop(self, x: Tensor) -> Tensor:
        return x * mask(self.stream.uniform(channel_shape(x), x.device), self.rate).to(x.dtype)
