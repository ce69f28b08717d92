"""The processes of benchmarks/store.py: workers of one study that train in no time at all.

Each worker is a process of its own that runs `Study.optimize` with one slot and a trainer whose
epoch is over at once, so that what is left is the work of the loop: tell the last trial, take over
what others have stored, ask, claim. Its peer runs `study.optimize` of plain Optuna, over the same
space and database, with an objective that returns at once. Of both the same is measured: the time
from the end of a trial's training to the beginning of the next one's.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import optuna
import torch
from torch import nn

from droptune import Study
from droptune.members import Members
from droptune.plan import Plan
from droptune.progress import SilentProgress
from droptune.store import Store, driver_url
from droptune.trainers import TableTrainer
from droptune.trainers.base import Task
from droptune.watch import Clockwork

FOREVER = 10**9  # trials, epochs: more than there is time for
PATIENCE = 300.0  # seconds until all workers must have begun


def build() -> nn.Module:
    """Return the network of studies/digits.py."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def outcome(plan: Plan, seed: int, epoch: int) -> dict[str, float]:
    """Return a loss that has its smallest value at a rate of 0.3."""
    rates = [plan[site].rate for site in plan]
    return {"val_loss": sum((rate - 0.3) ** 2 for rate in rates) + 0.1 * (2 - len(rates))}


@dataclass(frozen=True)
class Job:
    """What the workers do: on which database and study, with which sampler, how many at once."""

    url: str
    study: str
    sampler: str
    width: int


def study(url: str, name: str, sampler: str, trainer: Any, trials: int) -> Study:
    return Study(
        name,
        model=build,
        example=torch.zeros(2, 64),
        trainer=trainer,
        slots=1,
        epochs=1,
        objective="val_loss",
        direction="minimize",
        sampler=sampler,
        trials=trials,
        patience=0,
        confirm_blocks=0,
        warm_start=(),
        store=url,
    )


@dataclass
class Watch:
    """When a worker's trials began and ended; it ends the process's work when time is up.

    Args:
        together: where the workers wait for each other, after their first claim.
        seconds: for how long they work from then on.
    """

    together: Any
    seconds: float
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    over: float = 0.0

    def begins(self) -> None:
        """Note that a trial begins to train."""
        if not self.over:
            self.together.wait(PATIENCE)
            self.over = time.perf_counter() + self.seconds
        self.began.append(time.perf_counter())

    def ends(self) -> bool:
        """Note that it has been trained; tell whether the time is up."""
        self.ended.append(time.perf_counter())
        return self.ended[-1] > self.over

    def took(self) -> list[float]:
        """Return the seconds between two trials, of those that fell into the time."""
        pairs = zip(self.ended, self.began[1:], strict=False)
        return [begin - end for end, begin in pairs if begin <= self.over]


class Instant(TableTrainer):
    """A trainer that notes when a trial begins and ends, and stops the study in the end."""

    def __init__(self, task: Task, watch: Watch) -> None:
        super().__init__(task, outcome)
        self._watch = watch

    def start(self, slot: int, plan: Plan) -> None:
        super().start(slot, plan)
        self._watch.begins()

    def epoch(self) -> Any:
        scores = super().epoch()
        if self._watch.ends():
            os.kill(os.getpid(), signal.SIGINT)
        return scores


def ours(job: Job, watch: Watch) -> list[float]:
    """Work on the study until time is up; return the seconds from trial to trial."""

    @wraps(outcome, updated=())  # all open the study with the trainer that it was made with
    def make(task: Task, slots: int | None, device: torch.device) -> Instant:
        return Instant(task, watch)

    here = study(job.url, job.study, job.sampler, make, FOREVER)
    with suppress(KeyboardInterrupt):
        here.optimize(progress=SilentProgress())
    return watch.took()


def plain(job: Job, watch: Watch) -> list[float]:
    """Do the same with plain Optuna."""
    made = {
        "random": optuna.samplers.RandomSampler,
        "tpe": partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True),
    }[job.sampler]
    space = study(job.url, job.study, job.sampler, TableTrainer.of(outcome), FOREVER).space
    # As ours: 32 writers do not get through in SQLite's five seconds.
    waits = {"connect_args": {"timeout": 30}} if job.url.startswith("sqlite") else {}
    storage = optuna.storages.RDBStorage(driver_url(job.url), engine_kwargs=waits)
    there = optuna.load_study(study_name=f"{job.study} plain", storage=storage, sampler=made())

    def objective(trial: optuna.Trial) -> float:
        plan = space.suggest(trial)
        watch.begins()
        value = outcome(plan, 0, 1)["val_loss"]
        if watch.ends():
            there.stop()
        return value

    there.optimize(objective)
    return watch.took()


def rows(job: Job, watch: Watch) -> list[float]:
    """Store epochs of `job.width` members until time is up; return the seconds of each."""
    task = SimpleNamespace(kinds={}, terms=())  # of a plan without dropout
    with Store(job.url) as store:
        members = Members(
            store,
            store.study(job.study)["id"],
            phase="search",
            objectives=["val_loss"],
            epochs=FOREVER,
            make_trainer=lambda most, block: TableTrainer(task, outcome, job.width),
            folds=1,
            most=job.width,
            keeping=None,
            longest=None,
            clockwork=Clockwork(),
            say=print,
        )
        members.begin(seed=0, block=0)
        for _ in range(job.width):
            members.enter(Plan.none(), "trial")
        members.start()
        watch.begins()
        while True:
            scores, ends = members.epoch()
            over = watch.ends()
            members.record(scores, ends)
            watch.begins()
            if over:
                break
        members.interrupt()
    return watch.took()


Work = Callable[[Job, Watch], list[float]]


def prepare(url: str, name: str) -> None:
    """Make the studies that the workers open: `name` with the sampler, or "rows", behind it."""
    storage = optuna.storages.RDBStorage(driver_url(url))
    for sampler in ("random", "tpe"):
        first = study(url, f"{name} {sampler}", sampler, TableTrainer.of(outcome), 1)
        first.optimize(progress=SilentProgress())
        optuna.create_study(study_name=f"{name} {sampler} plain", storage=storage)
    storage.remove_session()
    storage.engine.dispose()
    with Store(url) as store:
        store.create_study(f"{name} rows", {"objective": "val_loss"}, {}, [])


def together(work: Work, job: Job, workers: int, seconds: float) -> list[float]:
    """Return what each step took of so many processes that work at the same time, in seconds.

    Raises:
        RuntimeError: some of them failed.
    """
    # Forked, so that torch is imported once.
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_worker, args=(work, job, Watch(barrier, seconds), results))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=2 * PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    failed = [answer for answer in answers if isinstance(answer, str)]
    if failed:
        raise RuntimeError(f"{len(failed)} of {workers} workers failed: {failed[0]}")
    return [second for answer in answers for second in answer]


def _worker(work: Work, job: Job, watch: Watch, results: Any) -> None:
    torch.set_num_threads(1)
    try:
        results.put(work(job, watch))
    except BaseException as error:
        watch.together.abort()  # the others need not wait
        results.put(f"{type(error).__name__}: {error}")
