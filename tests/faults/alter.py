"""Changes of a worker, made in its process before it begins: shorter waits, slower training."""

import time

from sqlalchemy import Engine, event


def change(
    slow: float = 0.0,
    keep: bool = False,
    lease: float | None = None,
    beat: float | None = None,
    place: str | None = None,
    pages: int | None = None,
) -> None:
    """Change this process.

    Args:
        slow: seconds that an epoch takes besides.
        keep: whether a checkpoint is written after each epoch.
        lease: seconds for which a sign of life counts; None: as it is.
        beat: seconds between two signs of life; None: as they are.
        place: where it is; None: where it is.
        pages: how many pages a SQLite file may have; None: as many as fit.
    """
    from droptune import keeping
    from droptune import lease as leases
    from droptune.store import workers

    if slow:
        _slow(slow)
    if keep:
        keeping.Keeping.due = property(lambda self: True)
    if lease is not None:
        workers.LEASE = lease
    if beat is not None:
        leases.BEAT = beat
    if place is not None:
        workers.place = lambda: place
    if pages is not None:
        limit = f"PRAGMA max_page_count = {pages}"
        event.listen(Engine, "connect", lambda connection, _record: connection.execute(limit))


def _slow(seconds: float) -> None:
    from droptune.trainers import FunctionTrainer, FusedTrainer, SerialTrainer

    for trainer in (FunctionTrainer, FusedTrainer, SerialTrainer):
        trainer.epoch = _slower(trainer.epoch, seconds)


def _slower(epoch, seconds):
    def slower(self):
        time.sleep(seconds)
        return epoch(self)

    return slower
