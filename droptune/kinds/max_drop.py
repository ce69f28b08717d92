"""Max-drop: what is highest goes first."""

from typing import ClassVar

import torch
from torch import Tensor

from droptune.kinds.base import CHANNELS_FIRST, Kind
from droptune.kinds.standard import kept


def spare_or_drop(x: Tensor, axis: int, place: Tensor, gate: Tensor) -> Tensor:
    """Return a mask for `x`: `gate` at `place` along an axis, 1 everywhere else."""
    return torch.ones_like(x).scatter(axis, place, gate.to(x.dtype))


class MaxDrop(Kind):
    """Drop the highest activation of each map, with probability `rate` for each.

    For each sample and channel the position of the maximum is found, and the one value there
    is set to 0 if m ~ Bernoulli(1 - rate) says so. Of equal maxima the first counts.

    Nothing is scaled, so the mean is not preserved: on activations that are not negative that
    of a map falls by `rate * max / positions`, which is little
    unless maps are tiny. On a map of one position it is dropout without scaling.

    Park, Kwak, "Analysis on the Dropout Effect in Convolutional Neural Networks", ACCV 2016,
    https://doi.org/10.1007/978-3-319-54184-6_12, feature-map-wise.

    Layouts NCL, NCHW, NCDHW, behind convolution and ReLU. Sensible rates: up to 0.5.
    """

    name: ClassVar[str] = "max_drop"
    layouts: ClassVar[frozenset[str]] = CHANNELS_FIRST

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        maps = x.flatten(2)
        place = maps.detach().argmax(2, keepdim=True)
        gate = kept(self.stream.uniform(place.shape, x.device), self.rate)
        return (maps * spare_or_drop(maps, 2, place, gate)).reshape(x.shape)


class MaxDropChannel(Kind):
    """Drop the highest channel at each position, with probability `rate` for each.

    For each sample and position the channel of the maximum is found, and the one value there
    is set to 0 if m ~ Bernoulli(1 - rate) says so. Of equal maxima the first counts. All of a
    sample is then scaled by `1 / (1 - rate * share)`, where `share` is the part of the
    sample's sum of |x| that its maxima hold; no gradient flows through it.

    The mean of a sample over masks is then that of `x` where no activation is negative (as
    behind ReLU); with mixed signs it is the mean of |x| that is kept. Single elements do not
    keep their mean: maxima lose, the others gain. The ratio of the sums before and after,
    which would hold for each mask, is not used: it has no bound where maxima hold nearly all
    and no sign where signs are mixed. This one lies between 1 and 1 / (1 - rate), is exactly 1
    at rate 0, and is 1 for a sample of zeros.

    Park, Kwak, "Analysis on the Dropout Effect in Convolutional Neural Networks", ACCV 2016,
    https://doi.org/10.1007/978-3-319-54184-6_12, channel-wise; the scaling is not theirs.

    Layouts NCL, NCHW, NCDHW, behind convolution and ReLU. Sensible rates: up to 0.3.
    """

    name: ClassVar[str] = "max_drop_channel"
    layouts: ClassVar[frozenset[str]] = CHANNELS_FIRST

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        place = x.detach().argmax(1, keepdim=True)
        gate = kept(self.stream.uniform(place.shape, x.device), self.rate)
        scale = 1 / (1 - self.rate * share_of(x.detach(), place))
        return x * (spare_or_drop(x, 1, place, gate) * scale).to(x.dtype)


def share_of(x: Tensor, place: Tensor) -> Tensor:
    """Return the part of each sample's sum of |x| at `place` along axis 1, in [0, 1].

    Samples of zeros have share 0, and so have those whose sum is infinite.
    """
    size = x.abs().to(torch.promote_types(x.dtype, torch.float32))
    axes = tuple(range(1, x.dim()))
    highest, all_of_it = size.gather(1, place).sum(axes, keepdim=True), size.sum(axes, keepdim=True)
    return (highest / all_of_it).nan_to_num(nan=0.0).clamp(max=1.0)
