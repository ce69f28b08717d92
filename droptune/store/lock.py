"""One process at a time: what a study's workers do one after the other.

The lock ends with the process that holds it, however that ends: the kernel gives back the lock
of a file, and a server that of a lost connection.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, text

from droptune.errors import StoreError
from droptune.retry import PATIENCE, again
from droptune.store import server
from droptune.store.engine import explained
from droptune.store.url import hide

_STUDIES = int.from_bytes(b"stdy")  # the first half of the lock's number


@contextmanager
def exclusive(engine: Engine, url: str, name: str) -> Iterator[Callable[[], None]]:
    """Keep other processes out of blocks of the same study meanwhile.

    On SQLite it is the lock of a file beside the database, on PostgreSQL an advisory lock. A
    database in memory is its process's own, and needs none.

    Args:
        engine: of the database.
        url: of the same, for messages.
        name: of the study.

    Yields:
        a function that raises TransientError if the lock is lost, for the server was restarted.

    Raises:
        StoreError: another process holds the lock for longer than a minute.
    """
    if engine.dialect.name == "sqlite":
        with _file_lock(_file(engine.url), url):
            yield lambda: None
        return
    connection = again(lambda _repeated: _locked(engine, url, name))

    def still() -> None:
        with explained(url):
            connection.execute(text("SELECT 1"))

    try:
        yield still
    finally:
        with suppress(StoreError), explained(url):  # a lost connection has given the lock back
            connection.rollback()
        with suppress(StoreError), explained(url):
            connection.close()


def _file(url: URL) -> str | None:
    """Return the path of a SQLite database, None if it is in memory."""
    path = (url.database or "").removeprefix("file:")
    return None if path in ("", ":memory:") or url.query.get("mode") == "memory" else path


@contextmanager
def _file_lock(path: str | None, url: str) -> Iterator[None]:
    if path is None:
        yield
        return
    lock = FileLock(f"{path}-lock")
    try:
        with lock.acquire(timeout=PATIENCE, poll_interval=0.005):
            yield
    except Timeout:
        raise StoreError(
            f"another process has held the lock of {hide(url)} for {PATIENCE:g} s; look for one "
            "that is stopped (`droptune status` lists workers), end it, and run this again"
        ) from None
    except OSError as error:
        raise StoreError(
            f"{str(path)!r} cannot be locked ({error.strerror}); its folder must be writable"
        ) from error


def _locked(engine: Engine, url: str, name: str) -> Connection:
    """Return a connection whose transaction holds the study's lock."""
    # Longer than the server lets one hold it that does nothing any more.
    patient = text(f"SET LOCAL lock_timeout = '{server.IDLE_SECONDS + server.LOCK_SECONDS}s'")
    key = zlib.crc32(name.encode()) - 2**31  # two studies of one number only wait for each other
    with explained(url):
        connection = engine.connect()
        try:
            connection.execute(patient)
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:kind, :key)"), {"kind": _STUDIES, "key": key}
            )
        except BaseException:
            connection.close()
            raise
        return connection
