"""`droptune worker` in processes of its own: what it takes, what it leaves, and how it ends."""

import signal
from contextlib import contextmanager

import pytest

from droptune.store import Store, submissions
from droptune.store.service import Service
from tests.workers.targets import run, start, until, write


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)],
)
def url(request, tmp_path) -> str:
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").fresh()
    return f"sqlite:///{tmp_path}/droptune.db"


def queue(url: str, *rows: tuple) -> None:
    """Queue rows as anybody who may write to the database could."""
    with Store(url) as store:
        for name, target, options in rows:
            submissions.submit(store, name, target, options)


def studies(url: str) -> dict[str, dict]:
    with Service(url) as service:
        return {row["name"]: row for row in service.status()["studies"]}


@contextmanager
def working(folder, url, *words):
    """A worker, as long as the context is open."""
    process = start(folder, "worker", "--store", url, *words)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()


@pytest.mark.slow
def test_it_takes_what_it_may_and_leaves_the_rest(tmp_path, url):
    write(tmp_path, "mine.py")
    write(tmp_path, "mine_evil.py", body='Path("evil").touch()')
    broken = 'study = study.using(sampler="tbe")\n'
    (tmp_path / "broken.py").write_text(write(tmp_path).read_text() + broken)
    queue(
        url,
        ("first", "mine", {"trials": 4}),
        ("evil", "mine_evil", {}),
        ("file", "mine_evil.py", {}),
        ("odd", "mine", {"store": "sqlite:///evil.db"}),
        ("nowhere", "mine.nowhere", {}),
        ("second", "mine:study", {"trials": 2, "seed": 1}),
        ("wrong", "mine", {"sampler": "tbe"}),
    )
    words = ("--allow", "mine", "--until-empty", "--workers", 2)
    _, err = run(tmp_path, "worker", "--store", url, *words)
    found = studies(url)
    states = {name: row["state"] for name, row in found.items()}
    left = dict.fromkeys(("evil", "file", "odd", "nowhere"), "queued")
    assert states == {"first": "done", "second": "done", "wrong": "failed", **left}
    assert found["first"]["trials"]["complete"] == 4
    assert found["second"]["trials"]["complete"] == 2
    assert "unknown sampler 'tbe'" in found["wrong"]["message"]
    assert "--allow mine_evil" in found["evil"]["message"]
    assert "--allow-files" in found["file"]["message"]
    assert "option 'store'" in found["odd"]["message"]
    assert "mine.nowhere" in found["nowhere"]["message"]
    assert not (tmp_path / "evil").exists() and not (tmp_path / "evil.db").exists()
    for name in left:
        assert err.count(f"study {name!r} is left for others") == 1
    assert "Traceback" not in err


def test_sigterm_hands_back_and_exits_with_0(tmp_path, url):
    write(tmp_path)
    queue(url, ("first", "mine", {"trials": 1000}))
    with working(tmp_path, url, "--allow", "mine") as process:
        until(lambda: studies(url)["first"]["trials"]["complete"] > 1)
        with Service(url) as service:
            parent, child = service.status()["workers"]
        assert (parent["pid"], parent["study"], child["study"]) == (process.pid, None, "first")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    with Service(url) as service:
        assert not service.status()["workers"]
    before = studies(url)["first"]
    assert before["state"] == "queued" and before["trials"]["running"] <= 1
    done = before["trials"]["complete"] + 2
    queue(url, ("first", "mine", {"trials": done}))
    run(tmp_path, "worker", "--store", url, "--allow", "mine", "--until-empty")
    after = studies(url)["first"]
    assert after["state"] == "done" and after["trials"]["complete"] == done


@pytest.mark.slow
def test_two_workers_share_a_study_and_its_budget(tmp_path, url):
    write(tmp_path, sleep=0.3)
    queue(url, ("first", "mine", {"trials": 20}))
    with working(tmp_path, url, "--allow", "mine"), working(tmp_path, url, "--allow", "mine"):
        until(lambda: studies(url)["first"]["workers"] == 2)
        until(lambda: studies(url)["first"]["state"] == "done", 120)
    trials = studies(url)["first"]["trials"]
    assert trials["complete"] == sum(trials.values()) == 20


@pytest.mark.slow
def test_it_turns_to_the_next_study_where_nothing_is_free(tmp_path, url):
    write(tmp_path, "long.py", trials=1, sleep=20)
    write(tmp_path, "mine.py")
    queue(url, ("long", "long", {"trials": 1}), ("first", "mine", {"trials": 4}))
    with working(tmp_path, url, "--allow", "mine", "--allow", "long", "--workers", 2):
        until(lambda: studies(url)["first"]["state"] == "done", 120)
        assert studies(url)["long"]["state"] == "queued"


@pytest.mark.slow
def test_a_withdrawn_study_is_stopped_and_a_new_one_begun(tmp_path, url):
    write(tmp_path)
    queue(url, ("first", "mine", {"trials": 1000}))
    with working(tmp_path, url, "--allow", "mine"):
        until(lambda: studies(url)["first"]["trials"]["complete"])
        run(tmp_path, "withdraw", "--study", "first", "--store", url)
        queue(url, ("second", "mine", {"trials": 2}))
        until(lambda: studies(url)["second"]["state"] == "done")
    assert studies(url)["first"]["state"] == "withdrawn"


@pytest.mark.slow
def test_a_study_that_kills_its_processes_is_left_and_others_go_on(tmp_path, url):
    write(tmp_path, "bad.py", body="os.kill(os.getpid(), signal.SIGSEGV)")
    write(tmp_path)
    queue(url, ("bad", "bad", {}), ("first", "mine", {"trials": 2}))
    words = ("--allow", "mine", "--allow", "bad", "--until-empty")
    _, err = run(tmp_path, "worker", "--store", url, *words)
    found = studies(url)
    assert found["first"]["state"] == "done"
    assert "die again and again (ended by SIGSEGV" in found["bad"]["message"]


@pytest.mark.slow
def test_it_waits_for_a_database_that_is_away(tmp_path, postgres):
    url = postgres.fresh()
    write(tmp_path)
    with working(tmp_path, url, "--allow", "mine") as process:
        until(lambda: _seen(url))
        postgres.stop()
        try:
            assert process.poll() is None
            until(lambda: "waiting for it" in process.stderr.readline(), 120)
        finally:
            postgres.start()
        queue(url, ("first", "mine", {"trials": 2}))
        until(lambda: studies(url)["first"]["state"] == "done", 120)


def _seen(url: str) -> bool:
    with Service(url) as service:
        return bool(service.status()["workers"])


def test_a_worker_that_may_import_nothing_says_what_to_add(tmp_path):
    _, err = run(tmp_path, "worker", code=1)
    assert "--allow my_project, or --allow-files" in err
    _, err = run(tmp_path, "worker", "--allow", "a/b", code=1)
    assert "--allow 'a/b'" in err
