"""A PostgreSQL server that restarts, cuts connections, or has others on it: what is done again."""

import threading
import time

import pytest
from sqlalchemy import text

from droptune import retry
from droptune.errors import StoreError, TransientError
from droptune.store import Claims, Store
from droptune.store.migrate import check


@pytest.fixture
def url(postgres):
    return postgres.fresh()


@pytest.fixture
def store(url):
    with Store(url) as store:
        yield store


@pytest.fixture
def run_id(store, examples):
    study_id = examples.new_study(store)
    return store.start_run(study_id, plan=examples.plan(0.1), **examples.run)


def rows(store, sql: str) -> list[tuple]:
    with store.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


def epochs(store) -> list[int]:
    return [epoch for (epoch,) in rows(store, "SELECT epoch FROM droptune_curve ORDER BY epoch")]


def lose_next_commit(engine) -> list[int]:
    """Let the next commit take place, and its answer get lost; return a list that counts."""
    real, count = engine.dialect.do_commit, []

    def commit(connection):
        real(connection)
        if not count:
            count.append(1)
            connection.dbapi_connection.close()
            connection.dbapi_connection.execute("SELECT 1")  # raises as where it broke

    engine.dialect.do_commit = commit
    return count


# Connections that are lost


def test_a_cut_connection_is_replaced(store, run_id, postgres):
    store.record([(run_id, 1, 0.5, {})])
    assert postgres.cut(store.url) > 0
    store.record([(run_id, 2, 0.5, {})])
    assert store.study("mine")["name"] == "mine"
    assert epochs(store) == [1, 2]


def test_a_transaction_that_is_cut_is_done_again_as_a_whole(store, run_id, postgres):
    tries = []

    def work():
        store.record([(run_id, 1, 0.5, {})])
        if not tries:
            postgres.cut(store.url)
        tries.append(1)
        store.end_run(run_id, "complete", seconds=1, epochs=1)

    store.write(work)
    assert len(tries) == 2
    assert rows(store, "SELECT state FROM droptune_run") == [("complete",)]
    assert epochs(store) == [1]


def test_a_cut_transaction_that_cannot_be_repeated_stores_nothing(store, run_id, postgres):
    with pytest.raises(TransientError, match="cannot be reached"), store.transaction():
        store.record([(run_id, 1, 0.5, {})])
        postgres.cut(store.url)
        store.record([(run_id, 2, 0.5, {})])
    assert epochs(store) == []


def claimed(store, examples, **what) -> int:
    """Claim a trial or an arm in a transaction that may do more, as a fork does."""
    about = {"plan": examples.plan(0.1), "trial_number": None} | examples.run | what
    return store.write(lambda: Claims(store, 1).start(**about))


