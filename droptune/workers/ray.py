"""One study, run by a Ray cluster: an actor a GPU or core, placed and restarted by Ray.

An actor does what a seat of this machine does: it starts a process (child.py) and passes on what
that tells. If its node is gone, Ray starts it on another, or waits for one; the process that it
had ends by itself. Nodes that join get actors, too. The trials are in the database, as always.

Every node needs droptune and the study's code under the same path, or installed. The job goes to
the actors as a message and not as an argument of their making, which Ray would keep.
"""

import os
import queue
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from droptune.errors import StudyError
from droptune.progress import Progress
from droptune.store import sqlite_path
from droptune.workers.crew import Crew
from droptune.workers.devices import Seat
from droptune.workers.local import Answer, work_together
from droptune.workers.process import Worker

_TURN = 0.2  # seconds to wait for an event
_BATCH = 1.0  # seconds an actor waits for something to tell
_LOOK_EVERY = 10.0  # seconds between two looks at the cluster


def run_on_ray(
    url: str,
    target: str,
    options: Mapping[str, Any],
    progress: Progress,
    address: str | None = None,
    workers: int | None = None,
) -> Answer:
    """Run a study on a Ray cluster until it is done.

    Args:
        url: of the store.
        target: what each actor's process loads.
        options: settings that override it.
        progress: is told how far all actors are.
        address: of the cluster, as in `ray.init`; None: $RAY_ADDRESS, else one of this machine.
        workers: actors in all; None: one a GPU of the cluster, without GPUs one a core.

    Raises:
        StudyError: Ray is missing or cannot be reached, or the nodes cannot share the database.
        DroptuneError: the study cannot be run.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all is stored, and calling again goes on.
    """
    ray = _connected(address)
    try:
        _check_store(ray, url)
        path = sqlite_path(url)  # an actor may work in another folder
        url = url if path is None else f"sqlite:///{path.resolve()}"
        job = {"target": target, "options": {**options, "store": url}}
        return work_together(RayCrew(ray, workers), job, progress)
    finally:
        ray.shutdown()


def _connected(address: str | None) -> Any:
    """Return the module of Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
    try:
        import ray
    except ModuleNotFoundError:
        raise StudyError(
            "--engine ray needs Ray; run `pip install 'droptune[ray]'`, or leave --engine out"
        ) from None
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise StudyError(
            f"the Ray cluster at {address or 'this machine'} cannot be reached ({said[0]}); check "
            "--address; of a cluster that asks for a token set RAY_AUTH_MODE=token, too; or start "
            "one with `ray start --head`"
        ) from None
    return ray


def _reach(address: str | None) -> None:
    """Raise OSError or ValueError where nobody listens; Ray itself would try for minutes."""
    if address in (None, "auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def _check_store(ray: Any, url: str) -> None:
    """Refuse a file as the database of several machines."""
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and url.startswith("sqlite"):
        raise StudyError(
            f"{url} is a file, which the {len(hosts)} machines of the cluster cannot share; give a "
            "server, such as postgresql://user@host/name, as --store"
        )


class _Host:
    """What an actor is: it has one process at a time, and tells what that tells."""

    def start(self, job: Mapping[str, Any], seat: Seat, folder: str) -> None:
        """Start a process for a job, in the folder of the driver where it is there."""
        with suppress(OSError):
            os.chdir(folder)
        self.events: queue.Queue = queue.Queue()
        self.worker = Worker(seat, job, self.events)

    def told(self) -> list[dict[str, Any]]:
        """Return the next events; none after a while."""
        found = []
        with suppress(queue.Empty):
            found.append(self.events.get(timeout=_BATCH)[1])
            while True:
                found.append(self.events.get_nowait()[1])
        return found

    def stop(self) -> None:
        """Let the process end at the end of its epoch."""
        self.worker.stop()


class _Remote:
    """An actor's process as the driver sees it; like `process.Worker`."""

    def __init__(self, ray: Any, actor: Any, seat: Seat, job: Mapping[str, Any]) -> None:
        self._ray, self._actor = ray, actor
        self.trained = self.finished = False
        self.tail: deque[str] = deque(maxlen=5)
        actor.start.remote(dict(job), seat, os.getcwd())
        self.listen()

    def listen(self) -> None:
        """Ask for the next events."""
        self.news = self._actor.told.remote()

    def stop(self) -> None:
        """Let it end at the end of its epoch."""
        self._actor.stop.remote()

    def kill(self) -> None:
        """End it at once; Ray does not start it again."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor, no_restart=True)


class RayCrew(Crew):
    """The actors of a cluster that work for this process.

    Args:
        ray: the module, connected.
        workers: how many actors; None: as many as the cluster has GPUs, or cores.
    """

    def __init__(self, ray: Any, workers: int | None) -> None:
        super().__init__([])
        self._ray, self._workers = ray, workers
        self._actors: dict[int, Any] = {}
        self._told: deque[tuple[_Remote, dict[str, Any]]] = deque()
        self._look_at = 0.0
        self.joined()

    def __exit__(self, *error: object) -> None:
        self.kill()

    def joined(self) -> list[int]:
        """Return new seats, of nodes that have joined the cluster since the last look."""
        if time.monotonic() < self._look_at:
            return []
        self._look_at = time.monotonic() + _LOOK_EVERY
        there = self._ray.cluster_resources()
        self._gpus = self._gpus if self.seats else int(there.get("GPU", 0)) > 0
        count = self._workers or int(there.get("GPU" if self._gpus else "CPU", 1)) or 1
        before = len(self.seats)
        device = "auto" if self._gpus else "cpu"
        self.seats += [Seat("ray", device, {})] * max(0, count - before)
        return list(range(before, len(self.seats)))

    def start(self, seat: int, job: Mapping[str, Any]) -> _Remote:
        """Start a process for a job, by the seat's actor; Ray places a new one."""
        place = self.seats[seat]
        if seat not in self._actors:
            share = {"num_cpus": 1, "num_gpus": 1 if self._gpus else 0}
            actor = self._ray.remote(_Host).options(max_restarts=-1, **share)
            self._actors[seat] = actor.remote()
        own = {"device": place.device, **job["options"]}
        remote = _Remote(self._ray, self._actors[seat], place, {**job, "options": own})
        self.at[seat] = remote
        return remote

    def next(self) -> tuple[int, _Remote, dict[str, Any]] | None:
        """Return the next event with its seat and worker; None: nothing for a moment."""
        if not self._told:
            self._listen()
        if not self._told:
            return None
        worker, event = self._told.popleft()
        return self._noted(worker, event)

    def _listen(self) -> None:
        news = {worker.news: worker for worker in self.at.values()}
        if not news:
            time.sleep(_TURN)
            return
        ready, _ = self._ray.wait(list(news), timeout=_TURN)
        for answer in ready:
            worker = news[answer]
            try:
                events = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                worker.tail.append(f"Ray: {str(error).strip().splitlines()[0]}")
                events = [{"event": "ended", "code": 1}]
            self._told += [(worker, event) for event in events]
            worker.tail += [event["text"] for event in events if event["event"] == "printed"]
            if not any(event["event"] == "ended" for event in events):
                worker.listen()
