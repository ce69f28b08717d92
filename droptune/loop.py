"""The one loop: search until the budget is spent, then confirm on fresh blocks.

The same loop serves one slot and many. What is written at the end of an epoch: first the
rungs' values to Optuna, then curves and ended runs in one transaction of our own, then the
results to Optuna. A death in between leaves a trial running, and it is trained again under
its number; a trial that was told is never run again.
"""

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from droptune.errors import StudyError
from droptune.plan import Plan
from droptune.progress import Progress, Status
from droptune.search import Asked, Search
from droptune.store import Store
from droptune.trainers import Scores, Trainer, is_out_of_memory


@dataclass
class Clockwork:
    """Where the time of a study goes, in seconds by "training", "search" and "store"."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count the time of a `with` block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started


class Interrupt:
    """Turns the first Ctrl-C into a wish to stop at the end of the epoch; the second stops now.

    Outside the main thread, where signals cannot be caught, it never wishes.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.wished = False
        self._say = say

    def __enter__(self) -> "Interrupt":
        self._ours = threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = signal.signal(signal.SIGINT, self._wish)
        return self

    def __exit__(self, *error: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._before)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True
        self._say("stopping at the end of this epoch; Ctrl-C again stops at once")


@dataclass
class _Member:
    """A run that trains now."""

    run: int
    plan: Plan
    arm: str
    asked: Asked | None = None
    epochs: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _End:
    """How a run ended, and with which value of the objective."""

    slot: int
    state: str
    value: float | None = None
    message: str | None = None
    test: Mapping[str, float] | None = None


