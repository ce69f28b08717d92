"""The lock of a study: one process at a time, given back by its death."""

import subprocess
import sys
import threading
import time

import pytest

from droptune.errors import StoreError
from droptune.store import Store

HOLDS = """
import sys, time
from droptune.store import Store
with Store(sys.argv[1]) as store, store.exclusive("mine"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request, url):
    url = url if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    Store(url).close()
    return url


@pytest.fixture
def holder(shared):
    """Another process that holds the lock of study `mine`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, shared], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_threads_of_two_stores_take_turns(shared):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        with Store(shared) as store:
            for _ in range(5):
                with store.exclusive("mine"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.001)
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == 1


def test_the_lock_of_a_killed_process_is_free_at_once(shared, holder, monkeypatch):
    taken = threading.Event()

    def wait():
        with Store(shared) as store, store.exclusive("mine"):
            taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not taken.wait(0.3), "the other process has it"
    holder.kill()
    assert taken.wait(20)
    thread.join()


def test_a_lock_that_is_never_given_back_is_an_error_of_one_line(shared, holder, monkeypatch):
    monkeypatch.setattr("droptune.store.lock.PATIENCE", 0.2)
    monkeypatch.setattr("droptune.store.server.LOCK_SECONDS", 0.2)
    monkeypatch.setattr("droptune.store.server.IDLE_SECONDS", 0.2)
    with Store(shared) as store, pytest.raises(StoreError) as caught, store.exclusive("mine"):
        pass
    assert "\n" not in str(caught.value) and "lock" in str(caught.value)


def test_what_is_written_inside_is_not_kept_out(shared):
    with Store(shared) as store:
        with store.exclusive("mine"):
            study = store.create_study("mine", {"objective": "val_loss"}, {}, [])
        assert store.study("mine")["id"] == study
