"""Zoneout: units of a recurrent state that stay as they were."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.standard import kept


class Zoneout(Kind):
    """Leave units of a state as they were: `h_t = m * h_(t-1) + (1 - m) * h~_t`.

    m ~ Bernoulli(rate) for each sample, step and unit; h~_t is what the layer computes. What this
    kind is given and returns is the share of each update that takes place, of which there is all
    before: `x * (1 - m)`. It is not scaled, for an update scaled by 1 / (1 - rate) would go past
    its end and be no zoneout; so the mean of an update falls to 1 - rate of it.

    That is why zoneout is not the identity in eval: there each update takes place at its mean,
    `h_t = rate * h_(t-1) + (1 - rate) * h~_t`. It is the one kind that changes what a model
    computes in eval mode, as its authors mean it. A model trained with it must be used with it:
    keep the plan on. `remove` restores the model as for every kind, and at rate 0, and at the end
    of a schedule that goes to 0, eval is as if no plan were on.

    Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal, "Zoneout:
    Regularizing RNNs by Randomly Preserving Hidden Activations",
    https://arxiv.org/abs/1606.01305. As there, the candidate of an LSTM's hidden state is made
    from the candidate of its cell, before that is zoned out.

    Layouts NLS and NLM: sites `PATH@state` and `PATH@cell` of recurrent layers. Sensible rates:
    up to 0.5 for cells and up to 0.2 for hidden states.
    """

    name: ClassVar[str] = "zoneout"
    layouts: ClassVar[frozenset[str]] = frozenset({"NLS", "NLM"})

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.training else x * (1 - self.rate).to(x.dtype)

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        return x * kept(self.stream.uniform(x.shape, x.device), self.rate).to(x.dtype)
