"""How much a step computes: what decides what is worth measuring."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from droptune.trainers.base import Task

#: Operations of a forward: so few take milliseconds on any machine, and what is spent on them
#: is mostly overhead, which the widest trainer shares among most members.
_SMALL = 2e8


def is_small(task: Task, members: int) -> bool:
    """Tell whether a step of so many members is cheap.

    It is counted and not timed: while other processes have the cores, no step is fast.
    """
    example = task.data.example()
    model = task.build(seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    each = counter.get_total_flops() / len(example)
    return each * task.batch_size * members <= _SMALL
