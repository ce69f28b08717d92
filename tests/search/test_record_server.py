"""The record of trials on a server that fails: each trial there once, under its number."""

import threading

import pytest

from droptune import retry, rows
from droptune.errors import StoreError, TransientError
from droptune.plan import Plan
from droptune.store import Store
from tests.search.tiny import loss, run, stored


@pytest.fixture
def url(postgres):
    return postgres.fresh()


def lose_answers(search, numbers) -> list[int]:
    """Let commits take place, and the answers to those with these numbers get lost."""
    dialect = search._record._rdb.engine.dialect
    real, count = dialect.do_commit, []

    def commit(connection):
        real(connection)
        count.append(len(count))
        if count[-1] in numbers:
            connection.dbapi_connection.close()
            connection.dbapi_connection.execute("SELECT 1")  # raises as where it broke

    dialect.do_commit = commit
    return count


def test_commits_whose_answers_are_lost_store_each_trial_once(search, url):
    one = search(pruner="median", rungs=(1,))
    commits = lose_answers(one, range(0, 1000, 3))
    one.enqueue("half everywhere", Plan({"0": ("standard", 0.5)}))
    asked = run(one, 3)
    assert [a.number for a in asked] == [0, 1, 2]
    assert len(commits) > 12
    trials = stored(url)
    assert [(t.number, t.state.name) for t in trials] == [(n, "COMPLETE") for n in range(3)]
    assert [t.value for t in trials] == [loss(a.plan) for a in asked]
    assert [list(t.intermediate_values) for t in trials] == [[1]] * 3
    assert search(pruner="median", rungs=(1,)).finished == 3


def test_a_server_that_cuts_and_restarts_between_all_steps_loses_nothing(search, url, postgres):
    one = search()
    asked = one.ask()
    postgres.cut(url)
    one.report(asked.number, 1, 0.5)
    postgres.stop()
    starter = threading.Timer(0.5, postgres.start)
    starter.start()
    try:
        one.tell(asked.number, 0.5)
    finally:
        starter.join()
    postgres.cut(url)
    again = one.ask()
    assert again.number == 1
    assert [(t.number, t.value) for t in stored(url)] == [(0, 0.5), (1, None)]


def test_a_server_that_stays_away_ends_the_search_in_one_line(search, url, postgres, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.2)
    one = search()
    asked = one.ask()
    postgres.stop()
    try:
        with pytest.raises(StoreError) as caught:
            one.tell(asked.number, 0.5)
    finally:
        postgres.start()
    assert "tried again for 0.2 s; what is stored is kept" in str(caught.value)
    assert "\n" not in str(caught.value)
    two = search()
    assert two.ask().number == asked.number
    two.tell(asked.number, 0.5)
    assert [t.value for t in stored(url)] == [0.5]


def test_several_may_open_an_empty_database_at_the_same_time(search, postgres):
    url, errors, barrier = postgres.database(), [], threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        try:
            with Store(url) as store, store.alone():
                found = search(f"study {number}", url=url)
            run(found, 2)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [len(stored(url, f"study {number}")) for number in range(4)] == [2] * 4


def test_who_was_overtaken_while_the_server_was_away_asks_again(search, url, monkeypatch):
    one, two = search(), search()
    insert = rows.insert

    def away(*arguments):
        monkeypatch.setattr(rows, "insert", insert)
        two.ask()
        raise TransientError("the server restarts")

    monkeypatch.setattr(rows, "insert", away)
    with pytest.raises(TransientError, match="another process came in"):
        one.ask()
    one.sync()
    asked = one.ask(live={0})
    assert asked.number == 1
    one.tell(1, 0.25)
    two.sync()
    assert two.counts() == one.counts()
    assert [(t.number, t.state.name) for t in stored(url)] == [(0, "RUNNING"), (1, "COMPLETE")]
