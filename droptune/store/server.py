"""What a database server needs that a file does not: limits on waiting, and lost connections.

The networks between a worker and its server drop connections silently, servers restart, and
transactions of several workers get in each other's way. What may pass by itself becomes a
TransientError here, whoever uses the engine: the store, or Optuna, which would otherwise try
some of it again in its own way and store a trial twice.
"""

from typing import Any

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import ExceptionContext

from droptune.errors import BusyError, TransientError
from droptune.store.url import explain, is_busy, is_refused

# libpq's parameters, in seconds, the last in milliseconds: a host that does not answer is given
# up after ten seconds, a connection of which nothing is heard any more after a minute. Its own
# limits are minutes to hours (PostgreSQL 18 documentation, 32.1.2 and 19.3.2).
_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
LOCK_SECONDS = 30
"""How long a statement waits for a lock of another program, in seconds; as with SQLite."""

IDLE_SECONDS = 60
"""How long a transaction may do nothing, in seconds; then the server ends it, for its process
hangs or is stopped, and others wait for its locks."""

_TABLES = int.from_bytes(b"droptune")  # the number of the lock; any that nobody else takes

# Classes and codes of PostgreSQL errors after which the same may work (appendix A of its
# documentation): connection, serialisation failure, deadlock, too many connections, the server
# shuts down, crashed, starts.
_PASSING = ("08", "40001", "40P01", "53300", "57P01", "57P02", "57P03")


def prepare_server(engine: Engine, url: str | None = None) -> None:
    """Set up the connections that `engine` opens from now on, and name what may pass.

    Args:
        engine: of a server.
        url: as the user wrote it; None: as the engine has it.
    """
    url = url or engine.url.render_as_string(hide_password=False)

    def name_what_may_pass(context: ExceptionContext) -> None:
        error = context.original_exception
        ours = isinstance(error, context.dialect.loaded_dbapi.Error)
        if ours and not context.is_pre_ping and (context.is_disconnect or _may_pass(context)):
            kind = BusyError if is_busy(error) else TransientError
            raise kind(str(explain(error, url)))

    event.listen(engine, "do_connect", _set_limits)
    event.listen(engine, "connect", _limit_locks)
    event.listen(engine, "handle_error", name_what_may_pass)


def lock_tables(connection: Connection) -> None:
    """Wait until no other process makes or changes tables, and keep others off to the commit.

    Two that find an empty database would both make the tables, and PostgreSQL refuses one of
    them. SQLite's transactions exclude each other as it is.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _TABLES})


def _may_pass(context: ExceptionContext) -> bool:
    error = context.original_exception
    code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if code is not None:
        return code.startswith(_PASSING)
    # libpq gives no code when it cannot connect.
    return context.connection is None and not is_refused(error)


def _set_limits(
    dialect: Any, _record: object, _arguments: object, parameters: dict[str, Any]
) -> None:
    if dialect.driver in ("psycopg", "psycopg2"):
        for name, value in _CONNECTION.items():
            parameters.setdefault(name, value)


def _limit_locks(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    connection.commit()
