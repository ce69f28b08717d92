"""Concrete dropout: a rate that training learns."""

from typing import ClassVar

import torch
from torch import Tensor

from droptune.kinds.base import Kind

#: Temperature of the relaxed mask.
TEMPERATURE = 0.1
#: No learned rate passes sigmoid(7) = 0.999, where what is kept is scaled by a thousand.
HIGHEST_LOGIT = 7.0


class Concrete(Kind):
    """Drop single elements by a relaxed mask, at a rate that follows the gradient of the loss.

    `x * (1 - z) / (1 - p)` with `z = sigmoid((logit(p) + logit(u)) / 0.1)`, u uniform, and
    `p = sigmoid(logit(rate) + shift)`. The shift starts at 0, the plan's rate, and is trained
    like a weight; weight decay pulls it back to the plan's rate. It is a buffer that no
    `state_dict` holds. A rate of 0 stays 0.

    The loss gains `penalty`, which keeps rates from falling to 0; see there. The serial and
    the fused trainer add it and train the shift. In a training loop of one's own the rate
    stays that of the plan.

    The mean is that of `x` but for the relaxation: at rates up to 0.5 it takes away at most
    0.21 % of it, above that it adds to it, 1.2 % at 0.9.

    Gal, Hron, Kendall, "Concrete Dropout", https://arxiv.org/abs/1705.07832; temperature and
    penalty as in their code. Their penalty of weights is left to the optimiser's weight decay.

    Layouts NF and NLF, units on the last axis: on maps the penalty would have another weight.
    Sensible rates to start from: 0.1.

    Attributes:
        units: numbers of units of the last tensor seen, as a tuple of one; None before.
    """

    name: ClassVar[str] = "concrete"
    layouts: ClassVar[frozenset[str]] = frozenset({"NF", "NLF"})

    shift: Tensor

    def __init__(self, site: str, rate: float = 0.0) -> None:
        super().__init__(site, rate)
        # In doubles, so that fused and alone the logits agree to more digits than a mask has.
        shift = torch.zeros((), dtype=torch.float64)
        self.register_buffer("shift", shift, persistent=False)
        self.units: tuple[int, ...] | None = None

    def drop(self, x: Tensor) -> Tensor:
        self.units = tuple(x.shape[-1:])
        logit = learned_logit(self.rate, self.shift)
        wide = torch.promote_types(x.dtype, torch.float32)
        noise = self.stream.uniform(x.shape, x.device).to(wide).logit()
        dropped = torch.sigmoid((logit.to(wide) + noise) / TEMPERATURE)
        return x * ((1 - dropped) / (1 - logit.sigmoid()).to(wide)).to(x.dtype)


def learned_logit(rate: Tensor, shift: Tensor) -> Tensor:
    """Return the logit of the learned rate, in doubles; minus infinity at rate 0."""
    return (rate.double().logit() + shift).clamp(max=HIGHEST_LOGIT)


def penalty(rate: Tensor, shift: Tensor, units: int) -> Tensor:
    """Return `units * (p log p + (1 - p) log(1 - p))`, the negative entropy of a layer's masks.

    It is least at p = 0.5, and 0 where the rate is 0.

    Args:
        rate: what the plan starts from, any shape.
        shift: what was learned, of the same shape.
        units: of the layer.
    """
    on = rate > 0
    logit = learned_logit(torch.where(on, rate, 0.5), shift)
    negative_entropy = logit * logit.sigmoid() - torch.nn.functional.softplus(logit)
    return torch.where(on, units * negative_entropy, 0.0)
