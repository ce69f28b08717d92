"""Means over a split whose tokens have no labels everywhere: what each batch counts for."""

from collections.abc import Callable

import torch
from torch import Tensor

from droptune.metrics import IGNORED


def summed(loss: str | Callable, mean: Tensor, target: Tensor) -> Tensor:
    """Return the sum that a batch's mean loss stands for; 0 where no label of it counts.

    Args:
        loss: a name or a function, as in `Task`.
        mean: of the batch, a scalar or `members`.
        target: of the batch, `batch x ...`.
    """
    count = counted(loss, target)
    if isinstance(count, int):
        return mean * count
    return torch.where(count > 0, mean * count, torch.zeros_like(mean))


def counted(loss: str | Callable, target: Tensor) -> Tensor | int:
    """Return how many terms a mean loss has: labels that count, or else samples."""
    if loss == "cross_entropy" and target.dim() > 1:
        return (target != IGNORED).sum()
    return len(target)
