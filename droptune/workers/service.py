"""`droptune worker`: takes studies from the queue of a database, until it is told to stop.

It trains nothing itself. Each study gets a process of its own at a seat (child.py), so that code
that was changed since is loaded anew, memory comes back, and a crash hurts nothing. Which study is
next is one rule: the oldest in the queue that does not rest. A study rests when nothing is free in
it, when it failed here, or when the database was away; one that this worker may not or cannot
import is left for others.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from droptune.errors import DroptuneError, SchemaError, StoreError
from droptune.lease import Lease
from droptune.progress import SilentProgress, Status, describe
from droptune.store import Store
from droptune.store import submissions as queue
from droptune.workers.allowed import NotAllowed, check_options, check_target
from droptune.workers.crew import Crew, Deaths, Signals, cause
from droptune.workers.devices import Seat
from droptune.workers.display import Display
from droptune.workers.process import Worker

POLL = 5.0
"""Seconds between two looks at the queue."""
LINGER = 20.0
"""Seconds that a process waits for something to become free in its study, before another one."""
REST = 20.0
"""Seconds before a study in which nothing was free is tried again."""
TRIES = 3
"""How often a study is tried whose code fails, in a way that may be this machine's."""
_SAY_EVERY = 60.0  # seconds, of a study that goes on
_LONGEST = 300.0  # seconds to wait for a database


@dataclass(frozen=True)
class Rules:
    """What a worker takes on.

    Attributes:
        allow: packages and modules that it may import.
        files: whether it takes targets that are files.
        studies: names; none: all.
        until_empty: end when nothing is left in the queue that it could work on.
    """

    allow: Sequence[str] = ()
    files: bool = False
    studies: Sequence[str] = ()
    until_empty: bool = False


@dataclass(eq=False)
class _Task:
    """A submission as this worker knows it; a new version of it is another task."""

    row: Mapping[str, Any]
    display: Display
    deaths: Deaths
    options: Mapping[str, Any] = field(default_factory=dict)
    rests_until: float = 0.0
    fails: int = 0
    left: bool = False  # for others
    told: bool = False  # its end is known
    ended: tuple[str, str] | None = None  # which could not be stored yet, with its message

    def rest(self, seconds: float) -> None:
        """Let others come first for about so long; workers do not come back all at once."""
        self.rests_until = time.monotonic() + seconds * random.uniform(0.5, 1.5)


