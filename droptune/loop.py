"""The one loop: search until the budget is spent, then confirm on fresh blocks.

The same loop serves one slot and many. What is written, in this order, and what a death
right after it leaves behind:

1. a trial is RUNNING in Optuna's tables, then its run is `running` in ours. The trial is
   asked for again under its number; a run that is left over becomes `interrupted`.
2. at a rung, the value goes to Optuna. It is written over when the trial trains again.
3. an epoch's curves and ended runs go to our tables in one transaction. A trial whose run
   ended there is told without being trained again.
4. the ends go to Optuna. A trial that was told is never run again.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from droptune.design import Block
from droptune.errors import StoreError
from droptune.members import End, MakeTrainer, Member, Members
from droptune.plan import Plan
from droptune.population import Candidate, Move, Population
from droptune.progress import Progress
from droptune.search import Asked, Search
from droptune.space import AS_GIVEN, CONTROL
from droptune.store import Store
from droptune.trainers import Scores
from droptune.watch import Clockwork, Interrupt, Meter


@dataclass
class Loop:
    """Runs a study's two phases over an open store.

    Args:
        study_id: in the store.
        store: where runs and curves go.
        objectives: the metrics that decide; trials are compared by the first.
        epochs: length of a run.
        make_trainer: at most so many slots (None: as suits the search), block -> a trainer.
        progress: is told how far it is.
        interrupt: is asked after every epoch whether to stop.
        clockwork: where time is counted.
        folds: how many blocks differ in their rows.
        unit: of the objective, or "".
    """

    study_id: int
    store: Store
    objectives: Sequence[str]
    epochs: int
    make_trainer: MakeTrainer
    progress: Progress
    interrupt: Interrupt
    clockwork: Clockwork
    folds: int = 1
    unit: str = ""

    def search(
        self,
        search: Search,
        seed: int,
        *,
        trials: int,
        seconds: float | None = None,
        rungs: frozenset[int] = frozenset(),
        population: Population | None = None,
    ) -> None:
        """Train trials in one block until the budget is spent.

        Args:
            search: where trials come from.
            seed: of the block.
            trials: the total, with those that ended in earlier runs of the command.
            seconds: of training, a total too; None: no limit. What trains when they are
                used up has failed.
            rungs: epochs at which trials are compared.
            population: trials train as one, in which the best replace the worst; None: each
                trains for itself.
        """
        left = self._seconds_left(seconds)
        queue = _Queue(search, trials, self._ended_untold(search), self.clockwork)
        if left <= 0 or not queue.prepare():
            return
        meter = self._meter("search", trials)
        members = self._members("search", None)
        members.begin(seed, 0)
        late = False
        with self._interrupting(members):
            while not late:
                self._stop_if_wished(members)
                _fill(members, queue, _most(members, search, trials, population))
                if not len(members):
                    return
                scores, ends = members.epoch()
                ends += self._pruned(search, members, scores, ends, rungs)
                late = members.seconds >= left
                if late:
                    ends += _out_of_time(members, ends)
                moves = self._moves(population, members, scores, ends, trials - search.finished)
                ends += [End(move.loser, "pruned") for move in moves]
                ended = members.record(scores, ends)
                with self.clockwork("search"):
                    for member, end in zip(ended, ends, strict=True):
                        _tell(search, member.asked, end)
                _fork(members, search, moves)
                meter.epoch(len(scores), [member.epochs for member in ended])
                self._show(meter, search, members, left)

    def confirm(self, blocks: Iterable[Block], seed_of: Callable[[int], int]) -> int:
        """Train blocks, every run to its end; runs that are stored are not repeated.

        Args:
            blocks: the next one is asked for when the one before has ended.
            seed_of: number of a block -> its seed.

        Returns:
            How many runs were trained.
        """
        with self.clockwork("store"):
            stored = self.store.confirm_runs(self.study_id)
        done = {(run["block"], Plan.from_json(run["plan"])) for run in stored}
        members, width, meter = None, 0, None
        counts = {"done": 0, "failed": 0}
        for block in blocks:
            missing = [item for item in block.arms.items() if (block.number, item[1]) not in done]
            if not missing:
                continue
            if meter is None:
                ended = len(block.arms) - len(missing)
                meter = self._meter("confirm", block.left - ended)
            if len(block.arms) != width:
                members = None  # its memory is needed
                members, width = self._members("confirm", len(block.arms)), len(block.arms)
            with self._interrupting(members):
                while missing:  # a trainer with few slots takes several turns
                    members.begin(seed_of(block.number), block.number)
                    missing = self._confirm_together(members, missing, meter, counts, block.note)
        return counts["done"]

    def _confirm_together(
        self,
        members: Members,
        arms: list[tuple[str, Plan]],
        meter: Meter,
        counts: dict[str, int],
        note: str,
    ) -> list[tuple[str, Plan]]:
        """Train as many arms as there are slots, from clock 0; return those still to train."""
        waiting = deque(arms)
        while waiting and members.free and not members.lost:
            arm, plan = waiting.popleft()
            members.start(plan, arm)
        while len(members):
            self._stop_if_wished(members)
            scores, ends = members.epoch()
            if not scores:
                break
            ended = members.record(scores, ends)
            counts["done"] += len(ends)
            counts["failed"] += sum(end.state == "failed" for end in ends)
            meter.epoch(len(scores), [member.epochs for member in ended])
            meter.show(running=members.ages, note=note, **counts)
        lost, members.lost = members.lost, []
        return [(member.arm, member.plan) for member in lost] + list(waiting)

    def _seconds_left(self, seconds: float | None) -> float:
        if seconds is None:
            return float("inf")
        with self.clockwork("store"):
            return seconds - self.store.search_seconds(self.study_id)

    def _ended_untold(self, search: Search) -> dict[int, End]:
        """Return trial number -> end, of runs that ended but were not told before a death."""
        if not search.counts().running:
            return {}
        with self.clockwork("store"):
            runs = self.store.search_runs(self.study_id)
        return {run["trial_number"]: end for run in runs if (end := self._end_of(run))}

    def _end_of(self, run: Mapping[str, Any]) -> End | None:
        values = [(run["metrics"] or {}).get(name) for name in self.objectives]
        if run["state"] == "failed":
            return End(-1, "failed", message=run["message"])
        return End(-1, "complete", values) if None not in values else None

    def _pruned(
        self,
        search: Search,
        members: Members,
        scores: Mapping[int, Scores],
        ends: list[End],
        rungs: frozenset[int],
    ) -> list[End]:
        """Report to the pruner, and return the ends of the members that it stops."""
        ended = {end.slot for end in ends}
        pruned = []
        with self.clockwork("search"):
            for slot, score in scores.items():
                member = members[slot]
                if slot in ended or member.epochs not in rungs:
                    continue
                value = score.metrics[self.objectives[0]]
                stop = search.report(member.asked.number, member.epochs, value)
                # Both are what the verdict, and the control what later pruners compare with.
                if stop and member.arm not in (CONTROL, AS_GIVEN):
                    pruned.append(End(slot, "pruned"))
        return pruned

    def _moves(
        self,
        population: Population | None,
        members: Members,
        scores: Mapping[int, Scores],
        ends: list[End],
        left: int,
    ) -> list[Move]:
        """Return which members give way to copies of others, as far as trials are left."""
        ended = {end.slot for end in ends}
        ages: dict[int, list[Candidate]] = {}
        for slot, score in scores.items() if population is not None else ():
            member, value = members[slot], score.metrics.get(self.objectives[0])
            if slot not in ended and member.asked is not None and value is not None:
                number = member.asked.number
                found = Candidate(slot, number, member.arm, member.plan, value)
                ages.setdefault(member.epochs, []).append(found)
        moves: list[Move] = []
        for age, group in ages.items():
            moves += population.moves(age, group, left - len(members) - len(moves))
        return moves

    def _stop_if_wished(self, members: Members) -> None:
        if self.interrupt.wished:
            members.interrupt()
            raise KeyboardInterrupt

    @contextmanager
    def _interrupting(self, members: Members) -> Iterator[None]:
        """Store that the members were interrupted if an error ends the block.

        After an error of the store, or a second Ctrl-C in the middle of a transaction, nothing
        can be written; the next call finds such runs and marks them.
        """
        try:
            yield
        except StoreError:
            raise
        except Exception:
            members.interrupt()
            raise

    def _members(self, phase: str, most: int | None) -> Members:
        return Members(
            self.store,
            self.study_id,
            phase=phase,
            objectives=self.objectives,
            epochs=self.epochs,
            make_trainer=self.make_trainer,
            folds=self.folds,
            most=most,
            clockwork=self.clockwork,
            say=self.progress.message,
        )

    def _meter(self, phase: str, total: int) -> Meter:
        return Meter(self.progress, phase, self.objectives[0], self.epochs, total)

    def _show(self, meter: Meter, search: Search, members: Members, left: float) -> None:
        with self.clockwork("search"):
            counts, best, ahead = search.counts(), search.best(), search.outlook()
        meter.show(
            done=counts.complete + counts.pruned + counts.failed,
            running=members.ages,
            pruned=counts.pruned,
            failed=counts.failed,
            best=best[2] if best else None,
            seconds_left=max(left - members.seconds, 0.0) if left < float("inf") else None,
            note=ahead.line(self.unit) if ahead else "",
        )


class _Queue:
    """Trials to train: those that must start again, then what the search asks for.

    Args:
        search: where trials come from.
        trials: the total, with those that have ended.
        untold: ends of trials that need not be trained again, by number.
        clockwork: where time is counted.
    """

    def __init__(
        self, search: Search, trials: int, untold: Mapping[int, End], clockwork: Clockwork
    ) -> None:
        self._search, self._trials, self._untold = search, trials, untold
        self._clockwork = clockwork
        self._waiting: deque[Asked] = deque()

    def prepare(self) -> bool:
        """Get the first trial ready; return whether there is one."""
        asked = self.next(0)
        if asked is not None:
            self._waiting.append(asked)
        return asked is not None

    def next(self, running: int) -> Asked | None:
        """Return the next trial, or None if nothing is left.

        Args:
            running: how many members train now.
        """
        if self._waiting:
            return self._waiting.popleft()
        while self._search.finished + running < self._trials:
            with self._clockwork("search"):
                asked = self._search.ask()
                if asked is None or asked.number not in self._untold:
                    return asked
                _tell(self._search, asked, self._untold[asked.number])
        return None

    def again(self, members: list[Member]) -> None:
        """Put the trials of lost members at the front."""
        self._waiting.extendleft(member.asked for member in reversed(members))


def _most(members: Members, search: Search, trials: int, population: Population | None) -> float:
    """Return how many members may train at once; a population is filled when it is empty."""
    if population is None:
        return math.inf
    if len(members) or members.lost:
        return len(members) + len(members.lost)
    counts = search.counts()
    # What a death left running was one population, and begins again as one.
    return max(population.size(trials - search.finished), counts.running)


def _fork(members: Members, search: Search, moves: Sequence[Move]) -> None:
    """Put copies into the slots that became free for them."""
    for move in moves:
        if members.lost:  # memory ran out, and who was to be copied starts again
            return
        asked = search.fork(move.name, move.plan)
        if asked is not None:
            members.fork(move.source, asked)


def _fill(members: Members, queue: _Queue, most: float) -> None:
    """Start trials in the free slots; those that were lost start again."""
    while True:
        lost, members.lost = members.lost, []
        queue.again(lost)
        if not members.free or len(members) >= most or (asked := queue.next(len(members))) is None:
            return
        members.start(asked.plan, asked.name or "trial", asked)


def _out_of_time(members: Members, ends: list[End]) -> list[End]:
    ended = {end.slot for end in ends}
    message = "stopped: the time budget is used up"
    return [End(slot, "failed", None, message) for slot in members if slot not in ended]


def _tell(search: Search, asked: Asked, end: End) -> None:
    state = "fail" if end.state == "failed" else end.state
    values = end.values if end.state == "complete" else None
    search.tell(asked.number, values, state, end.message)
