"""The serial trainer: one member at a time, in plain PyTorch.

The reference that the fused trainer is tested against, and the fallback for models that
`torch.vmap` cannot map.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from droptune.data import Split, batches
from droptune.errors import ModelError
from droptune.install import advance, installed, seed_noise
from droptune.kinds import derive
from droptune.kinds.concrete import Concrete
from droptune.kinds.noise import Part
from droptune.plan import Plan
from droptune.trainers.base import (
    EVAL_BATCHES,
    Saved,
    Scores,
    Task,
    check_kinds,
    check_slot,
    check_taken,
    checked_output,
    correct,
    diverged,
    first_line,
    mean_loss,
)
from droptune.trainers.constants import plain_numbers
from droptune.trainers.ignored import counted, summed
from droptune.trainers.learned import learned_by, learned_metrics, learners, with_penalty
from droptune.trainers.losses import fit_metrics
from droptune.trainers.memory import is_out_of_memory
from droptune.trainers.reliability import Bins, reliability
from droptune.trainers.saving import Block, saved_block, state_name
from droptune.trainers.scored import KeptOutputs
from droptune.trainers.smoothing import share_of, smoothed
from droptune.trainers.stacking import Pace, pace_of
from droptune.trainers.statistics import recalibrate
from droptune.trainers.terms import Need, need_of, passed_again, penalised

_ADAMW = ("exp_avg", "exp_avg_sq")


@dataclass
class _Member:
    plan: Plan
    model: nn.Module
    numbers: list[tuple[str, str, float]]
    optimizer: torch.optim.Optimizer
    pace: Pace
    need: Need | None
    learners: dict[str, Concrete]


class SerialTrainer:
    """Trains the members of a block one after another; see `Trainer` for the contract.

    Args:
        task: what is trained.
        slots: the most members at once; each keeps a model of its own.
        device: where; data and members live there.
    """

    name = "serial"

    def __init__(self, task: Task, slots: int = 1, device: torch.device | str = "cpu") -> None:
        self.task, self.slots, self.device = task, slots, torch.device(device)
        self.clock = 0
        self._data = task.data.to(self.device)
        self._loss = mean_loss(task.loss)

    def begin(self, seed: int, clock: int = 0) -> None:
        self._seed, self.clock = seed, clock
        self._members: dict[int, _Member] = {}

    def start(self, slot: int, plan: Plan) -> None:
        check_kinds(plan, self.task.kinds)
        check_slot(slot, self.slots, self._members)
        need = need_of(plan, lambda: self.task.sites)
        share_of(plan, self.task.loss)  # refuses what has no labels
        model = self.task.build(self._seed).to(self.device)
        if self.device.type == "cpu":
            _channels_last(model)
        for dropout in installed(model).values():
            dropout.set(plan.get(dropout.site))
        pace = pace_of(self.task, plan)
        learning = learned_by(plan, learners(model))
        optimizer = self._make_optimizer(model, learning, pace)
        self._members[slot] = _Member(
            plan, model, plain_numbers(model), optimizer, pace, need, learning
        )

    def copy(self, source: int, slot: int, plan: Plan) -> None:
        check_taken(source, self._members)
        self.start(slot, plan)
        twin, member = self._members[source], self._members[slot]
        with torch.no_grad():
            weights = _weights(twin.model)
            for name, tensor in _weights(member.model).items():
                tensor.copy_(weights[name])
        for dropout in installed(member.model).values():
            dropout.set(plan.get(dropout.site))  # its rates came with the buffers
        # The state's tensors would be shared, not copied.
        member.optimizer.load_state_dict(deepcopy(twin.optimizer.state_dict()))
        member.pace = replace(twin.pace)

    def stop(self, slot: int) -> None:
        check_taken(slot, self._members)
        del self._members[slot]

    def epoch(self) -> Mapping[int, Scores]:
        result = {}
        for slot, member in self._members.items():
            started = time.perf_counter()
            with torch.random.fork_rng(self._gpus()):
                # The same numbers for every member, also for randomness of the model's own.
                torch.manual_seed(derive(self._seed, "model", self.clock))
                train_loss = self._train(member)
                if self.task.recalibrate:
                    self._recalibrate(member.model)
                metrics = self._score(member.model, self._data.val, "val")
            metrics |= learned_metrics(member.learners, _buffers(member.learners))
            seconds = time.perf_counter() - started
            failed = diverged({"train_loss": train_loss, **metrics})
            result[slot] = Scores(train_loss, metrics, seconds, failed)
        self.clock += bool(result)
        return result

    def test(self) -> Mapping[int, dict[str, float]]:
        if self._data.test is None:
            return {slot: {} for slot in self._members}
        result = {}
        for slot, member in self._members.items():
            with torch.random.fork_rng(self._gpus()):
                torch.manual_seed(derive(self._seed, "test"))
                result[slot] = self._score(member.model, self._data.test, "test")
        return result

    def fit(self, slot: int) -> dict[str, float]:
        with self._alone(slot, "fit") as output:
            return fit_metrics(self.task, self._data, self._seed, output)

    def reliability(self, slot: int) -> Bins:
        with self._alone(slot, "reliability") as output:
            return reliability(self.task, self._data.val, output)

    @contextmanager
    def _alone(self, slot: int, what: str) -> Iterator[Callable[[Tensor], Tensor]]:
        """Give a member's forward in eval mode; what it draws is a function of the block."""
        check_taken(slot, self._members)
        model = self._members[slot].model.eval()
        with torch.random.fork_rng(self._gpus()):
            torch.manual_seed(derive(self._seed, what))
            yield partial(self._output, model)

    def rehearse(self, members: int, steps: int) -> float:
        """Return seconds a step and member, over some steps; `begin` starts afresh."""
        self.begin(seed=0)
        for slot in range(members):
            self.start(slot, self.task.rehearsed)
        for member in self._members.values():
            self._train(member, 2)
        started = time.perf_counter()
        for member in self._members.values():
            self._train(member, steps)  # its loss is read back, so the device has finished
        return (time.perf_counter() - started) / (min(steps, self.task.steps) * members)

    def save(self) -> Saved | None:
        if any(plain_numbers(m.model) != m.numbers for m in self._members.values()):
            return None  # forwards count in attributes, which no file would hold
        members = {s: (m.plan, {"pace": vars(m.pace).copy()}) for s, m in self._members.items()}
        return saved_block(
            self._seed, self.clock, members, lambda slot: _all_tensors(self._members[slot])
        )

    def restore(self, saved: Saved) -> None:
        block = Block.of(saved, self.slots)
        self.begin(block.seed, block.clock)
        for slot, plan in block.plans.items():
            self.start(slot, plan)
            member = self._members[slot]
            member.pace = block.pace(slot)
            member.optimizer = self._make_optimizer(member.model, member.learners, member.pace)
            with torch.no_grad():
                block.fill(slot, _weights(member.model))
            _load_state(member, slot, block)

    def _make_optimizer(
        self, model: nn.Module, learning: Mapping[str, Concrete], pace: Pace
    ) -> torch.optim.Optimizer:
        params = [tensor.requires_grad_() for tensor in _trained(model, learning).values()]
        if self.task.optimizer == "sgd":
            momentum = self.task.momentum
            return torch.optim.SGD(
                params, pace.lr, momentum=momentum, weight_decay=pace.weight_decay
            )
        return torch.optim.AdamW(params, pace.lr, weight_decay=pace.weight_decay, fused=True)

    def _train(self, member: _Member, steps: int | None = None) -> float:
        """Train for one epoch or its first steps; return the mean loss of an epoch."""
        data, task = self._data.train, self.task
        member.model.train()
        advance(member.model, task.progress(member.pace.age))
        seed_noise(member.model, self._seed, self.clock)
        total = torch.zeros((), device=self.device)
        order = batches(len(data), task.batch_size, self._seed, self.clock, self.device)
        for rows in order[:steps]:
            lr = task.learning_rate(member.pace.lr, member.pace.age)
            for group in member.optimizer.param_groups:
                group["lr"] = lr
            output = self._output(member.model, data.x[rows])
            loss = self._loss(output, data.y[rows])
            member.optimizer.zero_grad()
            self._descended(member, loss, output, rows).backward()
            member.optimizer.step()
            member.pace.age += 1
            total += summed(task.loss, loss.detach(), data.y[rows])
        return (total / counted(task.loss, data.y)).item()

    def _recalibrate(self, model: nn.Module) -> None:
        x = self._data.train.x
        order = batches(len(x), self.task.batch_size, self._seed, self.clock, self.device)
        recalibrate(
            model, dict(model.named_buffers()), lambda rows: self._output(model, x[rows]), order
        )

    def _descended(self, member: _Member, loss: Tensor, output: Tensor, rows: Tensor) -> Tensor:
        """Return what a step descends: the first pass's loss, with what the plan adds to it."""
        loss = self._smoothed(member, loss, output, rows)
        if member.need is not None:
            loss = self._penalised(member, loss, output, rows)
        buffers, samples = _buffers(member.learners), len(self._data.train)
        return with_penalty(loss, member.learners, buffers, self.task.loss, samples)

    def _smoothed(self, member: _Member, loss: Tensor, output: Tensor, rows: Tensor) -> Tensor:
        share = share_of(member.plan, self.task.loss)
        if not share:
            return loss
        return smoothed(loss, output, self._data.train.y[rows], torch.tensor(share))

    def _penalised(self, member: _Member, loss: Tensor, output: Tensor, rows: Tensor) -> Tensor:
        x, y = self._data.train.x[rows], self._data.train.y[rows]

        def again(part: Part, *place: Any) -> Tensor:
            run = partial(passed_again, member.model, (part, *place))
            with torch.random.fork_rng(self._gpus()):
                # Further passes leave randomness of the model's own to the first one.
                torch.manual_seed(derive(self._seed, *part, self.clock, member.pace.age))
                return self._output(run, x)

        term, by = member.plan.term, self.task.loss
        progress = self.task.progress(member.pace.age)

        def smooth(loss: Tensor, output: Tensor) -> Tensor:
            return self._smoothed(member, loss, output, rows)

        given = loss, output, again, y, by, len(rows), smooth
        return penalised(term, member.need, progress, *given)

    def _output(self, model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
        if x.dim() == 4 and self.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        try:
            output = model(x)
        except (RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"the model fails on a batch of shape {tuple(x.shape)}: {first_line(error)}"
            ) from error
        return checked_output(output)

    @torch.no_grad()
    def _score(self, model: nn.Module, split: Split, prefix: str) -> dict[str, float]:
        model.eval()
        loss, right = torch.zeros((2,), device=self.device).unbind()
        classes, kept = False, KeptOutputs(self.task)
        size = EVAL_BATCHES * self.task.batch_size
        for x, y in zip(split.x.split(size), split.y.split(size), strict=True):
            output = self._output(model, x)
            kept.add(output)
            loss = loss + summed(self.task.loss, self._loss(output, y), y)
            hits = correct(self.task.loss, output, y)
            if hits is not None:
                classes, right = True, right + hits.sum()
        metrics = {f"{prefix}_loss": loss.item() / int(counted(self.task.loss, split.y))}
        if classes:
            metrics[f"{prefix}_accuracy"] = right.item() / len(split)
        return metrics | kept.scores(split.y, prefix)

    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []


def _channels_last(model: nn.Module) -> None:
    """Lay out convolutions over images so that on CPU they take two thirds of the time."""
    for parameter in model.parameters():
        if parameter.dim() == 4:  # `model.to(memory_format=...)` refuses five axes
            # Not `contiguous`: of one channel it keeps the strides, and the layers behind
            # such a convolution then run in the slow layout.
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def _buffers(kinds: Mapping[str, Concrete]) -> dict[str, Tensor]:
    """Return the buffers of kinds, by the names that they have in a model."""
    return {f"{path}.{n}": b for path, kind in kinds.items() for n, b in kind.named_buffers()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers of a model, by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _trained(model: nn.Module, learning: Mapping[str, Concrete]) -> dict[str, Tensor]:
    """Return what the optimiser trains, by name, in its order."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return params | {f"{path}.shift": kind.shift for path, kind in learning.items()}


def _all_tensors(member: _Member) -> dict[str, Tensor]:
    """Return parameters, buffers and optimiser state of a member, by name."""
    tensors = _weights(member.model)
    for name, tensor in _trained(member.model, member.learners).items():
        for what, value in member.optimizer.state.get(tensor, {}).items():
            if isinstance(value, Tensor):
                tensors[state_name(what, name)] = value
    return tensors


def _load_state(member: _Member, slot: int, block: Block) -> None:
    """Give a member's optimiser the state that was saved; a parameter never stepped has none."""
    whats = ("momentum_buffer",) if "momentum" in member.optimizer.defaults else _ADAMW
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, tensor) in enumerate(_trained(member.model, member.learners).items()):
        for what in whats:
            if block.has(slot, state_name(what, name)):
                found = block.tensor(slot, state_name(what, name), tensor)
                # A file keeps no strides, and the fused kernel wants the parameter's.
                state.setdefault(index, {})[what] = torch.empty_like(tensor).copy_(found)
        if index in state and whats == _ADAMW:
            # A stack counts its members' steps, not those of each parameter.
            step = torch.tensor(float(member.pace.age))
            block.fill(slot, {state_name("step", name): step})
            state[index]["step"] = step
    member.optimizer.load_state_dict({**member.optimizer.state_dict(), "state": state})