class Service:
    """The parent of the processes of one `droptune worker`.

    Args:
        url: of the database.
        seats: where processes work.
        rules: what it takes on.
        say: is given one line at a time.
    """

    def __init__(
        self, url: str, seats: Sequence[Seat], rules: Rules, say: Callable[[str], object]
    ) -> None:
        self._url, self._rules, self._say = url, rules, say
        self._crew = Crew(seats)
        self._tasks: dict[tuple, _Task] = {}  # (id, version) -> task, in the order of the queue
        self._working: dict[Worker, _Task] = {}
        self._look_at, self._away, self._empty = 0.0, 0.0, False

    def run(self) -> None:
        """Work until a signal comes, or the queue is empty.

        Raises:
            StoreError: the database cannot be used, already at the start.
            KeyboardInterrupt: a second signal came, and all was ended at once.
        """
        heard = 0
        places = ", ".join(seat.name for seat in self._crew.seats)
        with (
            Store(self._url) as self._store,
            Signals() as signals,
            Lease(self._store, places) as lease,
            self._crew as crew,
        ):
            while crew.at or not (heard or self._empty):
                if signals.count > heard:
                    heard = signals.count
                    self._stop(crew, heard)
                if not heard:
                    self._look()
                    self._assign()
                lease.doing = {"processes": len(crew.at)}
                if (told := crew.next()) is not None:
                    self._handle(*told, ending=heard > 0)
        if heard > 1:
            raise KeyboardInterrupt

    def _stop(self, crew: Crew, heard: int) -> None:
        self._say("stopping at the end of the epoch; a second signal stops at once")
        crew.stop() if heard == 1 else crew.kill()

    # The queue

    def _look(self) -> None:
        """Read the queue, now and then; a database that is away is waited for."""
        if time.monotonic() < self._look_at:
            return
        try:
            rows = queue.queued(self._store)
        except SchemaError:
            raise
        except StoreError as error:
            self._wait(error)
            return
        if self._away:
            self._say("the database is there again")
        self._away = 0.0
        self._look_at = time.monotonic() + POLL * random.uniform(0.5, 1.0)
        self._take_in(rows)

    def _take_in(self, rows: Sequence[Mapping[str, Any]]) -> None:
        wanted = [r for r in rows if r["name"] in (self._rules.studies or (r["name"],))]
        before, self._tasks = self._tasks, {}
        for row in wanted:
            key = (row["id"], row["submitted_at"])
            self._tasks[key] = before.get(key) or self._task(row)
        kept = list(self._tasks.values())
        for task in kept:
            if task.ended is not None:
                self._end(task, *task.ended)
        names = {row["name"] for row in rows}
        for worker, task in self._working.items():
            if task not in kept and not task.told and task.row["name"] not in names:
                self._say(f"study {task.row['name']!r} was withdrawn")
                task.told = True
                worker.stop()
        waiting = any(not task.left and not task.told for task in kept)
        self._empty = self._rules.until_empty and not waiting and not self._working

    def _task(self, row: Mapping[str, Any]) -> _Task:
        """Return a new task, checked: it may be run here, or is left for others."""
        log = _Log(row["name"], self._say)
        task = _Task(row, Display(log), Deaths(len(self._crew.seats)))
        try:
            check_target(row["target"], self._rules.allow, self._rules.files)
            task.options = check_options(row["options"])
        except NotAllowed as error:
            self._leave(task, str(error))
        return task

    def _leave(self, task: _Task, why: str) -> None:
        """Leave a study for other workers, and say why, here and in the queue."""
        task.left = True
        self._say(f"study {task.row['name']!r} is left for others: {why}")
        self._end(task, "queued", why)

    def _end(self, task: _Task, state: str, message: str) -> None:
        """Store how a submission ended; where the database is away, once it is there again."""
        task.ended = state, message
        try:
            queue.end(self._store, task.row["id"], task.row["submitted_at"], state, message)
            task.ended = None
        except StoreError as error:
            self._wait(error)

    def _wait(self, error: StoreError) -> None:
        if not self._away:
            self._say(f"{error}; waiting for it")
        self._away = min(_LONGEST, max(POLL, 2 * self._away))
        self._look_at = time.monotonic() + self._away * random.uniform(0.5, 1.0)

    # The seats

    def _assign(self) -> None:
        """Start a process at each free seat for which there is a study."""
        for seat in self._crew.free:
            now = time.monotonic()
            ready = (
                task
                for task in self._tasks.values()
                if not task.left and not task.told and task.rests_until <= now
            )
            if self._away or (task := next(ready, None)) is None:
                return
            name = task.row["name"]
            options = {**task.options, "name": name, "store": self._url}
            job = {"target": task.row["target"], "options": options, "linger": LINGER}
            if task not in self._working.values():
                self._say(f"study {name!r} is taken")
            self._working[self._crew.start(seat, job)] = task

    def _handle(self, seat: int, worker: Worker, event: Mapping[str, Any], ending: bool) -> None:
        task, what = self._working[worker], event["event"]
        status = task.display.show(worker, event)
        if what == "status" and status is not None:
            task.deaths.trained(status.done)
        if what == "result" and not task.told:
            task.told = True
            self._say(f"study {task.row['name']!r} is done: {event['verdict']}")
            self._end(task, "done", event["verdict"])
        if what == "nothing":
            task.rest(REST)
        if what == "error" and not task.told:
            self._failed(task, event)
        if what == "ended":
            del self._working[worker]
            if not worker.finished and not ending and not task.told:
                self._died(task, worker, event["code"])
            self._look_at = min(self._look_at, time.monotonic() + (0.0 if not self._away else POLL))

    def _failed(self, task: _Task, event: Mapping[str, Any]) -> None:
        """Say who is to blame for an error: the database, this machine, or the study."""
        kinds, text, name = event["kinds"], " ".join(event["text"].split()), task.row["name"]
        if "TargetError" in kinds:
            return None if task.left else self._leave(task, text)
        if "StoreError" in kinds:
            self._say(f"study {name!r} rests: {text}")
            return task.rest(REST)
        task.fails += 1
        if kinds:
            task.told = True
            self._say(f"study {name!r} has failed: {text}")
            return self._end(task, "failed", text)
        if task.fails >= TRIES:
            return self._leave(task, f"it failed {task.fails} times: {text}")
        self._say(f"study {name!r} rests: {text}")
        task.rest(REST * task.fails)

    def _died(self, task: _Task, worker: Worker, code: int) -> None:
        wait, why = task.deaths.died(worker), cause(code, worker.tail)
        if wait is None:
            return self._leave(task, f"its processes die again and again ({why})")
        self._say(f"a process of study {task.row['name']!r} died ({why}), and is replaced")
        task.rests_until = time.monotonic() + wait


class _Log(SilentProgress):
    """The progress of a study as lines of a log.

    Args:
        name: of the study.
        say: is given each line.
    """

    def __init__(self, name: str, say: Callable[[str], object]) -> None:
        self._name, self._say, self._said_at = name, say, time.monotonic()

    def update(self, status: Status) -> None:
        """Say now and then how far it is."""
        if time.monotonic() - self._said_at >= _SAY_EVERY:
            self._said_at = time.monotonic()
            self.message(describe(status))

    def message(self, text: str) -> None:
        """Say a line."""
        self._say(f"{self._name}: {text}")


def check_rules(rules: Rules) -> None:
    """Check that a worker may run anything at all.

    Raises:
        DroptuneError: nothing is allowed, or a prefix is no name of a module.
    """
    from droptune.workers.allowed import check_prefixes

    check_prefixes(rules.allow)
    if not rules.allow and not rules.files:
        raise DroptuneError(
            "a worker runs code that others name: give the packages that it may import, "
            "--allow my_project, or --allow-files"
        )
