"""The table trainer: outcomes are looked up, or computed, instead of trained.

Published tables of trained networks, a simulator, a formula: whatever can say how a plan does
with a seed after an epoch. Search, store and verdict run over it unchanged, in milliseconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch

from droptune.errors import DroptuneError, PlanError, TrainingError
from droptune.plan import Plan
from droptune.trainers.base import (
    Saved,
    Task,
    Trainer,
    check_kinds,
    check_slot,
    check_taken,
    first_line,
)
from droptune.trainers.reported import ReportingTrainer, numbers
from droptune.trainers.saving import Block, saved_block

#: (plan, seed of the block, epoch from 1) -> metrics after that epoch, by name.
Outcome = Callable[[Plan, int, int], Mapping[str, Any]]


@dataclass
class _Member:
    plan: Plan
    age: int = 0
    last: Mapping[str, float] | None = None
    failed: str | None = None


class TableTrainer(ReportingTrainer):
    """Asks a function for the outcomes of members; see `Trainer` for the contract.

    The function is called as `outcome(plan, seed, epoch)`, with the epoch of the member,
    counted from 1, and returns a dict of metrics such as {"val_loss": 0.1}; "train_loss" and
    names that begin with "test_" mean what they mean to `FunctionTrainer`. The same arguments
    must give the same metrics. A member ends as failed where the function raises; an error of
    droptune's own ends the study.

    Example:
        >>> def outcome(plan, seed, epoch):
        ...     rates = tuple(plan[s].rate if s in plan else 0.0 for s in ("2", "5"))
        ...     return {"val_loss": table[rates][seed % 4]}
        >>> trainer = TableTrainer.of(outcome)
        >>> study = Study("table", model=build, example=x, trainer=trainer, epochs=1)

    Args:
        task: sites and kinds; its model, data and optimiser are not used.
        outcome: the function.
        slots: the most members at once.
        device: named in the store; nothing is on it.
    """

    name = "table"

    def __init__(
        self, task: Task, outcome: Outcome, slots: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        _check(outcome)
        self.task, self.outcome, self.slots = task, outcome, slots
        self.device = torch.device(device)
        self.clock = 0

    @classmethod
    def of(cls, outcome: Outcome) -> Callable[..., Trainer]:
        """Return what `Study(trainer=...)` takes: a maker of trainers that ask `outcome`."""
        _check(outcome)

        @wraps(outcome, updated=())  # the study's definition names the outcome
        def make(task: Task, slots: int | None, device: torch.device) -> TableTrainer:
            return cls(task, outcome, slots or 1, device)

        return make

    def start(self, slot: int, plan: Plan) -> None:
        check_kinds(plan, self.task.kinds)
        if plan.term is not None and plan.term.name not in self.task.terms:
            raise PlanError(f"{plan.term.name} is not among this task's terms; add it to terms")
        check_slot(slot, self.slots, self._members)
        self._members[slot] = _Member(plan)

    def copy(self, source: int, slot: int, plan: Plan) -> None:
        check_taken(source, self._members)
        self.start(slot, plan)
        self._members[slot] = replace(self._members[source], plan=plan)

    def stop(self, slot: int) -> None:
        check_taken(slot, self._members)
        del self._members[slot]

    def _advance(self, member: _Member) -> None:
        """Ask for one epoch; set the member's metrics, or why it failed."""
        member.age += 1
        if member.failed:
            return
        try:
            asked = self.outcome(member.plan, self._seed, member.age)
        except DroptuneError:
            raise
        except Exception as error:
            member.failed = f"the outcome raised {type(error).__name__}: {first_line(error)}"
            return
        member.last = numbers(asked, "the outcome is")

    def save(self) -> Saved:
        members = {
            slot: (m.plan, {"age": m.age, "last": m.last, "failed": m.failed})
            for slot, m in self._members.items()
        }
        return saved_block(self._seed, self.clock, members, lambda _: {})

    def restore(self, saved: Saved) -> None:
        block = Block.of(saved, self.slots)
        self.begin(block.seed, block.clock)
        for slot, plan in block.plans.items():
            self.start(slot, plan)
            said = block.members[slot]
            self._members[slot] = _Member(plan, said["age"], said["last"], said["failed"])


def _check(outcome: Any) -> None:
    if not callable(outcome):
        raise TrainingError(
            f"outcome is a {type(outcome).__name__}; give TableTrainer.of a function "
            "outcome(plan, seed, epoch) that returns a dict of metrics"
        )
