"""Optimisers over stacked tensors, with learning rate, weight decay and age for each member.

The arithmetic is torch's own (the fused kernel of `torch.optim.AdamW`, `torch.optim.sgd.sgd`).
Members with equal settings and age are stepped by one call on a slice of the stack; in a block
without pruning that is all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby

import torch
from torch import Tensor
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


def row_paces(rows: Sequence[int | None], paces: Mapping[int, Pace]) -> list[Pace]:
    """Return a pace for every row; a free row takes a neighbour's, to be stepped with it.

    Args:
        rows: the slot of each.
        paces: slot -> its member's.
    """
    found = [None if slot is None else paces[slot] for slot in rows]
    last = next(pace for pace in found if pace is not None)
    return [last := pace or last for pace in found]


@dataclass(frozen=True)
class Group:
    """Neighbouring members of equal pace, which they keep: they age together.

    Attributes:
        rows: theirs.
        pace: of one of them, for all.
    """

    rows: slice
    pace: Pace


def groups_of(paces: Sequence[Pace]) -> list[Group]:
    """Return the members in groups, as few as there can be; `paces` are one a member."""
    groups, start = [], 0
    for _, same in groupby(paces, key=astuple):
        members = list(same)
        groups.append(Group(slice(start, start + len(members)), members[0]))
        start += len(members)
    return groups


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

    def step(
        self, grads: Sequence[Tensor], groups: Sequence[Group], rates: Sequence[float]
    ) -> None:
        """Take one step.

        Args:
            grads: like `params`.
            groups: of all members; `groups_of`.
            rates: the learning rate of this step, one a group.
        """
        # The fused kernel takes strides for granted, and would update the wrong elements.
        stacks = [self.params, [grad.contiguous() for grad in grads], *self.state.values()]
        for group, rate in zip(groups, rates, strict=True):
            mine = stacks
            if len(groups) > 1:
                mine = [[tensor[group.rows] for tensor in stack] for stack in stacks]
            self._update(mine, rate, group.pace.weight_decay, group.pace.age)

    @abstractmethod
    def _update(self, stacks: list[list[Tensor]], lr: float, decay: float, age: int) -> None:
        """Step members that are `age` steps old: their parameters, gradients, and each state."""

    def tensors(self) -> list[Tensor]:
        """Return all state tensors, in a fixed order."""
        return [tensor for name in self.buffers for tensor in self.state[name]]


class StackedAdamW(StackedOptimizer):
    """AdamW with torch's defaults (betas 0.9 and 0.999, eps 1e-8)."""

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__(params)
        types = [param.dtype for param in self.params]
        # Kernels for GPUs take tensors of one type at a time.
        self._alike = [[i for i, t in enumerate(types) if t == one] for one in dict.fromkeys(types)]

    def _update(self, stacks: list[list[Tensor]], lr: float, decay: float, age: int) -> None:
        # `torch.optim.adamw.adamw` ends in this call; what it does before takes longer than
        # the arithmetic of small models.
        step = torch.full((), age + 1.0, dtype=torch.float32, device=stacks[0][0].device)
        for places in self._alike:
            params, grads, means, squares = ([stack[i] for i in places] for stack in stacks)
            torch._fused_adamw_(
                params,
                grads,
                means,
                squares,
                [],
                [step] * len(params),
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

    def _update(self, stacks: list[list[Tensor]], lr: float, decay: float, age: int) -> None:
        sgd(
            *stacks,
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
