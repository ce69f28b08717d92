"""SQLAlchemy engines, set up the way droptune needs them; used by the store and by search.

On SQLite a plain engine loses the race of two writers: pysqlite begins its transactions
late and for reading, so both read, and the second write fails or overwrites. Here a
transaction takes the write lock when it begins (BEGIN IMMEDIATE) and waits for it.
"""

import json
import math
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from droptune.errors import StoreError
from droptune.store.network import network_drive
from droptune.store.server import prepare_server
from droptune.store.url import (
    driver_url,
    explain,
    hide,
    require_file,
    require_folder,
    sqlite_path,
)

BUSY_SECONDS = 30.0
"""How long a SQLite connection waits for another writer before it gives up, in seconds."""

READS = "droptune_reads"
"""Execution option: transactions only read, so on SQLite they take no write lock."""


def open_engine(url: str, *, create: bool) -> Engine:
    """Return a prepared engine for the URL; no connection is made yet.

    Args:
        url: a SQLAlchemy database URL.
        create: a missing SQLite file may be created; otherwise it is an error.

    Raises:
        StoreError: the URL is malformed, its driver is missing, or its folder or file is; or
            it is a SQLite file on a network drive.
    """
    require_folder(url) if create else require_file(url)
    _require_local(url)
    try:
        # Parameters are hidden in SQLAlchemy's own messages: they may be anybody's data.
        engine = create_engine(
            driver_url(url),
            json_serializer=to_json,
            pool_pre_ping=not url.startswith("sqlite"),
            hide_parameters=True,
        )
    except (ArgumentError, NoSuchModuleError, ValueError):
        # `from None`: the cause may quote the URL with its password.
        raise StoreError(
            f"{hide(url)!r} is not a database URL; write for example sqlite:///droptune.db "
            "or postgresql://user@host/name"
        ) from None
    except ModuleNotFoundError as error:
        extra = "droptune[postgresql]" if error.name == "psycopg" else error.name
        raise StoreError(
            f"{hide(url)} needs the Python package {error.name!r}; "
            f"run `pip install {shlex.quote(extra)}` and try again"
        ) from None
    return prepare_engine(engine, url)


def prepare_engine(engine: Engine, url: str | None = None) -> Engine:
    """Make the connections that `engine` opens from now on safe for several writers.

    SQLite: write-ahead log, synchronous=NORMAL (a commit survives the death of any process;
    a power cut may lose the last ones, never the file), foreign keys, a wait of
    `BUSY_SECONDS` for other writers, and BEGIN IMMEDIATE unless the execution option
    `READS` is set. A server: see server.py. Connections that are open already are not
    changed: call `engine.dispose()` for that.

    Args:
        engine: a new one.
        url: as the user wrote it, for messages; None: as the engine has it.

    Returns:
        The same engine.
    """
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        prepare_server(engine, url)
    return engine


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the driver's errors inside into StoreErrors of one line."""
    try:
        yield
    except DBAPIError as error:
        raise explain(error.orig or error, url) from None
    except (PoolTimeout, sqlite3.Error, json.JSONDecodeError) as error:
        raise explain(error, url) from None


def to_json(value: Any) -> str:
    """Return compact JSON; NaN and infinities, which JSON lacks, become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def finite(number: float | None) -> float | None:
    """Return the number as a float, or None when it is missing, NaN or infinite."""
    return float(number) if number is not None and math.isfinite(number) else None


def storable(text: str) -> str:
    """Return a text as every database can hold it: NUL and halves of characters replaced.

    PostgreSQL takes no NUL character, and UTF-8 has no lone surrogates, which Python makes of
    file names that are not UTF-8.
    """
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return whole.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def _require_local(url: str) -> None:
    """Raise StoreError where a SQLite file is on a network drive."""
    path = sqlite_path(url)
    drive = network_drive(path) if path is not None else None
    if drive is not None:
        raise StoreError(
            f"{url} is on a network drive ({drive}), where SQLite loses data without a word once "
            "two machines or processes write; give a file on a local disk, such as "
            "sqlite:////tmp/droptune.db, or a server, postgresql://user@host/name, as --store"
        )


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says
    connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
    _use_write_ahead_log(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch to WAL; several processes that start at once are served one after the other.

    SQLite does not honour the busy timeout for this switch, hence the loop. A file that
    may not be written is left in its mode: reading it is still possible.
    """
    give_up = time.monotonic() + BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "readonly" in str(error):
                return
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