@dataclass
class Loop:
    """Runs a study's two phases over an open store.

    Args:
        study_id: in the store.
        store: where runs and curves go.
        objective: the metric that decides.
        epochs: length of a run.
        make_trainer: number of slots or "auto" -> a trainer.
        progress: is told how far it is.
        interrupt: is asked after every epoch whether to stop.
        clockwork: where time is counted.
    """

    study_id: int
    store: Store
    objective: str
    epochs: int
    make_trainer: Callable[[int | str], Trainer]
    progress: Progress
    interrupt: Interrupt
    clockwork: Clockwork

    def search(
        self,
        search: Search,
        seed: int,
        *,
        trials: int,
        deadline: float | None,
        rungs: frozenset[int],
        best: Callable[[], float | None],
    ) -> None:
        """Train trials in one block until the budget is spent.

        Args:
            search: where trials come from.
            seed: of the block.
            trials: the total, with those that ended in earlier runs of the command.
            deadline: `time.monotonic()` after which nothing goes on; None: no limit.
            rungs: epochs at which trials are compared.
            best: gives the best value so far.
        """
        if search.finished >= trials or (deadline is not None and time.monotonic() >= deadline):
            return
        with self.clockwork("training"):
            trainer = self.make_trainer("auto")
            trainer.begin(seed)
        self._begin_phase("search", trials, search)
        members: dict[int, _Member] = {}
        again: list[Asked] = []
        exhausted = False
        while True:
            while not exhausted and len(members) < trainer.slots:
                if search.finished + len(members) + len(again) >= trials and not again:
                    break
                with self.clockwork("search"):
                    asked = again.pop(0) if again else search.ask()
                exhausted = asked is None
                if asked is not None:
                    slot = next(s for s in range(trainer.slots) if s not in members)
                    arm = asked.name or "trial"
                    members[slot] = self._start(
                        trainer, slot, asked.plan, arm, seed, 0, "search", asked
                    )
            if not members:
                return
            try:
                with self.clockwork("training"):
                    scores = trainer.epoch()
            except Exception as error:
                if not is_out_of_memory(error) or trainer.slots == 1:
                    raise
                again = [member.asked for member in members.values()] + again
                trainer = self._narrower(trainer, members, seed)
                continue
            ends = self._judge(members, scores)
            ends += self._prune(search, members, scores, rungs, ends)
            late = deadline is not None and time.monotonic() >= deadline
            if late:
                ends += self._out_of_time(members, ends)
            self._record(trainer, members, scores, ends)
            with self.clockwork("search"):
                for end in ends:
                    self._tell(search, members.pop(end.slot).asked, end)
                self._best = best() if ends else self._best
            self._show(search, len(members), deadline)
            if late:
                return
            self._stop_if_wished(members)

    def confirm(self, arms: Mapping[str, Plan], blocks: Mapping[int, int]) -> int:
        """Train every arm to its end in each block; runs that are stored are not repeated.

        Args:
            arms: name -> plan.
            blocks: number of the block -> its seed.

        Returns:
            How many runs were trained.
        """
        done = {(run["block"], Plan.from_json(run["plan"])) for run in self._confirmed()}
        todo = {
            block: {arm: plan for arm, plan in arms.items() if (block, plan) not in done}
            for block in blocks
        }
        total = sum(map(len, todo.values()))
        if not total:
            return 0
        self._begin_phase("confirm", total, None)
        with self.clockwork("training"):
            trainer = self.make_trainer(max(map(len, todo.values())))
        ended = 0
        for block, missing in todo.items():
            waiting = list(missing.items())
            while waiting:
                group, waiting = waiting[: trainer.slots], waiting[trainer.slots :]
                try:
                    ended = self._block(trainer, dict(group), block, blocks[block], ended)
                except Exception as error:
                    if not is_out_of_memory(error) or trainer.slots == 1:
                        raise
                    trainer = self._narrower(trainer, {}, blocks[block])
                    waiting = group + waiting
        return total

    def _block(
        self, trainer: Trainer, arms: Mapping[str, Plan], block: int, seed: int, ended: int
    ) -> int:
        """Train arms side by side from clock 0; return how many runs have ended in all."""
        trainer.begin(seed)
        members = {
            slot: self._start(trainer, slot, plan, arm, seed, block, "confirm")
            for slot, (arm, plan) in enumerate(arms.items())
        }
        while members:
            with self.clockwork("training"):
                scores = trainer.epoch()
                ends = self._judge(members, scores)
                if any(end.state == "complete" for end in ends):
                    tests = trainer.test()
                    for end in ends:
                        end.test = tests.get(end.slot)
            self._record(trainer, members, scores, ends)
            for end in ends:
                del members[end.slot]
            ended += len(ends)
            self._show(None, len(members), None, ended)
            self._stop_if_wished(members)
        return ended

    def _confirmed(self) -> list[dict[str, Any]]:
        with self.clockwork("store"):
            return self.store.confirm_runs(self.study_id)

    # Members

    def _start(
        self,
        trainer: Trainer,
        slot: int,
        plan: Plan,
        arm: str,
        seed: int,
        block: int,
        phase: str,
        asked: Asked | None = None,
    ) -> _Member:
        with self.clockwork("training"):
            trainer.start(slot, plan)
        with self.clockwork("store"):
            run = self.store.start_run(
                self.study_id,
                phase=phase,
                arm=arm,
                plan=plan.to_json(),
                seed=seed,
                block=block,
                clock=trainer.clock,
                slot=slot,
                trainer=trainer.name,
                device=str(trainer.device),
                trial_number=asked.number if asked else None,
            )
        return _Member(run, plan, arm, asked)

    def _judge(self, members: Mapping[int, _Member], scores: Mapping[int, Scores]) -> list[_End]:
        """Count the epoch, and return the members that have diverged or are done."""
        ends = []
        for slot, score in scores.items():
            member = members[slot]
            member.epochs += 1
            member.seconds += score.seconds
            member.metrics = score.metrics
            self._epochs_done += 1
            if score.failed:
                message = f"{score.failed} at epoch {member.epochs}"
                ends.append(_End(slot, "failed", math.nan, message))
                continue
            if self.objective not in score.metrics:
                raise StudyError(
                    f"objective {self.objective!r} is not among the metrics "
                    f"({', '.join(score.metrics) or 'none'}); choose one of them"
                )
            if member.epochs >= self.epochs:
                ends.append(_End(slot, "complete", score.metrics[self.objective]))
        return ends

    def _prune(
        self,
        search: Search,
        members: Mapping[int, _Member],
        scores: Mapping[int, Scores],
        rungs: frozenset[int],
        ends: list[_End],
    ) -> list[_End]:
        ended = {end.slot for end in ends}
        pruned = []
        with self.clockwork("search"):
            for slot, score in scores.items():
                member = members[slot]
                if slot in ended or member.epochs not in rungs:
                    continue
                value = score.metrics[self.objective]
                # The control is what the verdict and later pruners compare with.
                stop = search.report(member.asked.number, member.epochs, value)
                if stop and member.arm != "no dropout":
                    pruned.append(_End(slot, "pruned"))
        return pruned

    def _out_of_time(self, members: Mapping[int, _Member], ends: list[_End]) -> list[_End]:
        ended = {end.slot for end in ends}
        return [
            _End(slot, "failed", None, "stopped: the time budget is used up")
            for slot in members
            if slot not in ended
        ]

    def _record(
        self,
        trainer: Trainer,
        members: Mapping[int, _Member],
        scores: Mapping[int, Scores],
        ends: list[_End],
    ) -> None:
        """Store the epoch of all members in one transaction, and free the slots that ended."""
        rows = [
            (members[slot].run, members[slot].epochs, score.train_loss, score.metrics)
            for slot, score in scores.items()
        ]
        with self.clockwork("store"), self.store.transaction():
            self.store.record(rows)
            for end in ends:
                member = members[end.slot]
                self.store.end_run(
                    member.run,
                    end.state,
                    seconds=member.seconds,
                    epochs=member.epochs,
                    message=end.message,
                    test=end.test,
                )
        for end in ends:
            trainer.stop(end.slot)

    def _tell(self, search: Search, asked: Asked, end: _End) -> None:
        state = "fail" if end.state == "failed" else end.state
        value = end.value if end.state == "complete" else None
        search.tell(asked.number, value, state, end.message)

    def _narrower(self, trainer: Trainer, members: dict[int, _Member], seed: int) -> Trainer:
        """Return a trainer of half the width; what trained when memory ran out starts again."""
        slots = max(trainer.slots // 2, 1)
        self.progress.message(
            f"out of memory at {trainer.slots} members at once; goes on with {slots}"
        )
        with self.clockwork("store"):
            self.store.interrupt_runs(self.study_id)
        members.clear()
        clock = trainer.clock
        narrower = self.make_trainer(slots)
        narrower.begin(seed, clock)
        return narrower

    def _stop_if_wished(self, members: Mapping[int, _Member]) -> None:
        if not self.interrupt.wished:
            return
        with self.store.transaction():
            for member in members.values():
                self.store.end_run(
                    member.run, "interrupted", seconds=member.seconds, epochs=member.epochs
                )
        raise KeyboardInterrupt

    # Progress

    def _begin_phase(self, phase: str, total: int, search: Search | None) -> None:
        self._phase, self._total = phase, total
        self._began, self._epochs_done = time.monotonic(), 0
        self._done_before = search.finished if search else 0
        self._best: float | None = None

    def _show(
        self,
        search: Search | None,
        running: int,
        deadline: float | None,
        done: int = 0,
    ) -> None:
        counts = search.counts() if search else None
        if counts:
            done = counts.complete + counts.pruned + counts.failed
        elapsed = time.monotonic() - self._began
        speed = self._epochs_done / elapsed if elapsed > 0 else None
        left = None
        if self._epochs_done:
            runs = max(self._total - self._done_before, 1)
            # Runs are the same length; what is pruned makes the estimate too long.
            part = self._epochs_done / (runs * self.epochs)
            left = max(elapsed / part - elapsed, 0.0)
        if deadline is not None:
            until = max(deadline - time.monotonic(), 0.0)
            left = until if left is None else min(left, until)
        self.progress.update(
            Status(
                phase=self._phase,
                done=done,
                total=self._total,
                running=running,
                pruned=counts.pruned if counts else 0,
                failed=counts.failed if counts else 0,
                best=self._best,
                objective=self.objective,
                epochs_per_second=speed,
                seconds_left=left,
                elapsed=elapsed,
            )
        )
