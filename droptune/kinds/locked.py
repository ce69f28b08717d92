"""One mask for all positions of a sequence."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.standard import mask


class Locked(Kind):
    """Drop features of whole sequences: one m ~ Bernoulli(1 - rate) for each sample and feature.

    `x[n, l, f] * m[n, f] / (1 - rate)`: the same mask at every position l.

    Variational or locked dropout: Gal, Ghahramani, "A Theoretically Grounded Application of
    Dropout in Recurrent Neural Networks", https://arxiv.org/abs/1512.05287. At a recurrent
    state it drops what the gates read of the step before; what a GRU carries over is not
    touched, for a factor above 1 at each step would have no bound.

    Layout NLF, the inputs and outputs of layers over sequences, and NLS, hidden states (sites
    `PATH@state`). Sensible rates: 0.2 to 0.5.
    """

    name: ClassVar[str] = "locked"
    layouts: ClassVar[frozenset[str]] = frozenset({"NLF", "NLS"})

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        uniform = self.stream.uniform((x.shape[0], 1, x.shape[2]), x.device)
        return x * mask(uniform, self.rate).to(x.dtype)
