"""Read-only connections that answer SQL with plain dicts.

A SQLite file is read through Python's own sqlite3: `import sqlalchemy` alone takes longer
than a listing may. Any other database is read through SQLAlchemy.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from droptune.store import migrate
from droptune.store.url import explain, require_file, sqlite_path

if TYPE_CHECKING:
    from sqlalchemy import Connection

BUSY_SECONDS = 30.0
"""How long a reader waits for a database that is locked altogether, in seconds."""


class Reader(Protocol):
    """Answers portable SQL with `:name` parameters; never changes the database."""

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of a SELECT, one dict each."""
        ...

    def has_table(self, name: str) -> bool:
        """Say whether the database has a table of this name."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def open_reader(url: str) -> Reader:
    """Open a database of the current schema for reading.

    Raises:
        StoreError: the database cannot be opened; a missing SQLite file is not created.
        SchemaError: it has no droptune tables, or older or newer ones.
    """
    require_file(url)
    path = sqlite_path(url)
    reader = SQLiteReader(path, url) if path else _engine_reader(url)
    try:
        migrate.require_current(_revision(reader), url)
    except BaseException:
        reader.close()
        raise
    return reader


class SQLiteReader:
    """Reads a SQLite file; `query_only` makes SQLite itself refuse to write."""

    def __init__(self, path: Path, url: str) -> None:
        self._url = url
        self._connection = _connect(path, url)

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of a SELECT, one dict each."""
        try:
            cursor = self._connection.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
        except sqlite3.Error as error:
            raise explain(error, self._url) from None

    def has_table(self, name: str) -> bool:
        """Say whether the database has a table of this name."""
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE name = :name", name=name))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _connect(path: Path, url: str) -> sqlite3.Connection:
    """Open a SQLite file for reading, also where nothing may be written beside it."""
    # mode=rw, not ro: a write-ahead log that a dead process left can then be taken over.
    # It never creates a file. An immutable file needs no lock and no log: for read-only media.
    modes = (
        ["mode=rw"] if path.with_name(f"{path.name}-wal").exists() else ["mode=rw", "immutable=1"]
    )
    for mode in modes:
        try:
            uri = f"{path.absolute().as_uri()}?{mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return connection
        except sqlite3.Error as error:
            problem = explain(error, url)
            if "readonly" not in str(error) and "unable to open" not in str(error):
                break
    raise problem


class EngineReader:
    """Reads through SQLAlchemy, over connections that `connect` hands out."""

    def __init__(
        self,
        connect: "Callable[[], AbstractContextManager[Connection]]",
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self.close = close

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of a SELECT, one dict each."""
        from sqlalchemy import text

        with self._connect() as connection:
            return [dict(row._mapping) for row in connection.execute(text(sql), values)]

    def has_table(self, name: str) -> bool:
        """Say whether the database has a table of this name."""
        from sqlalchemy import inspect

        with self._connect() as connection:
            return inspect(connection).has_table(name)


def _engine_reader(url: str) -> EngineReader:
    from droptune.store.engine import READS, explained, open_engine

    reads = {READS: True, "postgresql_readonly": True}
    engine = open_engine(url, create=False).execution_options(**reads)

    @contextmanager
    def connect() -> "Iterator[Connection]":
        with explained(url), engine.connect() as connection:
            yield connection

    return EngineReader(connect, engine.dispose)


def _revision(reader: Reader) -> str | None:
    if not reader.has_table(migrate.VERSION_TABLE):
        return None
    rows = reader.rows(f"SELECT version_num FROM {migrate.VERSION_TABLE}")
    return rows[0]["version_num"] if rows else None
