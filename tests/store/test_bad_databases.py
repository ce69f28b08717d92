"""Each database that cannot be used: one line that says what to do, nothing lost or made."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event

from droptune.errors import SchemaError, StoreError
from droptune.store import Queries, Store, engine, reader
from droptune.store.migrate import check


@pytest.fixture(params=[Store, Queries, check], ids=["store", "queries", "check"])
def opening(request):
    """Each way to open a database."""
    return request.param


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Give up on locks at once."""
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(reader, "BUSY_SECONDS", 0.05)


def message(call, *args, error=StoreError, **options) -> str:
    """Return what the error says; it must be one line."""
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path: Path, sql: str) -> None:
    """Change a database behind droptune's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(sql)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "droptune.db"


@pytest.fixture
def stored(url, path, examples):
    """A database with a study, closed."""
    with Store(url) as store:
        examples.new_study(store)
    return path


def test_a_missing_folder_is_named(opening, tmp_path):
    words = message(opening, f"sqlite:///{tmp_path}/none/x.db")
    assert f"folder '{tmp_path}/none'" in words
    assert "make it or give another --store" in words
    assert not (tmp_path / "none").exists()


def test_a_folder_is_no_database(opening, tmp_path):
    assert "is a folder" in message(opening, f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("call", [Queries, check, lambda url: Store(url, create=False)])
def test_reading_a_missing_file_says_what_to_run_and_makes_none(call, url, path):
    assert "run `droptune optimize` there first" in message(call, url)
    assert not path.exists()


@pytest.mark.parametrize("call", [Queries, lambda url: Store(url, create=False)])
def test_reading_a_database_of_somebody_else_says_what_to_run(call, url, path):
    put(path, "CREATE TABLE theirs (id INTEGER)")
    assert "has no droptune study" in message(call, url, error=SchemaError)


def test_a_database_of_somebody_else_can_be_shared(url, path, examples):
    put(path, "CREATE TABLE theirs (id INTEGER); INSERT INTO theirs VALUES (7)")
    with Store(url) as store:
        examples.new_study(store)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM theirs").fetchall() == [(7,)]
    assert check(url).ok


def test_an_empty_file_becomes_a_database(url, path):
    path.touch()
    Store(url).close()
    assert check(url).ok


@pytest.mark.parametrize("content", [b"not a database at all" * 99, b"\x80\x04}." * 999])
def test_a_file_that_is_no_database_is_left_as_it_is(opening, url, path, content):
    path.write_bytes(content)
    assert "is not a SQLite database" in message(opening, url)
    assert path.read_bytes() == content


def test_a_damaged_database_says_to_restore_a_copy(url, stored):
    content = bytearray(stored.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    stored.write_bytes(content)
    with pytest.raises(StoreError, match="damaged.*restore a copy"), Queries(url) as queries:
        queries.studies()


def test_a_newer_database_says_to_install_a_newer_droptune(url, stored):
    put(stored, "UPDATE droptune_version SET version_num = '9999'")
    for opening in (Store, Queries):
        words = message(opening, url, error=SchemaError)
        assert "schema 9999 of a newer droptune" in words
        assert "pip install --upgrade droptune" in words
    report = check(url)
    assert not report.ok
    assert "9999 of a newer droptune" in str(report)


def test_a_locked_database_says_so_and_loses_nothing(url, stored):
    with Store(url) as store, closing(sqlite3.connect(stored)) as other:
        other.execute("BEGIN IMMEDIATE")
        words = message(store.create_study, "new", {}, {}, [])
        assert "is locked by another program" in words
        other.rollback()
        store.create_study("new", {}, {}, [])
        assert store.study("mine") is not None


def test_a_file_locked_before_it_is_ours_says_so(opening, url, path):
    put(path, "CREATE TABLE theirs (id INTEGER)")
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "is locked by another program" in message(opening, url)


def test_a_full_disk_says_so_and_keeps_what_is_stored(url, stored, examples):
    with Store(url) as store:
        pages = {"limit": 0}

        def limit(connection, _record):
            connection.execute(f"PRAGMA max_page_count = {pages['limit'] or 2**30}")

        event.listen(store.engine, "connect", limit)
        run_id = store.start_run(1, plan=examples.plan(0.1), **examples.run)
        store.record([(run_id, 1, 0.5, {})])
        pages["limit"] = 1  # SQLite takes the present size, so nothing can grow
        store.engine.dispose()
        big = {"val_loss": list(range(20_000))}
        assert "the disk is full" in message(store.record, [(run_id, 2, 0.5, big)])
        assert store.study("mine")["name"] == "mine"
        pages["limit"] = 0
        store.engine.dispose()
        store.record([(run_id, 2, 0.5, big)])
    with closing(sqlite3.connect(stored)) as connection:
        epochs = connection.execute("SELECT epoch FROM droptune_curve ORDER BY epoch").fetchall()
    assert epochs == [(1,), (2,)]


def test_a_read_only_connection_says_so_and_can_be_read(stored):
    with Store(f"sqlite:///file:{stored}?mode=ro&uri=true") as store:
        assert store.study("mine")["name"] == "mine"
        assert "is read-only for this user" in message(store.create_study, "x", {}, {}, [])


READ_ONLY = """
import os, sys
from droptune.errors import StoreError
from droptune.store import Queries, Store
import sqlalchemy.dialects.sqlite, encodings.idna  # loaded before this user may not read them
url, other = sys.argv[1:]
if os.geteuid() == 0:
    os.setuid(65534)  # permissions do not bind root
print([study["name"] for study in Queries(url).studies()])
for write in (lambda: Store(url).create_study("x", {}, {}, []), lambda: Store(other)):
    try:
        write()
    except StoreError as error:
        print(error)
"""


@pytest.fixture
def open_to_all(tmp_path):
    """Let any user look into the test's folders, and restore their modes."""
    folders = [folder for folder in tmp_path.parents if folder.stat().st_uid == os.geteuid()]
    modes = {folder: folder.stat().st_mode for folder in [tmp_path, *folders]}
    for folder, mode in modes.items():
        if not mode & 0o001:
            folder.chmod(mode | 0o011)
    tmp_path.chmod(0o555)
    yield
    for folder, mode in modes.items():
        folder.chmod(mode)


def test_a_read_only_folder_can_be_read_and_refuses_to_write(url, stored, tmp_path, request):
    stored.chmod(0o444)
    request.getfixturevalue("open_to_all")
    command = [sys.executable, "-c", READ_ONLY, url, f"sqlite:///{tmp_path}/new.db"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd(), check=True)
    names, write, new = done.stdout.splitlines()
    assert names == "['mine']"
    assert "is read-only for this user" in write
    assert "cannot be opened" in new
    assert sorted(file.name for file in tmp_path.iterdir()) == ["droptune.db"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("droptune.db", "'droptune.db' is not a database URL; write for example sqlite:///"),
        ("", "'' is not a database URL"),
        ("nonsense://host/name", "'nonsense://host/name' is not a database URL"),
        ("mssql+pyodbc://host/name", "needs the Python package 'pyodbc'"),
    ],
)
def test_a_url_that_is_none_says_what_one_looks_like(opening, url, words):
    assert words in message(opening, url)
