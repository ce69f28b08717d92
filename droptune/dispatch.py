"""What a worker trains next: it claims trials, one worker of a study at a time.

All that is to be known stands in the store, so that it does not matter who asks: a trial that
is running there without a run that somebody trains was left behind. If its run had come to its
end, the trial is told; else whoever comes next trains it, under its number.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from droptune.design import Block
from droptune.members import NO_ROOM, End, Member, Members
from droptune.plan import Plan
from droptune.retry import again
from droptune.search import Asked, Search
from droptune.store import Claims, Store, Taken, Workers
from droptune.store.claims import ended
from droptune.watch import Clockwork

_TELLING = 5.0  # seconds from the end of a run to that of its trial, mostly far less


class Desk:
    """Where the workers of a study claim what they train.

    Args:
        store: an open one.
        study_id: in the store.
        name: of the study.
        clockwork: where time is counted.

    Attributes:
        claims: of the study.
    """

    def __init__(self, store: Store, study_id: int, name: str, clockwork: Clockwork) -> None:
        self.claims = Claims(store, study_id)
        self._store, self._study_id, self._name = store, study_id, name
        self._workers, self._clockwork = Workers(store), clockwork

    @contextmanager
    def alone(self) -> Iterator[Callable[[], None]]:
        """Keep the other workers out; what dead ones have left is free afterwards.

        Yields:
            see `lock.exclusive`; to be called before anything is claimed.
        """
        with self._clockwork("store"), self._store.exclusive(self._name) as still:
            self._workers.reap(self._study_id)
            yield still

    def others(self, workers: Collection[int | None]) -> set[int]:
        """Return which of these workers live, but for this one."""
        return self._workers.alive(workers) - {self._store.worker}

    def busy(self) -> int:
        """Return how many workers train runs of the study."""
        return self._workers.busy(self._study_id)


class Queue:
    """The trials of a search, as they come to be trained.

    Args:
        desk: where they are claimed.
        search: where they come from.
        trials: the total, with those that have ended.
        objectives: the metrics that decide.
        together: whether one worker trains them all, as a population.

    Attributes:
        elsewhere: whether another worker trained trials when last looked.
    """

    def __init__(
        self,
        desk: Desk,
        search: Search,
        trials: int,
        objectives: Sequence[str],
        together: bool = False,
    ) -> None:
        self._desk, self._search, self._trials = desk, search, trials
        self._objectives, self._together = objectives, together
        #: Run that has ended -> when its trial was first seen not to be told.
        self._untold: dict[int, float] = {}
        self.elsewhere = False

    def ready(self) -> bool:
        """Tell whether there is a trial to train now."""
        with self._desk.alone():
            live = self._look(own=())
            return self._may(live) and bool(self._search.orphans(live) or not self._search.over)

    @property
    def left(self) -> int:
        """How many trials of the budget have not ended."""
        return self._trials - self._search.finished

    def fill(self, members: Members, most: float = math.inf) -> None:
        """Claim trials for the free slots, and start them.

        Those that a worker left behind come first; where their states were kept, and no member
        trains yet, they go on together from there.
        """
        if not members.free or len(members) >= most:
            return
        again(lambda _repeated: self._claim(members, most))
        restored = members.start()
        for slot, epochs in restored.items():
            self._report_again(members[slot], epochs)
        if restored and not members.gone:  # the others join at the clock that is theirs now
            self.fill(members, most)

    def _claim(self, members: Members, most: float) -> None:
        with self._desk.alone() as still:
            live = self._look(members.trials)
            still()
            kept = self._kept(live, members.free) if not len(members) else ()
            for asked, run in kept:
                self._enter(members, asked, live, run)
            if members.restoring:
                return
            while members.free and len(members) < most and self._may(live):
                still()
                asked = self._search.ask(live)
                if asked is None:
                    break
                self._enter(members, asked, live)

    def _enter(
        self,
        members: Members,
        asked: Asked,
        live: set[int],
        before: Mapping[str, Any] | None = None,
    ) -> None:
        live.add(asked.number)
        try:
            members.enter(asked.plan, asked.name or "trial", asked, before)
        except Taken:
            self._search.release(asked.number)

    def _report_again(self, member: Member, epochs: int) -> None:
        """Report the epochs that a restored member has behind it; a pruner compares by them."""
        for epoch, metrics in self._desk.claims.curve(member.run, epochs):
            value = metrics.get(self._objectives[0])
            if value is not None:
                self._search.report(member.asked.number, epoch, value)

    def fork(self, members: Members, source: int, name: str, plan: Any) -> None:
        """Claim a trial for a copy of a member, if no trial has its plan yet."""

        def claim(_repeated: bool) -> None:
            with self._desk.alone() as still:
                self._look(members.trials)
                still()
                asked = self._search.fork(name, plan)
                if asked is not None:
                    members.fork(source, asked)

        again(claim)

    def tell(self, member: Member, end: End) -> None:
        """Tell how a trial ended, whose run is stored."""
        _tell(self._search, member.asked.number, end)

    def abandon(self, why: str) -> None:
        """End what other workers have left, for it will not be trained any more.

        Args:
            why: what is stored of it, and told.
        """
        with self._desk.alone():
            left = self._search.orphans(self._look(own=()))
            runs = self._desk.claims.last_runs(left) if left else []
            self._desk.claims.fail([run["id"] for run in runs], why)
            for number in left:
                self._search.adopt(number)
                _tell(self._search, number, End(-1, "failed", message=why))

    def _look(self, own: Collection[int]) -> set[int]:
        """Take over what others stored, tell what needs no training; return who is trained."""
        self._search.sync()
        live = self._desk.claims.trials()
        left = self._search.orphans(live)
        runs = [run for run in self._desk.claims.last_runs(left) if ended(run)] if left else []
        telling = self._desk.others({run["worker_id"] for run in runs}) if runs else set()
        for run in runs:
            end, since = self._end_of(run), self._untold.setdefault(run["id"], time.monotonic())
            if run["worker_id"] in telling and time.monotonic() - since < _TELLING:
                live.add(run["trial_number"])  # its worker is about to tell it
            elif end is not None:
                self._search.adopt(run["trial_number"])
                if end.state == "pruned":
                    self._search.recall(run["trial_number"])
                _tell(self._search, run["trial_number"], end)
        self.elsewhere = bool(live.difference(own))
        return live

    def _may(self, live: Collection[int]) -> bool:
        """Tell whether the budget, and the company that a population keeps, allow one more."""
        alone = not (self._together and self.elsewhere)
        return alone and self._search.finished + len(live) < self._trials

    def _end_of(self, run: Mapping[str, Any]) -> End | None:
        values = [(run["metrics"] or {}).get(name) for name in self._objectives]
        if run["state"] in ("failed", "pruned"):
            return End(-1, run["state"], message=run["message"])
        return End(-1, "complete", values) if None not in values else None

    def _kept(self, live: Collection[int], free: int) -> list[tuple[Asked, Mapping[str, Any]]]:
        """Return orphans whose states were kept together, each with its last run.

        Args:
            live: trials that are trained.
            free: how many are wanted at most.
        """
        if not self._may(live):
            return []
        left = self._search.orphans(live)
        runs = [r for r in self._desk.claims.last_runs(left) if r["checkpoint"]] if left else []
        together = [run for run in runs if run["checkpoint"] == runs[0]["checkpoint"]]
        room = min(free, self._trials - self._search.finished - len(live))
        return [(self._search.adopt(run["trial_number"]), run) for run in together[:room]]


class Arms:
    """The arms of a confirmation, as they come to be trained.

    Args:
        desk: where they are claimed.
        store: where the runs are.
        study_id: in the store.
        wanted: see `Loop.confirm`.

    Attributes:
        elsewhere: whether another worker trained arms when last looked.
    """

    def __init__(
        self,
        desk: Desk,
        store: Store,
        study_id: int,
        wanted: Callable[[int], Sequence[Block]],
    ) -> None:
        self._desk, self._store, self._study_id = desk, store, study_id
        self._wanted = wanted
        self.elsewhere = False

    def next(self) -> Block | None:
        """Return the first block with an arm that nobody trains; None: there is none now."""
        with self._desk.alone():
            live = self._live()
            self.elsewhere = bool(live)
            blocks = self._wanted(self._desk.busy())
        return next((block for block in blocks if self._free(block, live)), None)

    def ended(self, block: Block) -> int:
        """Return how many arms of a block have ended."""
        done = self._done()
        return sum((block.number, plan) in done for plan in block.arms.values())

    def claim(self, block: Block, members: Members) -> None:
        """Claim arms of a block for the free slots, and start them.

        Those that another worker left behind go on from where their states were kept, if they
        were; arms that begin do not train beside them, for their clock is another.
        """
        again(lambda _repeated: self._claim(block, members))
        members.start()

    def _claim(self, block: Block, members: Members) -> None:
        with self._desk.alone() as still:
            free = self._free(block, self._live())
            kept = self._kept(block, free)
            for arm, plan in list(free.items()):
                if members.free and (not kept or arm in kept):
                    still()
                    with suppress(Taken):
                        members.enter(plan, arm, before=kept.get(arm))

    def _free(self, block: Block, live: Collection[tuple[int, str, Plan]]) -> dict[str, Plan]:
        """Return the arms of a block that have not ended and are not in training."""
        done = self._done()
        names = {arm for number, arm, _ in live if number == block.number}
        plans = {plan for number, _, plan in live if number == block.number}
        return {
            arm: plan
            for arm, plan in block.arms.items()
            if (block.number, plan) not in done and arm not in names and plan not in plans
        }

    def _kept(self, block: Block, free: Mapping[str, Plan]) -> dict[str, Mapping[str, Any]]:
        """Return arm -> last run, of the free arms whose states were kept together."""
        runs = [
            run
            for run in self._desk.claims.last_arms(block.number)
            if run["checkpoint"] and free.get(run["arm"]) == Plan.from_json(run["plan"])
        ]
        return {r["arm"]: r for r in runs if r["checkpoint"] == runs[0]["checkpoint"]}

    def _live(self) -> list[tuple[int, str, Plan]]:
        arms = self._desk.claims.arms()
        return [(arm["block"], arm["arm"], Plan.from_json(arm["plan"])) for arm in arms]

    def _done(self) -> set[tuple[int, Plan]]:
        ended = self._store.confirm_runs(self._study_id)
        return {(run["block"], Plan.from_json(run["plan"])) for run in ended}


def _tell(search: Search, number: int, end: End) -> None:
    failed = "infeasible" if end.message == NO_ROOM else "fail"
    state = failed if end.state == "failed" else end.state
    values = end.values if end.state == "complete" else None
    search.tell(number, values, state, end.message)
