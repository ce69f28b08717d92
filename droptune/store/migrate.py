"""Creates and upgrades droptune's tables by the scripts of `alembic/`.

Alembic is loaded only when a migration or a full check is really needed: what a database
is at is one SELECT, and what this droptune knows is the names of the scripts.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from droptune.errors import SchemaError, StoreError
from droptune.store.url import hide

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

VERSION_TABLE = "droptune_version"
# Alembic's environment is a global of its module: one migration at a time in a process.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade did: revisions before (None: no tables) and after, and the copy."""

    before: str | None
    after: str | None
    backup: Path | None = None

    def __str__(self) -> str:
        if self.before == self.after:
            return f"schema {self.after} is current; nothing to do"
        copied = f"; the database as it was is in {self.backup}" if self.backup else ""
        return f"schema {self.before or 'none'} -> {self.after}{copied}"


@dataclass(frozen=True)
class Report:
    """What a check found; `problems` are lines, none when all is well."""

    url: str
    revision: str | None
    head: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the database can be used as it is."""
        return not self.problems

    def __str__(self) -> str:
        found = f"{self.url}: schema {self.revision or 'none'}, this droptune has {self.head}"
        return "\n".join([f"{found}: {'ok' if self.ok else 'not ok'}", *self.problems])


def scripts() -> Path:
    """Return the folder of the scripts: inside the wheel, or beside the package."""
    package = Path(__file__).parents[1]
    for path in (package / "_alembic", package.parent / "alembic"):
        if (path / "env.py").is_file():  # the installed library alembic has no env.py
            return path
    raise StoreError("droptune was installed without its migrations; reinstall it")


def revisions() -> list[str]:
    """Return the revisions that this droptune knows, oldest first: the scripts' numbers."""
    return sorted(path.name.split("_")[0] for path in scripts().glob("versions/[0-9]*_*.py"))


def head() -> str:
    """Return the newest revision that this droptune knows."""
    return revisions()[-1]


def require_current(revision: str | None, url: str) -> None:
    """Raise SchemaError unless a database at `revision` can be used as it is.

    Raises:
        SchemaError: the tables are missing, older or newer than this droptune.
    """
    known = revisions()
    if revision == known[-1]:
        return
    if revision is None:
        raise SchemaError(
            f"{hide(url)} has no droptune study; run `droptune optimize` first, "
            "or give another --store"
        )
    if revision in known:
        raise SchemaError(
            f"{hide(url)} has schema {revision}, this droptune needs {known[-1]}; "
            f"run `droptune db upgrade --store {hide(url)}`"
        )
    raise SchemaError(
        f"{hide(url)} has schema {revision} of a newer droptune, this one knows up to "
        f"{known[-1]}; run `pip install --upgrade droptune`"
    )


def current(engine: "Engine") -> str | None:
    """Return the revision of the database by a plain SELECT; None: no droptune tables."""
    from droptune.store.engine import READS

    with engine.execution_options(**{READS: True}).connect() as connection:
        return _revision(connection)


def upgrade(engine: "Engine", revision: str = "head") -> Upgrade:
    """Bring the database to `revision`, in one transaction; a SQLite file is copied first.

    The copy is beside the file, named `FILE.bak-REVISION` after the revision it holds. A
    database without droptune's tables is not copied, as nothing of it is changed.

    Raises:
        SchemaError: the database is newer than this droptune.
    """
    from droptune.store.engine import explained
    from droptune.store.server import lock_tables

    url = engine.url.render_as_string(hide_password=False)
    with explained(url), _ONE_AT_A_TIME:
        before = current(engine)
        if before is not None and before not in revisions():
            require_current(before, url)
        target = head() if revision == "head" else revision
        backup = copy_aside(engine, before) if before not in (None, target) else None
        with _changing(engine) as connection:
            lock_tables(connection)
            _alembic("upgrade", connection, target)
            return Upgrade(before, _revision(connection), backup)


def upgrade_url(url: str) -> Upgrade:
    """Bring the database at `url` to the newest revision, as `upgrade` does.

    Raises:
        StoreError: the database cannot be opened, read or written.
    """
    from droptune.store.engine import open_engine

    engine = open_engine(url, create=False)
    try:
        return upgrade(engine)
    finally:
        engine.dispose()


def downgrade(engine: "Engine", revision: str) -> None:
    """Take the database back to `revision`; `base` removes droptune's tables."""
    with _ONE_AT_A_TIME, _changing(engine) as connection:
        _alembic("downgrade", connection, revision)


def check(url: str) -> Report:
    """Look a database over without changing it: schema, integrity, references.

    Raises:
        StoreError: the database cannot be opened or read.
    """
    from droptune.store.engine import READS, explained, open_engine

    engine = open_engine(url, create=False)
    problems: list[str] = []
    try:
        with explained(url), engine.execution_options(**{READS: True}).connect() as connection:
            revision = _revision(connection)
            try:
                require_current(revision, url)
                problems += _differences(connection)
            except SchemaError as error:
                problems.append(str(error))
            if engine.dialect.name == "sqlite":
                problems += _sqlite_problems(connection)
    finally:
        engine.dispose()
    return Report(hide(url), revision, head(), tuple(problems))


def _revision(connection: "Connection") -> str | None:
    from sqlalchemy import inspect, text

    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


@contextmanager
def _changing(engine: "Engine") -> "Iterator[Connection]":
    """Yield a connection in a transaction in which a table may be made anew.

    SQLite would delete what refers to a table when that is dropped, unless it is told not to
    follow references, which has to be before the transaction (https://sqlite.org/foreignkeys.html).
    """
    with engine.connect() as connection:
        sqlite = engine.dialect.name == "sqlite"
        own = connection.connection.driver_connection
        if sqlite:
            own.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
        finally:
            if sqlite:
                own.execute("PRAGMA foreign_keys = ON")


def _alembic(verb: str, connection: "Connection", revision: str) -> None:
    """Run Alembic on our own connection: works in memory, and no URL is handed around."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes["connection"] = connection
    getattr(command, verb)(config, revision)


def copy_aside(engine: "Engine", revision: str | None) -> Path | None:
    """Copy a SQLite file by SQLite's backup, which is right even while others write."""
    if engine.dialect.name != "sqlite":
        return None
    with engine.connect() as connection:
        files = {row[1]: row[2] for row in connection.exec_driver_sql("PRAGMA database_list")}
    if not (file := files["main"]):  # in memory
        return None
    path = Path(file)
    names = [f"{path.name}.bak-{revision}{end}" for end in ("", *(f".{n}" for n in range(1, 100)))]
    copy = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def _differences(connection: "Connection") -> list[str]:
    """Return in what the tables differ from `schema.py`, one line each."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from droptune.store.schema import Base

    def ours(name: str | None, type_: str, parent_names: object) -> bool:
        return type_ != "table" or name in Base.metadata.tables

    options = {"version_table": VERSION_TABLE, "include_name": ours}
    context = MigrationContext.configure(connection, opts=options)
    return [
        f"schema differs: {difference}" for difference in compare_metadata(context, Base.metadata)
    ]


def _sqlite_problems(connection: "Connection") -> list[str]:
    integrity = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check")]
    orphans = list(connection.exec_driver_sql("PRAGMA foreign_key_check"))
    lines = [f"integrity: {line}" for line in integrity if line != "ok"]
    return lines + [f"references: {row[0]} row {row[1]} has no {row[2]}" for row in orphans]
