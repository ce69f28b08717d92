"""Where the checkpoints of a database's studies are kept, unless a user says otherwise.

Loads no SQLAlchemy and no torch.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from droptune.store.url import sqlite_path

VARIABLE = "DROPTUNE_CHECKPOINTS"
#: Parts of a server's URL behind the `?` that say which database it is.
_WHICH = ("host", "hostaddr", "port", "dbname")


def default_folder(url: str) -> Path:
    """Return the folder for the checkpoints of a database; it need not exist.

    - `$DROPTUNE_CHECKPOINTS/HASH` where that variable is set: one folder for each database;
    - `FILE-checkpoints` beside the file of a SQLite database;
    - `$XDG_STATE_HOME/droptune/checkpoints/HASH` (`~/.local/state`) for a server;
    - a temporary folder, gone with this process, for a database in memory.

    The hash is of the place of the database alone: user, password and driver take no part.

    Args:
        url: of the database.
    """
    if _in_memory(url):
        return _temporary()
    path = _file_of(url)
    said = os.environ.get(VARIABLE)
    if said:
        return Path(said).expanduser().absolute() / _hash(url, path)
    if path is not None:
        return path.with_name(f"{path.name}-checkpoints")
    state = Path(os.environ.get("XDG_STATE_HOME") or "")
    if not state.is_absolute():  # the XDG specification says to ignore such a one
        state = Path.home() / ".local" / "state"
    return state / "droptune" / "checkpoints" / _hash(url, path)


def _in_memory(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    if not scheme.startswith("sqlite"):
        return False
    return rest in ("", "/") or ":memory:" in rest or "mode=memory" in rest


def _file_of(url: str) -> Path | None:
    """Return the file of a SQLite URL, also of one with options; None for a server."""
    plain = url.partition("?")[0].replace(":///file:", ":///", 1)
    path = sqlite_path(plain)
    return None if path is None else path.absolute()


def _hash(url: str, path: Path | None) -> str:
    where = f"sqlite {path.resolve()}" if path is not None else _server(url)
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def _server(url: str) -> str:
    """Return what tells a database from others: its system, hosts, ports and name."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    system = scheme.partition("+")[0].replace("postgresql", "postgres")
    hosts, _, name = rest.rpartition("@")[2].partition("/")
    which = sorted(pair for pair in parse_qsl(query) if pair[0] in _WHICH)
    if system == "postgres" and hosts and ":" not in hosts.rpartition("]")[2]:
        hosts += ":5432"
    return repr((system, hosts.lower(), unquote(name), which))


@cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="droptune-checkpoints-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
