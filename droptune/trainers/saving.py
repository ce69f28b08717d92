"""How members are saved, and put back: one form for all trainers of droptune.

A member's tensors are saved under its slot and their names in the model, its optimiser's state
under `state`. A form that knows nothing of stacks can be restored at another width, by another
trainer, on another device, and in part.

    tensors    "3 0.weight", "3 state exp_avg 0.weight", ...
    rest       {"seed": 7, "clock": 4, "members": {"3": {"plan": ..., "pace": ...}}, ...}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from droptune.errors import DroptuneError, TrainingError
from droptune.plan import Plan
from droptune.trainers.base import Saved, Trainer, first_line
from droptune.trainers.stacking import Pace

STATE = "state"


def saved_by(trainer: Trainer) -> Saved | None:
    """Return what a trainer saves; None where it cannot, or has no such method.

    Raises:
        TrainingError: a trainer of the user's own fails, or returns something else.
    """
    save = getattr(trainer, "save", None)
    try:
        saved = None if save is None else save()
    except DroptuneError:
        raise
    except Exception as error:
        raise TrainingError(
            f"the trainer's save() raised {type(error).__name__}: {first_line(error)}; let it "
            "return None where members cannot be saved"
        ) from error
    if saved is not None and not isinstance(saved, Saved):
        raise TrainingError(
            f"the trainer's save() returns {type(saved).__name__}; it must return "
            "droptune.trainers.Saved, or None where members cannot be saved"
        )
    return saved


def restore_into(trainer: Trainer, saved: Saved) -> None:
    """Let a trainer put back what was saved; after an error `begin` must come next.

    Raises:
        TrainingError: it cannot: as for `Trainer.restore`, for want of memory, or because it is
            the user's own and fails.
        PlanError: as for `Trainer.start`.
    """
    try:
        trainer.restore(saved)
    except DroptuneError:
        raise
    except Exception as error:
        raise TrainingError(
            f"the trainer's restore() raised {type(error).__name__}: {first_line(error)}; what "
            "was saved starts again"
        ) from error


def part_of(saved: Saved, slots: Mapping[int, int]) -> Saved:
    """Return some of the members that a trainer of droptune's own saved, in other slots.

    Args:
        saved: any.
        slots: slot that a member was saved in -> slot where it is to go on.

    Raises:
        TrainingError: there is no such member, or two are to have one slot.
    """
    members = saved.rest.get("members", {})
    missing = [str(slot) for slot in slots if str(slot) not in members]
    if missing:
        there = ", ".join(members) or "none"
        raise TrainingError(f"no member was saved in slot {', '.join(missing)}; there are: {there}")
    if len(set(slots.values())) < len(slots):
        raise TrainingError(f"slots {sorted(slots.values())}: each member needs one of its own")
    tensors = {}
    for key, tensor in saved.tensors.items():
        slot, _, name = key.partition(" ")
        if int(slot) in slots:
            tensors[f"{slots[int(slot)]} {name}"] = tensor
    rest = {**saved.rest, "members": {str(n): members[str(old)] for old, n in slots.items()}}
    if "rows" in rest:
        rest["rows"] = [slots[slot] for slot in rest["rows"] if slot in slots]
    return Saved(tensors, rest)


def saved_block(
    seed: int,
    clock: int,
    members: Mapping[int, tuple[Plan, dict[str, Any]]],
    tensors: Callable[[int], Mapping[str, Tensor]],
    **more: Any,
) -> Saved:
    """Return a block as it is saved.

    Args:
        seed: of the block.
        clock: epochs so far.
        members: slot -> plan, and what else is known of a member, as JSON values.
        tensors: of the member in a slot, by name; they are copied.
        more: what else is known of the block, as JSON values.
    """
    kept = {
        f"{slot} {name}": tensor.detach().to("cpu", copy=True)
        for slot in members
        for name, tensor in tensors(slot).items()
    }
    said = {str(slot): {"plan": plan.to_json(), **rest} for slot, (plan, rest) in members.items()}
    return Saved(kept, {"seed": seed, "clock": clock, "members": said, **more})


@dataclass(frozen=True)
class Block:
    """A block as it was saved.

    Attributes:
        seed: of the block.
        clock: epochs so far.
        plans: slot -> plan.
        members: slot -> what else was said of the member.
        rows: the slots in the order of a stack, None where nobody was.
        tensors: of all members.
    """

    seed: int
    clock: int
    plans: dict[int, Plan]
    members: dict[int, dict[str, Any]]
    rows: list[int | None]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, saved: Saved, slots: int) -> "Block":
        """Read what was saved.

        Args:
            saved: by any trainer of droptune's own.
            slots: of the trainer that is to take it.

        Raises:
            TrainingError: a member's slot is not there, or this is no such block.
            PlanError: a plan is not valid.
        """
        rest = saved.rest
        try:
            members = {int(slot): dict(said) for slot, said in rest["members"].items()}
            plans = {slot: Plan.from_json(said["plan"]) for slot, said in members.items()}
            rows = list(rest.get("rows", members))
            block = cls(int(rest["seed"]), int(rest["clock"]), plans, members, rows, saved.tensors)
            fits = sorted(slot for slot in rows if slot is not None) == sorted(members)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _not_ours(f"{type(error).__name__}: {first_line(error)}") from error
        if not fits or min(members, default=0) < 0:
            raise _not_ours("its rows are not those of its members")
        if max(members, default=0) >= slots:
            raise TrainingError(
                f"members were saved in slots up to {max(members)}, this trainer has slots 0 to "
                f"{slots - 1}; restore fewer of them, or take a trainer with more slots"
            )
        return block

    def layout(self, width: int) -> list[int | None]:
        """Return who is in which row of a stack of this width; as saved, if that had it."""
        if len(self.rows) == width:
            return list(self.rows)
        kept = [slot for slot in self.rows if slot is not None]
        return kept + [None] * (width - len(kept))

    def pace(self, slot: int) -> Pace:
        """Return a member's pace."""
        try:
            said = self.members[slot]["pace"]
            return Pace(float(said["lr"]), float(said["weight_decay"]), int(said["age"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _not_ours(f"{type(error).__name__}: {first_line(error)}") from error

    def has(self, slot: int, name: str) -> bool:
        """Tell whether a tensor of a member was saved."""
        return f"{slot} {name}" in self.tensors

    def fill(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy what was saved of a member into its tensors; state that was not saved stays.

        Raises:
            TrainingError: as for `tensor`.
        """
        for name, mine in tensors.items():
            if self.has(slot, name) or not name.startswith(f"{STATE} "):
                mine.copy_(self.tensor(slot, name, mine))

    def tensor(self, slot: int, name: str, like: Tensor) -> Tensor:
        """Return a tensor of a member.

        Args:
            slot: of the member.
            name: of the tensor.
            like: what it is put into; shape and dtype must be the same.

        Raises:
            TrainingError: there is none, or it is of another shape or dtype.
        """
        found = self.tensors.get(f"{slot} {name}")
        if found is None:
            raise _not_ours(f"there is no {name}")
        if found.shape != like.shape or found.dtype != like.dtype:
            raise _not_ours(
                f"{name} has {found.dtype} {tuple(found.shape)}, here {like.dtype} "
                f"{tuple(like.shape)}"
            )
        return found


def state_name(what: str, name: str) -> str:
    """Return under which name a parameter's state of the optimiser is saved."""
    return f"{STATE} {what} {name}"


def stacked_states(
    buffers: Mapping[str, Sequence[Tensor]], trained: Sequence[str]
) -> dict[str, Tensor]:
    """Return the stacked state of an optimiser, by the names under which it is saved."""
    return {
        state_name(what, name): stack
        for what, stacks in buffers.items()
        for name, stack in zip(trained, stacks, strict=True)
    }


def _not_ours(why: str) -> TrainingError:
    return TrainingError(
        f"what was saved does not fit this task ({why}); start its members again, or go on with "
        "the model that they were saved with"
    )
