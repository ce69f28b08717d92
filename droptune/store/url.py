"""Database URLs and what can go wrong with a database, in words.

Loads no SQLAlchemy, so the fast readers and the command line can use it.
"""

import re
from pathlib import Path
from urllib.parse import unquote

from droptune.errors import StoreError

_FILE = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<path>[^?]+)(?P<query>\?.*)?", re.DOTALL)
_USER_PASSWORD = re.compile(r"^(.*?://|(?!.*://))([^:@]*):(?P<secret>.*)@", re.DOTALL)
_QUERY_PASSWORD = re.compile(r"([?&](?:ssl)?(?:password|passwd|pwd)=)(?P<secret>[^&]*)", re.I)

# What the drivers say in lower case, and what we say: about a file, about a server, about both.
_Causes = tuple[tuple[tuple[str, ...], str], ...]
_FILE_CAUSES: _Causes = (
    (
        ("readonly database", "read-only", "permission denied"),
        "is read-only for this user; allow writing to the file and its folder, "
        "or give another --store",
    ),
    (
        ("not a database", "file is encrypted"),
        "is not a SQLite database; give another --store or move the file away",
    ),
    (
        ("malformed", "disk i/o error"),
        "is damaged (SQLite databases do not survive most network drives); restore a copy, "
        "or give another --store",
    ),
    (
        ("unable to open database file",),
        "cannot be opened; check that the path is a file and that its folder is writable, "
        "or give another --store",
    ),
)
# What a server answers when it is there and does not want us.
_REFUSALS: _Causes = (
    (
        ("authentication failed", "no password supplied", "no pg_hba.conf entry"),
        "refuses this user or password; check both (in a URL @ is written %40, / %2F, : %3A), "
        "or ask who runs the server to let this user in",
    ),
    (
        ("failed to resolve host", "could not translate host", "name or service not known"),
        "cannot be reached, its host is not known; check the name of the host",
    ),
    (
        ("role", "does not exist"),
        "refuses this user, who does not exist there; check the name, or have the user made",
    ),
    (
        ("database", "does not exist"),
        "does not exist on that server; make it (`createdb NAME`), or give another --store",
    ),
)
_FULL = ("connection slots", "too many clients", "too many connections")
_NOT_NOW = "the database system is"  # starting up, shutting down, in recovery
_SERVER_CAUSES: _Causes = (
    (
        ("read-only transaction",),
        "is read-only (a standby, or set so); give the server that can be written to as --store",
    ),
    (
        ("permission denied", "must be owner"),
        "may not be used so by this user; let its owner GRANT the rights to read and write "
        "droptune's and Optuna's tables, to make them also CREATE on the schema",
    ),
    (
        _FULL,
        "takes no more connections; end other programs or raise its max_connections",
    ),
    (
        ("deadlock", "could not serialize"),
        "is used by others in a way that gets in the way of this one",
    ),
    (
        (
            "connection refused",
            "could not connect",
            "server closed",
            "connection failed",
            "terminating connection",
            "connection is bad",
            "connection is closed",
            "connection is lost",
            "connection timeout",
            _NOT_NOW,
        ),
        "cannot be reached; check that the server runs and that host and port are right",
    ),
)
_COMMON_CAUSES: _Causes = (
    (
        ("is locked", "lock timeout", "could not obtain lock"),
        "is locked by another program; wait for it or end it, then run again; "
        "what is stored is kept",
    ),
    (
        ("disk is full", "disk full", "no space left"),
        "cannot grow, the disk is full; free some space and run again; what is stored is kept",
    ),
)


def hide(url: str) -> str:
    """Return the URL with each password in it replaced by `***`.

    Works on malformed URLs too, as those are shown in errors.
    """
    if _FILE.fullmatch(url):
        return url
    url = _USER_PASSWORD.sub(r"\1\2:***@", url)
    return _QUERY_PASSWORD.sub(r"\1***", url)


def sqlite_path(url: str) -> Path | None:
    """Return the file of a plain SQLite URL; None for memory, URI options or a server."""
    match = _FILE.fullmatch(url)
    if match is None or match["query"] or match["path"] == ":memory:":
        return None
    return Path(match["path"])


def is_shared(url: str) -> bool:
    """Say whether several processes can open a database: not one in the memory of one."""
    inside = ":memory:" in url or "mode=memory" in url or url.rstrip("/").endswith("sqlite:")
    return not (url.startswith("sqlite") and inside)


def require_folder(url: str) -> None:
    """Raise StoreError when the folder of a SQLite file does not exist."""
    path = sqlite_path(url)
    if path is None:
        return
    if not path.parent.is_dir():
        raise StoreError(
            f"folder {str(path.parent)!r} of {url} does not exist; make it or give another --store"
        )
    if path.is_dir():
        raise StoreError(f"{url} is a folder; give the path of a file as --store")


def require_file(url: str) -> None:
    """Raise StoreError when the file of a SQLite URL does not exist; reading creates none."""
    require_folder(url)
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise StoreError(
            f"no database at {url}; run `droptune optimize` there first, or give another --store"
        )


def driver_url(url: str) -> str:
    """Return the URL with the driver that droptune installs, where it names none.

    `postgresql://` alone is another driver in each version of SQLAlchemy, and `postgres://`,
    which many hosts hand out, none at all.
    """
    scheme, separator, rest = url.partition("://")
    known = scheme in ("postgresql", "postgres") and separator
    return f"postgresql+psycopg://{rest}" if known else url


def explain(error: BaseException, url: str) -> StoreError:
    """Return a driver's error as a StoreError of one line that names no password."""
    words = _without_secrets(str(error), url).strip() or "unknown error"
    own = _FILE_CAUSES if url.startswith("sqlite") else _REFUSALS + _SERVER_CAUSES
    for said, ours in (*_COMMON_CAUSES, *own):
        if _said(said, words):
            return StoreError(f"{hide(url)} {ours}")
    return StoreError(f"{hide(url)} cannot be used: {words.splitlines()[0]}")


def is_refused(error: BaseException) -> bool:
    """Say whether a server answered, and will answer the same when it is asked again."""
    return any(_said(said, str(error)) for said, _ in _REFUSALS)


def is_busy(error: BaseException) -> bool:
    """Say whether a server is there, and may let one in when it is asked again."""
    return _said((*_FULL, _NOT_NOW), str(error))


def _said(parts: tuple[str, ...], words: str) -> bool:
    """Say whether a cause fits: any of its parts; all of them before `does not exist`."""
    every = all if "does not exist" in parts else any
    return every(part in words.lower() for part in parts)


def _without_secrets(words: str, url: str) -> str:
    for pattern in (_USER_PASSWORD, _QUERY_PASSWORD):
        for match in pattern.finditer(url):
            for secret in {match["secret"], unquote(match["secret"])} - {""}:
                words = words.replace(secret, "***")
    return words
