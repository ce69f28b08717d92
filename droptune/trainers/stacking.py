"""Optimisers over stacked tensors, with learning rate, weight decay and age for each member.

The arithmetic is torch's own (`torch.optim.adamw.adamw`, `torch.optim.sgd.sgd`, the fused
kernels). Members with equal settings and age are stepped by one call on a slice of the
stack; in a block without pruning that is all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from droptune.plan import Plan
from droptune.trainers.base import Task


@dataclass
class Pace:
    """How fast one member learns.

    Attributes:
        lr: highest learning rate.
        weight_decay: as in torch.
        age: steps taken.
    """

    lr: float
    weight_decay: float
    age: int = 0


def pace_of(task: Task, plan: Plan) -> Pace:
    """Return the pace of a new member: the task's, where its plan says nothing of it."""
    said = plan.training
    return Pace(said.get("lr", task.lr), said.get("weight_decay", task.weight_decay))


class StackedOptimizer(ABC):
    """Steps stacked parameters in place; a subclass gives the rule.

    Args:
        params: `members x ...` tensors, contiguous.
    """

    #: State tensors of the size of a parameter.
    buffers: tuple[str, ...]

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self.state = {name: [torch.zeros_like(p) for p in params] for name in self.buffers}

    def step(self, grads: Sequence[Tensor], paces: Sequence[Pace], rates: Sequence[float]) -> None:
        """Take one step.

        Args:
            grads: like `params`.
            paces: one a member.
            rates: the learning rate of this step, one a member.
        """
        # The fused kernel takes strides for granted, and would update the wrong elements.
        grads = [grad.contiguous() for grad in grads]
        keys = [(rate, p.weight_decay, p.age) for rate, p in zip(rates, paces, strict=True)]
        start = 0
        for (rate, decay, age), run in groupby(keys):
            stop = start + len(list(run))
            whole = stop - start == len(keys)
            rows = slice(None) if whole else slice(start, stop)
            self._update(rows, grads, rate, decay, age)
            start = stop

    @abstractmethod
    def _update(
        self, rows: slice, grads: Sequence[Tensor], lr: float, decay: float, age: int
    ) -> None:
        """Step the members `rows` of all parameters, which are `age` steps old."""

    def tensors(self) -> list[Tensor]:
        """Return all state tensors, in a fixed order."""
        return [tensor for name in self.buffers for tensor in self.state[name]]


class StackedAdamW(StackedOptimizer):
    """AdamW with torch's defaults (betas 0.9 and 0.999, eps 1e-8)."""

    buffers = ("exp_avg", "exp_avg_sq")

    def _update(
        self, rows: slice, grads: Sequence[Tensor], lr: float, decay: float, age: int
    ) -> None:
        count = len(self.params)
        ages = torch.full((count,), float(age), device=self.params[0].device)
        adamw(
            [p[rows] for p in self.params],
            [g[rows] for g in grads],
            [m[rows] for m in self.state["exp_avg"]],
            [v[rows] for v in self.state["exp_avg_sq"]],
            [],
            list(ages.unbind()),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=decay,
            eps=1e-8,
            maximize=False,
        )


class StackedSGD(StackedOptimizer):
    """SGD with momentum, as torch's (no dampening, no Nesterov)."""

    buffers = ("momentum_buffer",)

    def __init__(self, params: Sequence[Tensor], momentum: float) -> None:
        super().__init__(params)
        self.momentum = momentum

    def _update(
        self, rows: slice, grads: Sequence[Tensor], lr: float, decay: float, age: int
    ) -> None:
        sgd(
            [p[rows] for p in self.params],
            [g[rows] for g in grads],
            [m[rows] for m in self.state["momentum_buffer"]],
            foreach=True,
            weight_decay=decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def repeated(tensor: Tensor, width: int) -> Tensor:
    """Return `width` copies of a tensor, stacked on a new first axis."""
    return tensor[None].expand(width, *tensor.shape).clone(memory_format=torch.contiguous_format)


def width_for(members: int, most: int) -> int:
    """Return the stack's width for so many members: a power of two, at most `most`.

    Widths come from a short ladder, since a program is traced for each.
    """
    return min(1 << (members - 1).bit_length(), most) if members else 0