WRITES = {
    "study": lambda store, e: e.new_study(store, "new"),
    "run": lambda store, e: store.start_run(1, plan=e.plan(0.1), **e.run),
    "claim": lambda store, e: claimed(store, e, trial_number=7),
    "claim of an arm": lambda store, e: claimed(store, e, phase="confirm", arm="no dropout"),
    "site": lambda store, e: e.new_study(store, "newer"),
    "verdict": lambda store, e: store.save_verdict(
        1, {k: "x" for k in ("verdict", "text", "objective", "direction")} | {"plan": {}}
    ),
    "curve": lambda store, e: store.record([(1, 1, 0.5, {}), (1, 2, 0.5, {})]),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_commit_whose_answer_is_lost_stores_its_rows_once(store, run_id, examples, what):
    table = "run" if "claim" in what else what
    before = rows(store, f"SELECT count(*) FROM droptune_{table}")[0][0]
    lost = lose_next_commit(store.engine)
    found = WRITES[what](store, examples)
    assert lost == [1]
    new = {"site": 2, "curve": 2}.get(table, 1)
    assert rows(store, f"SELECT count(*) FROM droptune_{table}") == [(before + new,)]
    if table in ("study", "run"):
        assert rows(store, f"SELECT max(id) FROM droptune_{table}") == [(found,)]


def test_a_server_that_restarts_is_waited_for(store, run_id, postgres, caplog):
    postgres.stop()
    starter = threading.Timer(1.5, postgres.start)
    starter.start()
    try:
        store.record([(run_id, 1, 0.5, {})])
    finally:
        starter.join()
    assert epochs(store) == [1]
    assert "cannot be reached" in caplog.text
    assert "trying again for up to 60 s" in caplog.text


def test_a_server_that_is_full_is_waited_for_at_the_opening_too(postgres, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 20.0)
    name = "carol"
    postgres.protect(name, "secret")  # those who own the server are never refused
    postgres.database(name=name)
    postgres.execute(f"ALTER DATABASE {name} OWNER TO {name}")
    url = postgres.url(name, name, "secret")
    with Store(url) as first:
        postgres.execute(f"ALTER ROLE {name} CONNECTION LIMIT 1")
        threading.Timer(0.5, first.close).start()  # which keeps one that nobody uses
        with Store(url) as second:
            assert not second.queries().studies()


def test_a_server_that_is_not_there_is_not_waited_for_at_the_opening():
    started = time.monotonic()
    with pytest.raises(StoreError, match="cannot be reached"):
        Store("postgresql://ann@localhost:1/mine")
    assert time.monotonic() - started < 30


def test_a_server_that_stays_away_is_given_up_in_one_line(store, run_id, postgres, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.3)
    store.record([(run_id, 1, 0.5, {})])
    postgres.stop()
    try:
        for call in (lambda: store.record([(run_id, 2, 0.5, {})]), lambda: store.study("mine")):
            with pytest.raises(StoreError) as caught:
                call()
            said = str(caught.value)
            assert "check that the server runs" in said
            assert "tried again for 0.3 s; what is stored is kept" in said
            assert "\n" not in said
    finally:
        postgres.start()
    assert epochs(store) == [1]


def test_what_no_waiting_mends_is_tried_once(store, run_id, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(StoreError):
        store.record([(99, 1, 0.5, {})])  # there is no such run


# Transactions that get in each other's way


def test_a_deadlock_is_dissolved_and_both_writers_store(store, url, examples):
    study_id = examples.new_study(store)
    runs = [store.start_run(study_id, plan={}, **examples.run) for _ in range(2)]
    both, tries = threading.Barrier(2), []

    def work(first: int, second: int) -> None:
        def write():
            store.end_run(first, "complete", seconds=1, epochs=1)
            tries.append(first)
            if tries.count(first) == 1:
                both.wait()  # each has one row now, and wants the other's
            store.end_run(second, "complete", seconds=1, epochs=1)

        store.write(write)

    threads = [threading.Thread(target=work, args=order) for order in (runs, runs[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) == 3, "the server ends one of the two"
    assert rows(store, "SELECT DISTINCT state FROM droptune_run") == [("complete",)]


def test_a_serialisation_failure_is_done_again(url, postgres, examples):
    name = url.split("?")[0].rpartition("/")[2]
    setting = "default_transaction_isolation = 'serializable'"
    postgres.execute(f"ALTER DATABASE {name} SET {setting}")
    with Store(url) as store, Store(url) as other:
        study_id = examples.new_study(store)
        run_id = store.start_run(study_id, plan={}, **examples.run)
        tries = []

        def write():
            tries.append(store.search_seconds(study_id))  # reads what the other changes
            if len(tries) == 1:
                other.end_run(run_id, "complete", seconds=3, epochs=1)
            store.end_run(run_id, "failed", seconds=tries[-1] + 1, epochs=1)

        store.write(write)
        assert tries == [0, 3]
        assert rows(store, "SELECT state, seconds FROM droptune_run") == [("failed", 4)]


def test_a_lock_that_is_held_is_given_up_in_words(url, monkeypatch, examples):
    monkeypatch.setattr("droptune.store.server.LOCK_SECONDS", 0.1)
    with Store(url) as store, Store(url) as other:
        examples.new_study(store)
        with store.transaction():
            store.execute(text("LOCK TABLE droptune_run"))
            with pytest.raises(StoreError, match="is locked by another program"):
                other.end_run(1, "failed", seconds=1, epochs=1)
        other.end_run(1, "failed", seconds=1, epochs=1)


# Several at once


def test_several_may_make_the_tables_at_the_same_time(postgres):
    url, errors, barrier = postgres.database(), [], threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        try:
            Store(url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert check(url).ok


# What only a server has


def test_text_that_the_server_cannot_hold_is_stored_readably(store, run_id):
    store.end_run(run_id, "failed", seconds=1, epochs=1, message="caf\udce9 \0 end")
    ((message,),) = rows(store, "SELECT message FROM droptune_run")
    assert message == "caf\\udce9 \N{REPLACEMENT CHARACTER} end"


def test_deleting_a_study_takes_all_its_rows_along(store, run_id):
    store.record([(run_id, 1, 0.5, {})])
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM droptune_study"))
    for table in ("site", "run", "curve", "verdict"):
        assert rows(store, f"SELECT count(*) FROM droptune_{table}") == [(0,)]


def test_times_are_utc_whatever_zone_the_server_is_in(url, postgres, examples):
    name = url.split("?")[0].rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET timezone = 'Pacific/Auckland'")
    with Store(url) as store:
        examples.new_study(store)
        (study,) = store.queries().studies()
    now = time.strftime("%Y-%m-%dT%H", time.gmtime())
    before = time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() - 3600))
    assert study["created_at"][:13] in (now, before)
    assert study["created_at"].endswith("Z")
