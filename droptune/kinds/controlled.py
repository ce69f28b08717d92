"""Controlled dropout: the same units dropped for a whole minibatch, and exactly so many kept."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from droptune.kinds.base import Kind


def count_kept(rate: Tensor, units: int) -> Tensor:
    """Return how many of `units` are kept: `units - round(rate * units)`, at least 1.

    Returns:
        A whole number, as a float32 tensor of the shape of `rate`.
    """
    return (units - (rate * units).round()).clamp(min=1)


class Controlled(Kind):
    """Keep exactly k of n units, the same ones for all samples of a minibatch.

    `x[..., i] * (n / k)` for the k units i of lowest rank among n uniform numbers, 0 for the
    others; k = n - round(rate * n), at least 1. Each unit is kept with probability k / n, so the
    mean over masks is that of `x`. One sub-network a step, and not one a sample as in standard
    dropout: gradients are noisier.

    Ko, Kim, Oh, Choi, "Controlled Dropout: a Different Approach to Using Dropout on Deep Neural
    Network", IEEE BigComp 2017, https://doi.org/10.1109/BIGCOMP.2017.7881693; before them Graham,
    Reizenstein, Robinson, "Efficient batchwise dropout training using submatrices",
    https://arxiv.org/abs/1502.02478. Not theirs: the scaling at training time, which is that of
    `torch.nn.Dropout`, and any rate (they keep half).

    A dropped unit need not be computed. Where it lies between two linear layers, these multiply
    smaller matrices (`droptune.columns`); elsewhere the mask is used, to the same effect.

    Layouts NF, NLF, NHWF: units are features, on the last axis. Sensible rates: 0.2 to 0.5.
    """

    name: ClassVar[str] = "controlled"
    layouts: ClassVar[frozenset[str]] = frozenset({"NF", "NLF", "NHWF"})

    #: The rate, where Python knows it; None where the buffer alone does, as in a fused trainer.
    number: float | None = None

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        self.number = float(rate)

    def drop(self, x: Tensor) -> Tensor:
        return drop_units(x, self)

    def order(self, units: int, device: torch.device) -> Tensor:
        """Draw the order in which units are kept."""
        return self.stream.uniform((units,), device).argsort(stable=True)

    def masked(self, x: Tensor) -> Tensor:
        """Return `x` times a mask."""
        self.check_axes(x)
        units = x.shape[-1]
        rank = self.order(units, x.device).argsort()
        count = count_kept(self.rate, units)
        mask = (count - rank).clamp(0, 1) * (units / count)
        return x * mask.to(x.dtype)


def drop_units(x: Tensor, kind: Controlled) -> Tensor:
    """Drop units of `x` by a kind.

    A function as torch's own are: a tensor may say itself how units of it are dropped, and
    whoever watches the functions of a forward sees that here are units dropped.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(drop_units, (x,), x, kind)
    return kind.masked(x)
