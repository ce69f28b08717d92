"""The fused trainer: many members as one batched model.

Parameters and buffers of all members are stacked on a leading axis and the model is mapped
over it (`torch.vmap` of `functional_call`). A rate is a buffer, so members differ in data
alone, and one shared stream of noise is thresholded at each member's own rate.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call

from droptune.data import Split, batches
from droptune.errors import ModelError
from droptune.install import SiteDropout, buffer_values, seed_noise
from droptune.kinds import derive
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
    stacked_losses,
)
from droptune.trainers.constants import same_constants
from droptune.trainers.hoisting import Stands
from droptune.trainers.ignored import counted, summed
from droptune.trainers.learned import learned_by, learned_metrics, learners, with_penalty
from droptune.trainers.losses import fit_metrics
from droptune.trainers.memory import keep_freed_memory
from droptune.trainers.products import fast_products
from droptune.trainers.program import Program
from droptune.trainers.reliability import Bins, reliability
from droptune.trainers.saving import Block, saved_block, stacked_states
from droptune.trainers.scored import KeptOutputs, further
from droptune.trainers.size import is_small
from droptune.trainers.smoothing import share_of, shares_of, smoothed
from droptune.trainers.stacked_terms import (
    again_stacked,
    needs_of,
    stacked_penalised,
)
from droptune.trainers.stacking import (
    Pace,
    StackedAdamW,
    StackedOptimizer,
    StackedSGD,
    groups_of,
    pace_of,
    repeated,
    row_paces,
    width_for,
)
from droptune.trainers.statistics import recalibrate
from droptune.trainers.terms import Need, need_of
from droptune.trainers.threads import Threads, rehearsed
from droptune.trainers.tracing import traced

_WAYS = 16  # programs kept for one shape of a batch, where what a forward reads differs
_FEW = 4  # of these, for a model whose batches mostly go one way


class FusedTrainer:
    """Trains the members of a block as one batched model; see `Trainer` for the contract.

    Args:
        task: what is trained.
        slots: the most members at once.
        device: where; data and members live there.

    Raises:
        ModelError: the model cannot be mapped by `torch.vmap`; the message names the reason.
    """

    name = "fused"

    def __init__(self, task: Task, slots: int, device: torch.device | str = "cpu") -> None:
        self.task, self.slots, self.device = task, slots, torch.device(device)
        self.clock = 0
        self._data = task.data.to(self.device)
        self._programs: dict[tuple, deque[Program]] = {}
        self._threads: dict[int, Threads] = {}  # by width, of steps that were rehearsed
        keep_freed_memory()

    def begin(self, seed: int, clock: int = 0) -> None:
        self._seed, self.clock = seed, clock
        model = self.task.build(seed).to(self.device)
        # Later blocks keep the first module: traced programs hold on to its noise, and to all
        # that is neither parameter nor buffer.
        if not hasattr(self, "_model") or not same_constants(model, self._model):
            self._model = model
            self._learners = learners(model)
            self._programs.clear()
        self._initial = {n: p.detach().clone() for n, p in model.named_parameters()}
        self._trained = [n for n, p in model.named_parameters() if p.requires_grad]
        self._trained += [f"{path}.shift" for path in self._learners]
        self._initial_buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
        self._kinds = {
            (module.site, kind): f"{path}.{kind}"
            for path, module in model.named_modules()
            if isinstance(module, SiteDropout)
            for kind in module.kinds
        }
        self._rows: list[int | None] = []
        self._plans: dict[int, Plan] = {}
        self._paces: dict[int, Pace] = {}
        self._stack(0)

    def start(self, slot: int, plan: Plan) -> None:
        self._check(plan)
        check_slot(slot, self.slots, self._plans)
        row = self._take_row(slot, plan, pace_of(self.task, plan))
        for name, stack in {**self._params, **self._buffers}.items():
            stack[row] = self._initial.get(name, self._initial_buffers.get(name))
        for state in self._optimizer.tensors():
            state[row] = 0
        self._set_rates(slot)

    def copy(self, source: int, slot: int, plan: Plan) -> None:
        check_taken(source, self._plans)
        self._check(plan)
        check_slot(slot, self.slots, self._plans)
        row = self._take_row(slot, plan, replace(self._paces[source]))
        twin, state = self._rows.index(source), self._optimizer.tensors()
        for stack in (*self._params.values(), *self._buffers.values(), *state):
            stack[row] = stack[twin]
        self._set_rates(slot)

    def _check(self, plan: Plan) -> None:
        check_kinds(plan, self.task.kinds)
        need_of(plan, lambda: self.task.sites)  # refuses what has no place
        share_of(plan, self.task.loss)  # and this what has no labels

    def _take_row(self, slot: int, plan: Plan, pace: Pace) -> int:
        """Give a new member a row of the stacks, and return it."""
        if None not in self._rows:
            self._resize(width_for(len(self._rows) + 1, self.slots))
        row = self._rows.index(None)
        self._rows[row], self._plans[slot], self._paces[slot] = slot, plan, pace
        return row

    def _set_rates(self, slot: int) -> None:
        """Set a member's rates, and settings, to those of the epoch it is in."""
        plan, row = self._plans[slot], self._rows.index(slot)
        progress = self.task.progress(self._paces[slot].age)
        for (site, kind), path in self._kinds.items():
            for name, value in buffer_values(kind, plan.get(site), progress).items():
                self._buffers[f"{path}.{name}"][row] = value

    def stop(self, slot: int) -> None:
        check_taken(slot, self._plans)
        self._rows[self._rows.index(slot)] = None
        del self._plans[slot], self._paces[slot]

    def epoch(self) -> Mapping[int, Scores]:
        started = time.perf_counter()
        if not self._plans:
            return {}
        self._resize(width_for(len(self._plans), self.slots))
        seed_noise(self._model, self._seed, self.clock)
        for slot, plan in self._plans.items():
            if plan.moves:
                self._set_rates(slot)
        with torch.random.fork_rng(self._gpus()):
            torch.manual_seed(derive(self._seed, "model", self.clock))
            kept = KeptOutputs(self.task)
            with self._some_threads():
                losses = self._train()
                if self.task.recalibrate:
                    self._recalibrate()
                totals = self._evaluated(self._data.val, kept)
            scores = kept.all_scores(totals, self._data.val.y, "val", self._rows)
        self.clock += 1
        members = {slot: row for row, slot in enumerate(self._rows) if slot is not None}
        seconds = (time.perf_counter() - started) / len(members)
        train, result = losses.tolist(), {}
        for slot, row in members.items():
            metrics = {name: values[row] for name, values in scores.items()}
            learned = learned_by(self._plans[slot], self._learners)
            metrics |= learned_metrics(learned, self._buffers, row)
            failed = diverged({"train_loss": train[row], **metrics})
            result[slot] = Scores(train[row], metrics, seconds, failed)
        return result

    def test(self) -> Mapping[int, dict[str, float]]:
        if self._data.test is None or not self._plans:
            return {slot: {} for slot in self._plans}
        with torch.random.fork_rng(self._gpus()):
            torch.manual_seed(derive(self._seed, "test"))
            kept = KeptOutputs(self.task)
            totals = self._evaluated(self._data.test, kept)
            scores = kept.all_scores(totals, self._data.test.y, "test", self._rows)
        return {
            slot: {name: values[row] for name, values in scores.items()}
            for row, slot in enumerate(self._rows)
            if slot is not None
        }

    def fit(self, slot: int) -> dict[str, float]:
        with self._alone(slot, "fit") as output:
            return fit_metrics(self.task, self._data, self._seed, output)

    def reliability(self, slot: int) -> Bins:
        with self._alone(slot, "reliability") as output:
            return reliability(self.task, self._data.val, output)

    @contextmanager
    def _alone(self, slot: int, what: str) -> Iterator[Callable[[Tensor], Tensor]]:
        """Give a member's forward in eval mode; what it draws is a function of the block."""
        check_taken(slot, self._plans)
        row, model = self._rows.index(slot), self._model.eval()
        mine = {name: p[row] for name, p in self._params.items()}
        mine |= {name: b[row].clone() for name, b in self._buffers.items()}
        with torch.random.fork_rng(self._gpus()):
            torch.manual_seed(derive(self._seed, what))
            yield lambda x: checked_output(functional_call(model, mine, (x,)))

    def rehearse(self, members: int, steps: int) -> float:
        """Return seconds a step and member, over some steps; `begin` starts afresh."""
        # Whatever is traced is traced before the clock starts; a model that cannot be scored
        # fused shows now and not at the end of the first epoch.
        self._first_steps(members, steps)
        if max(map(len, self._programs.values())) > _FEW:
            raise ModelError(
                "the model cannot be trained fused (its forward reads a number from a tensor, or "
                "the shape of one, that differs from batch to batch); use trainer='serial'"
            )
        run = partial(self._first_steps, members, steps)
        if self.device.type == "cpu" and is_small(self.task, members):
            seconds = rehearsed(run)
            self._threads = {len(self._rows): Threads(seconds)}
            return min(seconds.values()) / members
        return run()[0] / members

    def _some_threads(self) -> AbstractContextManager:
        """Choose how many threads train an epoch, if its steps are such as were rehearsed."""
        known = self._threads.get(len(self._rows))
        terms = any(plan.term for plan in self._plans.values())
        others = terms or self.task.recalibrate or shares_of(self._rows, self._plans) is not None
        return nullcontext() if known is None or others else known.epoch()

    def _first_steps(self, members: int, steps: int) -> tuple[float, list[Tensor]]:
        """Train for some steps from the start; return seconds a step, and what came of them."""
        self.begin(seed=0)
        for slot in range(members):
            self.start(slot, self.task.rehearsed)
        seed_noise(self._model, 0)
        with torch.random.fork_rng(self._gpus()):
            torch.manual_seed(0)
            started = time.perf_counter()
            losses = self._train(steps)
            losses.tolist()  # read back, so that the device has finished
            seconds = (time.perf_counter() - started) / min(steps, self.task.steps)
            ends = self._data.val.ends(EVAL_BATCHES * self.task.batch_size)
            totals = self._evaluated(ends, KeptOutputs(self.task))
        return seconds, [losses, *totals.values(), *self._stacks().values()]

    def save(self) -> Saved:
        members = {s: (p, {"pace": vars(self._paces[s]).copy()}) for s, p in self._plans.items()}
        stacks, rows = self._stacks(), list(self._rows)

        def tensors(slot: int) -> dict[str, Tensor]:
            return {name: stack[rows.index(slot)] for name, stack in stacks.items()}

        return saved_block(self._seed, self.clock, members, tensors, rows=rows)

    def restore(self, saved: Saved) -> None:
        block = Block.of(saved, self.slots)
        self.begin(block.seed, block.clock)
        for plan in block.plans.values():
            self._check(plan)
        self._stack(width_for(len(block.plans), self.slots))
        self._rows, self._plans = block.layout(len(self._rows)), block.plans
        self._paces = {slot: block.pace(slot) for slot in block.plans}
        stacks = self._stacks()
        for slot in block.plans:
            row = self._rows.index(slot)
            block.fill(slot, {name: stack[row] for name, stack in stacks.items()})

    def _stacks(self) -> dict[str, Tensor]:
        """Return all that members have, by the names under which it is saved."""
        states = stacked_states(self._optimizer.state, self._trained)
        return {**self._params, **self._buffers, **states}

    # Stacks

    def _stack(self, width: int) -> None:
        """Make stacks of the initial weights for so many members, none of them in use."""
        for program in chain(*self._programs.values()):
            program.forget()
        self._params = {n: repeated(p, width) for n, p in self._initial.items()}
        self._buffers = {n: repeated(b, width) for n, b in self._initial_buffers.items()}
        self._rows = [None] * width
        self._optimizer = self._make_optimizer()

    def _make_optimizer(self) -> StackedOptimizer:
        params = [{**self._params, **self._buffers}[name] for name in self._trained]
        if self.task.optimizer == "sgd":
            return StackedSGD(params, self.task.momentum)
        return StackedAdamW(params)

    def _resize(self, width: int) -> None:
        """Move the members into stacks of this width; free rows cost time, so few are kept."""
        if width == len(self._rows):
            return
        params, buffers = self._params, self._buffers
        state, rows = self._optimizer.tensors(), self._rows
        kept = [row for row, slot in enumerate(rows) if slot is not None]
        self._stack(width)
        pairs = [*zip(self._params.values(), params.values(), strict=True)]
        pairs += zip(self._buffers.values(), buffers.values(), strict=True)
        pairs += zip(self._optimizer.tensors(), state, strict=True)
        for new, old in pairs:
            new[: len(kept)] = old[kept]
        for place, row in enumerate(kept):
            self._rows[place] = rows[row]

    # Steps

    def _train(self, steps: int | None = None) -> Tensor:
        """Train for one epoch, or some of its steps; return each row's mean loss of an epoch."""
        data, task = self._data.train, self.task
        order = batches(len(data), task.batch_size, self._seed, self.clock, self.device)
        groups = groups_of(row_paces(self._rows, self._paces))
        total = torch.zeros(len(self._rows), device=self.device)
        needs, values = needs_of(task, self._rows, self._plans, self._paces)
        shares = shares_of(self._rows, self._plans)
        knobs = [values.to(self.device)] if needs else []
        knobs += [] if shares is None else [shares.to(self.device)]
        self._model.train()
        if steps and 1 < steps < len(order):  # the last batch may be of another shape
            order = (*order[: steps - 1], order[-1])
        for rows in order[:steps]:
            batch = data.x.index_select(0, rows), data.y.index_select(0, rows), *knobs
            loss, *grads = self._run("train", *batch, needs=needs)
            rates = [task.learning_rate(group.pace.lr, group.pace.age) for group in groups]
            self._optimizer.step(grads, groups, rates)
            for pace in self._paces.values():
                pace.age += 1
            total += summed(task.loss, loss, batch[1])
        return total / counted(task.loss, data.y)

    def _evaluated(self, split: Split, kept: KeptOutputs) -> dict[str, Tensor]:
        """Return loss and hits of each row, summed over a split; `kept` receives the outputs."""
        self._model.eval()
        width = len(self._rows)
        totals: dict[str, Tensor] = {}
        size = EVAL_BATCHES * self.task.batch_size
        for x, y in zip(split.x.split(size), split.y.split(size), strict=True):
            loss, *rest = self._run("eval", x, y)
            if kept.wanted:
                kept.add(rest.pop())
            sums = {"loss": summed(self.task.loss, loss, y)}
            if rest:
                sums["accuracy"] = rest[0]
            for name, value in sums.items():
                totals[name] = totals.get(name, torch.zeros(width, device=self.device)) + value
        return totals

    def _recalibrate(self) -> None:
        data = self._data.train
        order = batches(len(data), self.task.batch_size, self._seed, self.clock, self.device)

        def forward(rows: Tensor) -> None:
            self._run("measure", data.x[rows], data.y[rows])

        recalibrate(self._model, self._buffers, forward, order)

    def _run(self, mode: str, *batch: Tensor, needs: tuple[Need, ...] = ()) -> list[Tensor]:
        """Run the program of all members for a batch; where none holds, trace one."""
        flat = *self._params.values(), *self._buffers.values(), *batch
        key = (mode, len(self._rows), batch[0].shape, needs, len(batch))
        known = self._programs.setdefault(key, deque(maxlen=_WAYS))
        program = next((one for one in known if one.holds(*flat)), None)
        if program is None:
            step = partial(self._train_step, needs) if mode == "train" else self._eval_step
            standing = self._standing()
            program = traced(step, flat, standing, self._model, self._gpus(), bool(needs))
            known.appendleft(program)
        with fast_products(self.device):
            return program(*flat)

    def _standing(self) -> list[Stands]:
        """Tell what of the stacks is the same at the next step, in their order."""
        # What a model keeps may change unseen: BatchNorm's statistics do, without a new version.
        ours = {name for name in self._buffers if name.rpartition(".")[0] in self._kinds.values()}
        ours -= {*self._trained}
        names = (*self._params, *self._buffers)
        return [Stands.VALUE if name in ours else Stands.MEMORY for name in names]

    def _named(self, flat: tuple[Tensor, ...]) -> tuple[dict, dict, tuple[Tensor, ...]]:
        """Return parameters and buffers by name, and what comes behind them."""
        params = dict(zip(self._params, flat, strict=False))
        rest = flat[len(params) :]
        buffers = dict(zip(self._buffers, rest, strict=False))
        return params, buffers, rest[len(buffers) :]

    def _forward(self, params: dict, buffers: dict, x: Tensor) -> Tensor:
        """Return the outputs of all members."""
        mapped = torch.vmap(
            lambda p, b: checked_output(functional_call(self._model, (p, b), (x,))),
            randomness="same",
        )
        return mapped(params, buffers)

    def _train_step(self, needs: tuple[Need, ...], *flat: Tensor) -> list[Tensor]:
        params, buffers, (x, y, *knobs) = self._named(flat)
        trained = [{**params, **buffers}[name].requires_grad_() for name in self._trained]
        output = self._forward(params, buffers, x)
        losses = stacked_losses(self.task.loss, output, y)
        values, shares = knobs[: bool(needs)], knobs[bool(needs) :]

        def smooth(losses: Tensor, output: Tensor) -> Tensor:
            return smoothed(losses, output, y, *shares) if shares else losses

        total = smooth(losses, output)
        if needs:
            again = partial(again_stacked, self._model, params, buffers, x)
            given = *values, total, output, again, y, self.task.loss, len(x), smooth
            total = stacked_penalised(needs, *given)
        size = len(self._data.train)
        total = with_penalty(total, self._learners, buffers, self.task.loss, size)
        # A parameter that the forward does not use gets a gradient of zero.
        return [losses, *torch.autograd.grad(total.sum(), trained, materialize_grads=True)]

    def _eval_step(self, *flat: Tensor) -> list[Tensor]:
        with torch.no_grad():
            params, buffers, (x, y) = self._named(flat)
            output = self._forward(params, buffers, x)
            right = correct(self.task.loss, output, y, stacked=True)
            losses = stacked_losses(self.task.loss, output, y)
        hits = [] if right is None else [right.sum(1)]
        return [losses, *hits, *([output] if further(self.task) else [])]

    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []
