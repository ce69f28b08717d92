"""Terms of the loss for the members of a block, who may differ in them or have none.

A step does what some member needs; the numbers are data, and 0 where a member does without.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from droptune.errors import ModelError
from droptune.install import another_pass
from droptune.kinds.noise import Part
from droptune.plan import Plan
from droptune.trainers.base import Loss, Task, checked_output, stacked_losses
from droptune.trainers.stacking import Pace
from droptune.trainers.terms import (
    Again,
    Knobs,
    Need,
    Smooth,
    as_it_is,
    descended,
    distance_of,
    need_of,
    numbers,
)


def needs_of(
    task: Task,
    rows: Sequence[int | None],
    plans: Mapping[int, Plan],
    paces: Mapping[int, Pace],
) -> tuple[tuple[Need, ...], Tensor]:
    """Return what a block's members need, in a fixed order, and their numbers to it.

    Args:
        task: what is trained.
        rows: the slot of each row of the stack, or None.
        plans: slot -> plan.
        paces: slot -> pace.

    Returns:
        The needs, and doubles, `needs x rows x 3`; empty where no member has a term.
    """
    found = {slot: need_of(plan, lambda: task.sites) for slot, plan in plans.items()}
    needs = tuple(sorted({need for need in found.values() if need is not None}))
    values = torch.zeros(len(needs), len(rows), 3, dtype=torch.float64)
    for row, slot in enumerate(rows):
        if slot is not None and found[slot] is not None:
            mine = numbers(plans[slot].term, task.progress(paces[slot].age))
            values[needs.index(found[slot]), row] = torch.tensor(mine, dtype=torch.float64)
    return needs, values


def again_stacked(
    model: nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    x: Tensor,
    part: Part,
    site: str | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the outputs of all members in a further pass, which leaves their buffers alone.

    Args:
        model: what is mapped.
        params: stacked, `members x ...`.
        buffers: stacked.
        x: the batch, shared.
        part: which streams the noise comes from.
        site: where masks act.
        mask: `members x samples x ...`.
    """

    def member(mine: dict, state: dict, *masks: Tensor) -> Tensor:
        with another_pass(model, part, site, *masks):
            return checked_output(functional_call(model, (mine, state), (x,)))

    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    masks = () if mask is None else (mask,)
    return torch.vmap(member, randomness="same")(params, copies, *masks)


def stacked_penalised(
    needs: Sequence[Need],
    values: Tensor,
    losses: Tensor,
    first: Tensor,
    again: Again,
    target: Tensor,
    by: str | Loss,
    samples: int,
    smooth: Smooth = as_it_is,
) -> Tensor:
    """Return what a step of each member descends; see `descended`.

    Args:
        needs: what the step does.
        values: the members' numbers, from `needs_of`.
        losses: of the first pass, one a member.
        first: its outputs, `members x samples x ...`.
        again: makes a further pass.
        target: of the batch, shared.
        by: the task's loss.
        samples: of the batch.
        smooth: losses and the outputs they are of -> losses with smoothed labels.
    """
    knobs = [Knobs(*mine.unbind(-1)) for mine in values.unbind()]
    return descended(
        losses,
        first,
        dict(zip(needs, knobs, strict=True)),
        again,
        lambda output: smooth(stacked_losses(by, output, target), output),
        lambda name, one, other: torch.vmap(distance_of(name, by))(one, other),
        (len(losses), samples),
    )


@contextmanager
def refuse_own_noise(gpus: Sequence[torch.device] | None) -> Iterator[None]:
    """Refuse a model that draws from torch's global generators, where there are terms.

    A second pass would move these generators on, for members without a term, too. Kinds of
    dropout have streams of their own.

    Args:
        gpus: where besides the CPU; None: all is allowed.

    Raises:
        ModelError: what ran inside has drawn.
    """
    if gpus is None:
        yield
        return
    before = _states(gpus)
    yield
    if not all(map(torch.equal, before, _states(gpus))):
        raise ModelError(
            "a term of the loss cannot be trained fused (the model draws random numbers of its "
            "own, which a second pass moves on for all members); use trainer='serial'"
        )


def _states(gpus: Sequence[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, gpus)]
