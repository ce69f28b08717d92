"""Engines on SQLite: one writer at a time, readers beside it, and errors in words."""

import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from sqlalchemy import create_engine, text

from droptune.errors import StoreError
from droptune.store import Store, Workers, engine, prepare_engine
from droptune.store.engine import explained, to_json
from droptune.store.migrate import check


@pytest.fixture
def counter(url):
    """A table with a number that threads count up; returns how to connect to it."""
    with create_engine(url).begin() as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))
    return lambda: create_engine(url, connect_args={"timeout": 0.05})


def count_up(connect, threads: int = 4, times: int = 25) -> tuple[int, list[Exception]]:
    """Read the number and write one more, in several threads; return it and the errors."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(times):
                with connect.begin() as connection:
                    n = connection.execute(text("SELECT n FROM counter")).scalar_one()
                    connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with connect.connect() as connection:
        return connection.execute(text("SELECT n FROM counter")).scalar_one(), errors


def test_no_write_of_several_writers_is_lost(counter):
    prepared = prepare_engine(counter())
    assert count_up(prepared) == (100, [])
    prepared.dispose()


def test_a_plain_engine_would_lose_the_race(counter):
    plain = counter()
    n, errors = count_up(plain)
    assert n < 100 or errors
    plain.dispose()


def test_connections_are_set_up(url):
    prepared = prepare_engine(create_engine(url))
    with prepared.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    prepared.dispose()
    assert found == {
        "journal_mode": "wal",
        "synchronous": 1,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


@pytest.mark.parametrize("names", ["aaaaaa", "abcdef"], ids=["one", "several"])
def test_threads_may_create_databases_at_the_same_time(tmp_path, names):
    errors, barrier = [], threading.Barrier(len(names))

    def work(name: str) -> None:
        barrier.wait()
        try:
            Store(f"sqlite:///{tmp_path / name}.db").close()
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=[name]) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    for name in names:
        assert check(f"sqlite:///{tmp_path / name}.db").ok


DIES = """
import os, signal, sys
from droptune.store import Store, Workers
store = Store(sys.argv[1])
study = store.create_study("mine", {}, {}, [])
run = dict(phase="search", arm="trial", plan={}, seed=0, block=0, clock=0, slot=0)
run_id = store.start_run(study, trainer="serial", device="cpu", trial_number=0, **run)
store.record([(run_id, 1, 0.5, {})])
with store.transaction():
    store.record([(run_id, 2, 0.5, {})])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_only_the_open_transaction(url):
    done = subprocess.run([sys.executable, "-c", DIES, url])
    assert done.returncode == -signal.SIGKILL
    with Store(url) as store:
        with store.engine.connect() as connection:
            epochs = connection.execute(text("SELECT epoch FROM droptune_curve")).scalars().all()
        assert epochs == [1]
        assert Workers(store).reap(store.study("mine")["id"]) == 1
    assert check(url).ok


def test_reading_goes_on_while_another_writes(url, examples, monkeypatch):
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)
    with Store(url) as store, Store(url) as other:
        examples.new_study(store)
        with store.transaction():
            store.end_run(1, "failed", seconds=1, epochs=1)
            assert other.study("mine")["name"] == "mine"
            assert other.queries().studies()[0]["name"] == "mine"
            with pytest.raises(StoreError, match="is locked by another program"):
                other.end_run(1, "failed", seconds=1, epochs=1)
        other.end_run(1, "failed", seconds=1, epochs=1)


def test_an_error_inside_is_explained_and_a_users_error_is_not():
    with pytest.raises(StoreError, match="disk is full"), explained("sqlite:///x.db"):
        raise sqlite3.OperationalError("database or disk is full")
    with pytest.raises(KeyError), explained("sqlite:///x.db"):
        raise KeyError


def test_json_has_null_for_numbers_that_json_lacks():
    value = {"a": [1, float("nan")], "b": (float("inf"), {"c": -float("inf")}), "d": "NaN"}
    assert to_json(value) == '{"a":[1,null],"b":[null,{"c":null}],"d":"NaN"}'
