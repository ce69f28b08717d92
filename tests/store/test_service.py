"""What `droptune status` knows: workers by the database's clock, and how fast a study goes."""

import os
import subprocess
import sys

import pytest
from sqlalchemy import text

from droptune.store import Store, Workers
from droptune.store.service import Service


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path) -> str:
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").fresh()
    return f"sqlite:///{tmp_path}/d.db"


def status(url: str) -> dict:
    with Service(url) as service:
        return service.status()


def change(url: str, sql: str) -> None:
    with Store(url) as store, store.engine.begin() as connection:
        connection.execute(text(sql))


def test_a_worker_is_alive_as_long_as_it_beats_and_its_process_is_there(where, tuned):
    tuned(where)
    with Store(where) as store:
        workers = Workers(store)
        me, gone = workers.register("cpu", os.getpid()), workers.register("cuda:1", 2**22 + 1)
        workers.leave(workers.register("cpu", os.getpid()))
        doing = {"phase": "search", "done": 3, "total": 6, "running": 1, "seconds_left": 30.0}
        workers.beat(me, store.study("mine")["id"], doing | {"best": 0.25})
        workers.beat(gone, None, None)
    found = status(where)
    alive, dead = found["workers"]
    assert (alive["id"], alive["alive"], alive["study"]) == (me, True, "mine")
    assert alive["doing"]["running"] == 1 and 0 <= alive["seen"] < 20
    assert (dead["id"], dead["alive"], dead["study"]) == (gone, False, None)
    (study,) = found["studies"]  # worked on, though nobody submitted it
    assert (study["name"], study["state"], study["workers"]) == ("mine", None, 1)
    assert (study["phase"], study["done"], study["total"]) == ("search", 3, 6)
    assert (study["best"], study["seconds_left"]) == (0.25, 30.0)
    assert study["trials"]["complete"] == 3
    ago = "datetime('now', '-1 minute')" if "sqlite" in where else "now() - interval '1 minute'"
    ago = ago if "sqlite" in where else f"timezone('UTC', {ago})"
    change(where, f"UPDATE droptune_worker SET seen_at = {ago} WHERE id = {me}")
    alive = status(where)["workers"][0]
    assert not alive["alive"] and 55 < alive["seen"] < 90
    assert not status(where)["studies"]


def test_trials_of_the_last_hour_are_those_that_ended_in_it(where, tuned):
    tuned(where)
    with Store(where) as store:
        workers = Workers(store)
        workers.beat(workers.register("cpu", os.getpid()), store.study("mine")["id"], None)
    (study,) = status(where)["studies"]
    assert study["per_hour"] == 4  # three complete, one failed
    assert study["per_hour_ever"] > 100
    begun_and_took = [(120, 5000), (65, 400), (65, 200), (120, 1)]  # minutes ago, seconds
    for trial, (ago, took) in enumerate(begun_and_took):
        when = f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{ago} minutes')"
        if "sqlite" not in where:
            when = f"timezone('UTC', now()) - interval '{ago} minutes'"
        values = f"started_at = {when}, seconds = {took}"
        change(where, f"UPDATE droptune_run SET {values} WHERE trial_number = {trial}")
    (study,) = status(where)["studies"]
    assert study["per_hour"] == 2
    assert study["per_hour_ever"] == pytest.approx(2, rel=0.01)


def test_it_is_read_without_optuna_torch_and_sqlalchemy(tmp_path, tuned):
    url = f"sqlite:///{tmp_path}/d.db"
    tuned(url)
    code = (
        "import sys; from droptune.cli import main; main(['status'], standalone_mode=False); "
        "print({'torch', 'optuna', 'sqlalchemy'} & {*sys.modules})"
    )
    environment = os.environ | {"DROPTUNE_STORE": url}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.endswith("set()\n")
