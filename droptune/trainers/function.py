"""The function trainer: the user's own training loop, one member at a time.

The loop is a generator `train(model, *, seed, device)`. It receives a model with the plan
applied and yields a dict of metrics after each epoch: Lightning, transformers, skorch,
reinforcement learning, anything that can pause once an epoch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from droptune.errors import PlanError, TrainingError
from droptune.install import advance, installed, seed_noise
from droptune.kinds import derive
from droptune.plan import Plan
from droptune.schedule import progress
from droptune.trainers.base import (
    Saved,
    Task,
    check_kinds,
    check_slot,
    check_taken,
    first_line,
)
from droptune.trainers.memory import is_out_of_memory
from droptune.trainers.reported import ReportingTrainer, numbers

Train = Callable[..., Iterator[Mapping[str, Any]]]


@dataclass
class _Member:
    plan: Plan
    epochs: Iterator[Mapping[str, Any]]
    model: nn.Module
    age: int = 0
    last: Mapping[str, float] | None = None
    failed: str | None = None


class FunctionTrainer(ReportingTrainer):
    """Trains members by a generator function; see `Trainer` for the contract.

    What the metrics' names mean stands in reported.py. A generator that ends early has trained
    to its end: its last metrics stand for the epochs left.

    Args:
        task: model, sites and epochs; its data, loss and optimiser are not used.
        train: the generator function, called with the model (on the device, plan applied),
            `seed` and `device`.
        slots: the most members at once; they take turns.
        device: given to the function.
    """

    name = "function"

    def __init__(
        self, task: Task, train: Train, slots: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.task, self.train, self.slots = task, train, slots
        self.device = torch.device(device)
        self.clock = 0

    def start(self, slot: int, plan: Plan) -> None:
        check_kinds(plan, self.task.kinds)
        if plan.term is not None:
            raise PlanError(
                f"train= computes its own loss, so droptune cannot add {plan.term.name} to it; "
                "leave the term out of the plan, or compute droptune.ConsistencyLoss in train="
            )
        if plan.training:
            raise PlanError(
                f"train= sets its own {', '.join(plan.training)}, so droptune cannot; leave "
                "training out of the plan"
            )
        check_slot(slot, self.slots, self._members)
        model = self.task.build(self._seed).to(self.device)
        for dropout in installed(model).values():
            dropout.set(plan.get(dropout.site))
        # The loop keeps its own order of data, so the noise has one stream a run.
        seed_noise(model, self._seed)
        try:
            epochs = self.train(model, seed=self._seed, device=self.device)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise TrainingError(
                f"train= raised {type(error).__name__}: {first_line(error)}; "
                "it is called as train(model, seed=..., device=...)"
            ) from error
        if not isinstance(epochs, Iterator):
            raise TrainingError(
                f"train= returns {type(epochs).__name__}; it must be a generator that yields a "
                "dict of metrics after each epoch"
            )
        self._members[slot] = _Member(plan, epochs, model)

    def copy(self, source: int, slot: int, plan: Plan) -> None:
        raise TrainingError(
            "train= keeps the state of its training to itself, so members cannot be copied; "
            "take another strategy than 'pbt'"
        )

    def stop(self, slot: int) -> None:
        check_taken(slot, self._members)
        member = self._members.pop(slot)
        close = getattr(member.epochs, "close", None)
        if close is not None:
            close()

    def _advance(self, member: _Member) -> None:
        """Run one epoch; set the member's metrics, or why it failed."""
        age, member.age = member.age, member.age + 1
        if member.failed:
            return
        advance(member.model, progress(age, self.task.epochs))
        with torch.random.fork_rng(self._gpus()):
            torch.manual_seed(derive(self._seed, "model", age))
            try:
                member.last = numbers(next(member.epochs), "train= yielded")
            except StopIteration:
                if member.last is None:
                    member.failed = "train= ended before its first yield; yield a dict of metrics"
            except TrainingError as error:
                member.failed = str(error)
            except (Exception, SystemExit) as error:
                if is_out_of_memory(error):
                    raise
                member.failed = f"train= raised {type(error).__name__}: {first_line(error)}"

    def save(self) -> None:
        """Return None: where a generator stands only its own process knows."""

    def restore(self, saved: Saved) -> None:
        raise TrainingError(
            "train= keeps the state of its training to itself, so members cannot be restored; "
            "start them again"
        )

    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []
