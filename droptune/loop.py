"""The one loop: search until the budget is spent, then confirm on fresh blocks.

The same loop serves one slot and many, and one worker and many: each runs it, and claims what it
trains (dispatch.py). What is written, in this order, and what a death right after it leaves
behind:

1. a trial is RUNNING in Optuna's tables, then its run is `running` in ours. A run whose worker
   is dead becomes `stale`, and its trial is claimed again under its number.
2. at a rung, the value goes to Optuna. It is written over when the trial trains again.
3. an epoch's curves and ended runs go to our tables in one transaction. A trial whose run
   ended there is told without being trained again.
4. the ends go to Optuna. A trial that was told is never run again.
5. now and then the members' states go to files, from which they go on.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from droptune.design import Block
from droptune.dispatch import Arms, Desk, Queue
from droptune.errors import StoreError
from droptune.keeping import Keeping
from droptune.members import End, MakeTrainer, Members
from droptune.population import Candidate, Move, Population
from droptune.progress import Progress
from droptune.search import Search
from droptune.space import AS_GIVEN, CONTROL
from droptune.store import Store
from droptune.trainers import Scores
from droptune.watch import Clockwork, Idle, Interrupt, Meter

_LOOK_EVERY = 2.0  # seconds between two looks at what others have spent
_LATE = "stopped: the time budget is used up"


@dataclass
class Loop:
    """Runs a study's two phases over an open store.

    Args:
        study_id: in the store.
        store: where runs and curves go.
        desk: where trials and arms are claimed.
        objectives: the metrics that decide; trials are compared by the first.
        epochs: length of a run.
        make_trainer: at most so many slots (None: as suits the search), block -> a trainer.
        progress: is told how far it is.
        interrupt: is asked after every epoch whether to stop.
        clockwork: where time is counted.
        idle: is called when others train all that is left.
        keeping: where the states of members are kept; None: nowhere.
        folds: how many blocks differ in their rows.
        unit: of the objective, or "".
        longest: seconds of training after which a run is stopped; None: never.
    """

    study_id: int
    store: Store
    desk: Desk
    objectives: Sequence[str]
    epochs: int
    make_trainer: MakeTrainer
    progress: Progress
    interrupt: Interrupt
    clockwork: Clockwork
    idle: Idle
    keeping: Keeping | None = None
    folds: int = 1
    unit: str = ""
    longest: float | None = None

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
        left = _Left(seconds, partial(self.store.search_seconds, self.study_id), self.clockwork)
        queue = Queue(self.desk, search, trials, self.objectives, population is not None)
        members, meter = None, self._meter("search", trials)
        begun = False  # and nobody has trained since
        while True:
            late = left(members) <= 0
            if members is not None and len(members):
                self._stop_if_wished(members)
            else:
                if members is None or late or self.interrupt.wished:
                    if not self._ready(queue, late):
                        if self._over(queue):
                            return
                        continue
                if members is None:
                    members = self._members("search", None)
                if not begun:  # without pruning all trials then meet the same clock
                    members.begin(seed, 0)
                    begun = True
            with self._interrupting(members):
                if not late:
                    queue.fill(members, _most(members, search, trials, population))
                if _release(members, search):
                    continue
                if len(members):
                    begun = False
                    self.idle.over()
                    self._epoch(members, queue, search, rungs, population, left, meter)
                elif self._over(queue):
                    return

    def _ready(self, queue: Queue, late: bool) -> bool:
        """Tell whether there is a trial to train; when the time is up, what was left has failed."""
        if late:
            queue.abandon(_LATE)
        ready = queue.ready() and not late
        if ready or queue.elsewhere:
            self._stop_if_wished(None)
        return ready

    def _over(self, queue: Queue) -> bool:
        """Wait for others, if there are any that train trials; else the search is over."""
        if queue.elsewhere:
            self.idle()
        return not queue.elsewhere

    def _epoch(
        self,
        members: Members,
        queue: Queue,
        search: Search,
        rungs: frozenset[int],
        population: Population | None,
        left: "_Left",
        meter: Meter,
    ) -> None:
        """Train the members of the search for an epoch, and let those go that end."""
        scores, ends = members.epoch()
        ends += self._pruned(search, members, scores, ends, rungs)
        if left(members) <= 0:
            ends += _out_of_time(members, ends)
        moves = self._moves(population, members, scores, ends, queue.left)
        ends += [End(move.loser, "pruned") for move in moves]
        ended = members.record(scores, ends)
        with self.clockwork("search"):
            for member, end in ended:
                queue.tell(member, end)
        for move in moves:
            if members.gone:  # memory ran out, and who was to be copied starts again
                break
            queue.fork(members, move.source, move.name, move.plan)
        _release(members, search)
        members.keep_if_due()
        meter.epoch(len(scores), [member.epochs for member, _ in ended])
        self._show(meter, search, members, left(members))

    def confirm(
        self, wanted: Callable[[int], Sequence[Block]], seed_of: Callable[[int], int]
    ) -> int:
        """Train blocks, every run to its end; runs that are stored are not repeated.

        Args:
            wanted: how many other workers train -> the blocks that are of use now, the first
                one first.
            seed_of: number of a block -> its seed.

        Returns:
            How many runs were trained.
        """
        members, width, meter = None, 0, None
        counts = {"done": 0, "failed": 0}
        arms = Arms(self.desk, self.store, self.study_id, wanted)
        while True:
            block = arms.next()
            if block is None and not arms.elsewhere:
                return counts["done"]
            self._stop_if_wished(None)
            if block is None:
                self.idle()
                continue
            self.idle.over()
            if meter is None:
                meter = self._meter("confirm", block.left - arms.ended(block))
            if len(block.arms) != width:
                members = None  # its memory is needed
                members, width = self._members("confirm", len(block.arms)), len(block.arms)
            with self._interrupting(members):
                members.begin(seed_of(block.number), block.number)
                arms.claim(block, members)
                self._confirm_together(members, meter, counts, block.note)

    def _confirm_together(
        self, members: Members, meter: Meter, counts: dict[str, int], note: str
    ) -> None:
        """Train the claimed arms of a block, all from clock 0, to their ends."""
        while len(members):
            self._stop_if_wished(members)
            scores, ends = members.epoch()
            ended = members.record(scores, ends) if scores or ends else []
            members.gone.clear()  # the next look at the block finds them
            counts["done"] += len(ended)
            counts["failed"] += sum(end.state == "failed" for _, end in ended)
            members.keep_if_due()
            meter.epoch(len(scores), [member.epochs for member, _ in ended])
            meter.show(running=members.ages, note=note, **counts)

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
                if not search.holds(member.asked.number):  # `record` will let it go
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

    def _stop_if_wished(self, members: Members | None) -> None:
        if self.interrupt.wished:
            if members is not None:
                members.keep()
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
            keeping=self.keeping,
            longest=self.longest,
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


class _Left:
    """How much training time of the search is left, in seconds, for all workers together.

    Args:
        seconds: the total; None: no limit.
        spent: returns what the runs in the store have taken.
        clockwork: where time is counted.
    """

    def __init__(
        self, seconds: float | None, spent: Callable[[], float], clockwork: Clockwork
    ) -> None:
        self._total = math.inf if seconds is None else seconds
        self._spent, self._clockwork = spent, clockwork
        self._looked = -math.inf
        self._known = self._mine = 0.0

    def __call__(self, members: Members | None) -> float:
        """Return what is left; what others have spent is looked up now and then."""
        if self._total == math.inf:
            return math.inf
        mine = members.seconds if members is not None else 0.0
        if time.monotonic() - self._looked > _LOOK_EVERY:
            with self._clockwork("store"):
                self._known, self._mine = self._spent(), mine
            self._looked = time.monotonic()
        return self._total - self._known - (mine - self._mine)


def _most(members: Members, search: Search, trials: int, population: Population | None) -> float:
    """Return how many members may train at once; a population is filled when it is empty."""
    if population is None:
        return math.inf
    if len(members):
        return len(members)
    counts = search.counts()
    # What a death left running was one population, and begins again as one.
    return max(population.size(trials - search.finished), counts.running)


def _release(members: Members, search: Search) -> bool:
    """Give up the trials whose members no longer train here; tell whether there were any.

    Whoever comes next takes them.
    """
    gone, members.gone = members.gone, []
    for member in gone:
        search.release(member.asked.number)
    return bool(gone)


def _out_of_time(members: Members, ends: list[End]) -> list[End]:
    ended = {end.slot for end in ends}
    return [End(slot, "failed", None, _LATE) for slot in members if slot not in ended]
