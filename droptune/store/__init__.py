"""The store: droptune's tables in the database that it shares with Optuna.

    url.py      database URLs and what can go wrong with a database, in words
    engine.py   SQLAlchemy engines, set up the way droptune needs them
    server.py   what a database server needs besides: limits on waiting, lost connections
    folder.py   where checkpoints are kept
    network.py  is a file on a network drive, where SQLite must not be used?
    schema.py   the tables
    migrate.py  creates and upgrades the tables by the scripts of `alembic/`
    store.py    `Store`, which writes
    lock.py     what a study's workers do one after the other
    workers.py  `Workers`: who works, who is dead, and what they left
    claims.py   `Claims`: who trains what
    verdicts.py `Verdicts`: what came out
    reader.py   a read-only connection; of SQLite without SQLAlchemy, for a fast start
    queries.py  `Queries`, the read models of the listings
    drawn.py    `Drawn`, which also reads what a report draws
    submissions.py  the queue of studies that wait for workers
    service.py  `Service`, who works on what, as `droptune status` shows it

Only this package knows SQLAlchemy and Alembic. Nothing heavy is loaded before a name that
needs it is used: `Queries` on a SQLite file never loads SQLAlchemy.
"""

from importlib import import_module

_HOMES = {
    "Claims": "claims",
    "Queries": "queries",
    "SO_FAR": "verdicts",
    "Store": "store",
    "Taken": "claims",
    "Verdicts": "verdicts",
    "Workers": "workers",
    "default_folder": "folder",
    "driver_url": "url",
    "hide": "url",
    "is_shared": "url",
    "prepare_engine": "engine",
    "sqlite_path": "url",
}
__all__ = [
    "SO_FAR",
    "Claims",
    "Queries",
    "Store",
    "Taken",
    "Verdicts",
    "Workers",
    "default_folder",
    "driver_url",
    "hide",
    "is_shared",
    "prepare_engine",
    "sqlite_path",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
