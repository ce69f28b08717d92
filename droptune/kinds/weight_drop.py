"""DropConnect of hidden-to-hidden matrices."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.standard import Standard


class WeightDrop(Standard):
    """Drop single weights: `W * m / (1 - rate)`, one mask for all samples and steps of a forward.

    The weights are the hidden-to-hidden matrices of recurrent layers; each layer and direction
    draws its own mask, and the mean of W is kept.

    Weight-drop of the AWD-LSTM: Merity, Keskar, Socher, "Regularizing and Optimizing LSTM
    Language Models", https://arxiv.org/abs/1708.02182; after DropConnect, Wan, Zeiler, Zhang,
    LeCun, Fergus, ICML 2013, whose mask is one a sample.

    Layout GS: sites `PATH@weights` of recurrent layers. Sensible rates: 0.2 to 0.5.
    """

    name: ClassVar[str] = "weight_drop"
    layouts: ClassVar[frozenset[str]] = frozenset({"GS"})

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        return super().drop(x)
