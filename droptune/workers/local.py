"""One study, run by the processes of this machine: one, or one a GPU or core."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from droptune.errors import DroptuneError, StudyError
from droptune.hang import leave
from droptune.processes import cores
from droptune.progress import Progress
from droptune.store import is_shared
from droptune.trainers import count_gpus
from droptune.watch import STOPPING
from droptune.workers.crew import Crew, Deaths, Signals, cause
from droptune.workers.devices import Seat, cpu_seats, seats
from droptune.workers.display import Display
from droptune.workers.paying import Scout

if TYPE_CHECKING:
    from droptune.study import Study


@dataclass(frozen=True)
class Answer:
    """What came out: the keys of `droptune best`, the verdict as a line, and whether it was new."""

    best: dict[str, Any]
    verdict: str
    finished_before: bool


class WorkerError(DroptuneError):
    """What went wrong in a worker, as it said itself.

    Attributes:
        traceback: of the user's own code, or "".
    """

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__(text)
        self.traceback = traceback


def run_study(
    study: "Study",
    target: str,
    options: Mapping[str, Any],
    progress: Progress,
    devices: str = "auto",
    workers: int | None = None,
) -> Answer:
    """Run a study by as many processes as were asked for, or as pay.

    Args:
        study: of `target`, with `options`.
        target: what each process loads.
        options: settings that override it.
        progress: is told how far all of them are.
        devices: see `seats`.
        workers: processes in all; None: as many as pay.

    Raises:
        DroptuneError: the study cannot be run, or processes die at once, again and again.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all is stored, and calling again goes on.
    """
    asked = workers is not None or devices not in ("auto", "cpu")
    places = _seats(study, devices, workers)
    if len(places) > 1 and not is_shared(study.url):
        if asked:
            raise StudyError(
                f"several processes cannot share {study.url}; give a file, such as "
                "sqlite:///droptune.db, or a server as --store"
            )
        places = places[:1]
    if len(places) > 1 and not asked and study.strategy == "pbt":  # one population
        places = places[:1]
    if len(places) == 1:
        device = study.device if devices == "auto" else places[0].name
        return _alone(study.using(device=device), progress)
    job = {"target": target, "options": {**options, "store": study.url}}
    if asked:
        return run(places, job, progress)
    scout = Scout(progress, len(places), gpus=places[0].device != "cpu")
    try:
        return _alone(study, scout)
    except KeyboardInterrupt:
        if scout.found is None:
            raise
    progress.message(scout.found)
    return run(places, job, progress)


def run(places: list[Seat], job: Mapping[str, Any], progress: Progress) -> Answer:
    """Run a job by a process at each seat until it is done."""
    return work_together(Crew(places), job, progress)


def work_together(crew: Crew, job: Mapping[str, Any], progress: Progress) -> Answer:
    """Run a job by the processes of a crew until it is done."""
    with progress as shown, Signals() as signals, crew:
        return _Shift(crew, job, shown, signals).result()


class _Shift:
    """The processes that run one study, from their start to the answer."""

    def __init__(self, crew: Crew, job: Mapping[str, Any], shown: Progress, signals: Signals):
        self._crew, self._job, self._signals = crew, job, signals
        self._display, self._deaths = Display(shown), Deaths(len(crew.seats))
        self._due = dict.fromkeys(crew.free, 0.0)  # seat -> when it gets a process
        self._heard = 0  # signals that were passed on
        self._answers: list[Answer] = []
        self._error: WorkerError | None = None

    def result(self) -> Answer:
        while self._crew.at or self._due:
            self._pass_on_signals()
            self._start_due()
            if (told := self._crew.next()) is not None:
                self._handle(*told)
        if self._error is not None:
            raise self._error
        if not self._answers:
            raise KeyboardInterrupt
        # Who came last found nothing left to do, but the study did not end without us.
        first = self._answers[0]
        return Answer(first.best, first.verdict, all(a.finished_before for a in self._answers))

    def _pass_on_signals(self) -> None:
        if self._signals.count > self._heard:
            first, self._heard = self._heard == 0, self._signals.count
            self._due.clear()
            if first:
                self._display.say(STOPPING)  # as each process says it, so it is shown once
            self._crew.stop() if first and self._heard == 1 else self._crew.kill()

    def _start_due(self) -> None:
        if not self._ends:
            self._due |= dict.fromkeys(self._crew.joined(), 0.0)
        for seat in [seat for seat, due in self._due.items() if due <= time.monotonic()]:
            del self._due[seat]
            self._crew.start(seat, self._job)

    def _handle(self, seat: int, worker: Any, event: Mapping[str, Any]) -> None:
        status = self._display.show(worker, event)
        if status is not None and event["event"] == "status":
            self._deaths.trained(status.done)
        if event["event"] == "result":
            self._answers.append(Answer(event["answer"], event["verdict"], event["before"]))
        if event["event"] == "error":
            self._stop(WorkerError(event["text"], event["traceback"]))
        if event["event"] == "ended" and not worker.finished and not self._ends:
            self._replace(seat, worker, event["code"])

    @property
    def _ends(self) -> bool:
        return bool(self._answers or self._error or self._heard)

    def _replace(self, seat: int, worker: Any, code: int) -> None:
        wait, why = self._deaths.died(worker), cause(code, worker.tail)
        if wait is None:
            return self._stop(
                WorkerError(
                    f"a process that works on the study died again and again ({why}); what is "
                    "stored is kept, and the same command goes on from there"
                )
            )
        self._display.say(f"a process died ({why}), and is replaced")
        self._due[seat] = time.monotonic() + wait

    def _stop(self, error: WorkerError) -> None:
        """End all because of an error; the first one counts."""
        if self._error is None:
            self._error = error
            self._due.clear()
            self._crew.stop()


def worker_seats(devices: str, workers: int | None) -> list[Seat]:
    """Return the seats of a `droptune worker`: one a GPU, else one, unless told otherwise."""
    return seats(devices, workers, count_gpus(), cores())


def _alone(study: "Study", progress: Progress) -> Answer:
    """Run the study by this process."""
    result = study.optimize(progress=progress, on_hang=partial(leave, progress))
    return Answer(result.to_json(), str(result.verdict), result.finished_before)


def _seats(study: "Study", devices: str, workers: int | None) -> list[Seat]:
    """Return where processes may work; where the user left it open, as many as there could be."""
    most, gpus = cores(), count_gpus()
    if study.device != "auto" and devices not in ("auto", study.device):
        raise StudyError(
            f"--devices {devices!r} and device {study.device!r} are both given; leave one out"
        )
    if study.device not in ("auto", "cpu"):
        return [Seat(study.device, study.device, {})] * (workers or 1)
    if study.device == "cpu":
        devices = "cpu"
    places = seats(devices, workers, gpus, most)
    if workers is None and places[0].device == "cpu":
        return cpu_seats(min(most, _fitting()), most)
    return places


def _fitting() -> int:
    """Return how many processes like this one fit into the memory that is free."""
    page = os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, KeyError):  # elsewhere than on Linux
        figures = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(figures["MemAvailable"].split()[0]) * 1024
        own = int(Path("/proc/self/statm").read_text().split()[1]) * page
        return max(1, free // own)
    return 1_000_000
