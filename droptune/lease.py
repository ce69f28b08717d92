"""A process as a worker of a store: it is known there, and shows that it lives.

A thread of its own gives the signs of life, so an epoch may take as long as it likes. What
hangs in the training itself they do not show.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any

from droptune.errors import StoreError
from droptune.progress import Progress, Status
from droptune.store import Claims, Store, Workers
from droptune.store.workers import BEAT


class Lease:
    """This process as a worker, as long as the context is open.

    Runs that the store starts meanwhile are this worker's.

    Args:
        store: an open one.
        device: what it trains on.

    Attributes:
        study_id: what it works on now, for others to see; None: nothing yet.
        doing: how far it is, as JSON, for others to see.
    """

    def __init__(self, store: Store, device: str) -> None:
        self._store, self._device = store, device
        self._workers = Workers(store)
        self._over = threading.Event()
        self.study_id: int | None = None
        self.doing: Mapping[str, Any] | None = None

    def __enter__(self) -> "Lease":
        self.worker = self._workers.register(self._device, os.getpid())
        self._store.worker = self.worker
        self._thread = threading.Thread(target=self._beat, name="droptune beat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._store.worker = None
        try:
            self._workers.leave(self.worker)
        except StoreError:
            if kind is None:  # else that error is the one to tell
                raise

    def give_up(self, why: str) -> None:
        """Hand back at once all that this worker trains, for it hangs and is about to end.

        Args:
            why: what hangs.
        """
        with suppress(StoreError):  # without signs of life it is taken over all the same
            if self.study_id is not None:
                Claims(self._store, self.study_id).give_up(self.worker, why)
            self._workers.leave(self.worker)

    def beat(self) -> None:
        """Give a sign of life now."""
        self._workers.beat(self.worker, self.study_id, self.doing)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self.beat()
            except StoreError:  # the training finds out by itself if the database stays away
                continue

    def shown(self, progress: Progress) -> "Seen":
        """Return a progress that others can see, too."""
        return Seen(progress, self)


class Seen:
    """Hands a progress on, and keeps what it shows for the next sign of life."""

    def __init__(self, progress: Progress, lease: Lease) -> None:
        self._progress, self._lease = progress, lease

    def update(self, status: Status) -> None:
        """Show `status`."""
        self._lease.doing = asdict(status)
        self._progress.update(status)

    def message(self, text: str) -> None:
        """Show one line."""
        self._progress.message(text)
