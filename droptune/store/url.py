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

# What the drivers say (lower case, SQLite first, then PostgreSQL), and what we say.
_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("is locked", "lock timeout", "could not obtain lock"),
        "is locked by another program; wait for it or end it, then run again; "
        "what is stored is kept",
    ),
    (
        ("disk is full", "disk full", "no space left"),
        "cannot grow, the disk is full; free some space and run again; what is stored is kept",
    ),
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
    (
        ("connection refused", "could not connect", "server closed", "connection failed"),
        "cannot be reached; check that the server runs and that host and port are right",
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


def explain(error: BaseException, url: str) -> StoreError:
    """Return a driver's error as a StoreError of one line that names no password."""
    words = _without_secrets(str(error), url)
    for said, ours in _CAUSES:
        if any(part in words.lower() for part in said):
            return StoreError(f"{hide(url)} {ours}")
    return StoreError(f"{hide(url)} cannot be used: {words.strip().splitlines()[0]}")


def _without_secrets(words: str, url: str) -> str:
    for pattern in (_USER_PASSWORD, _QUERY_PASSWORD):
        for match in pattern.finditer(url):
            for secret in {match["secret"], unquote(match["secret"])} - {""}:
                words = words.replace(secret, "***")
    return words or "unknown error"
