"""Workers: signs of life by the database's clock, and what dead ones leave."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, text

from droptune.errors import StoreError
from droptune.store import Claims, Store, Taken, Workers
from droptune.store.schema import RunRow, now
from droptune.store.workers import LEASE

AGO = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '{} seconds')",
    "postgresql": "timezone('UTC', clock_timestamp()) + interval '{} seconds'",
}


def start(store, study_id, examples, worker, **changes):
    store.worker = worker
    run = store.start_run(study_id, plan=examples.plan(0.1), **examples.run | changes)
    store.worker = None  # whoever looks is another
    return run


def move_clock(store, worker, seconds):
    """Make a worker's last sign of life so many seconds later."""
    when = AGO[store.engine.dialect.name].format(seconds)
    statement = f"UPDATE droptune_worker SET seen_at = {when} WHERE id = {worker}"
    store.execute(text(statement))


def elsewhere(store, worker):
    store.execute(text(f"UPDATE droptune_worker SET place = 'another' WHERE id = {worker}"))


def states(store):
    return [row["state"] for row in store.rows(text("SELECT state FROM droptune_run ORDER BY id"))]


@pytest.mark.parametrize(
    ("seconds", "dead"), [(0, False), (5 - LEASE, False), (-LEASE - 5, True), (LEASE + 60, True)]
)
def test_a_worker_of_another_machine_is_dead_when_its_lease_is_over(
    store, study_id, examples, seconds, dead
):
    worker = Workers(store).register("cpu", os.getpid())
    start(store, study_id, examples, worker, trial_number=0)
    elsewhere(store, worker)
    move_clock(store, worker, seconds)
    assert Workers(store).reap(study_id) == dead
    assert states(store) == ["stale" if dead else "running"]


def test_a_beat_renews_the_lease(store, study_id, examples):
    workers = Workers(store)
    worker = workers.register("cpu", os.getpid())
    start(store, study_id, examples, worker, trial_number=0)
    elsewhere(store, worker)
    move_clock(store, worker, -2 * LEASE)
    workers.beat(worker, study_id, {"phase": "search"})
    assert workers.reap(study_id) == 0
    (row,) = store.rows(text("SELECT study_id, doing FROM droptune_worker"))
    assert row["study_id"] == study_id and "search" in str(row["doing"])


def test_a_worker_does_not_think_itself_dead(store, study_id, examples):
    workers = Workers(store)
    worker = workers.register("cpu", os.getpid())
    start(store, study_id, examples, worker, trial_number=0)
    move_clock(store, worker, -3 * LEASE)
    store.worker = worker
    assert workers.reap(study_id) == 0
    store.worker = None
    assert workers.reap(study_id) == 1


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(store, study_id, examples):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    worker = Workers(store).register("cpu", child.pid)
    start(store, study_id, examples, worker, trial_number=0)
    assert Workers(store).reap(study_id) == 1


def test_a_worker_that_left_and_one_unknown_are_dead(store, study_id, examples):
    workers = Workers(store)
    left, here = (workers.register("cpu", os.getpid()) for _ in range(2))
    start(store, study_id, examples, left, trial_number=0)
    start(store, study_id, examples, None, trial_number=1)
    start(store, study_id, examples, here, trial_number=2)
    other = examples.new_study(store, "other")
    start(store, other, examples, left, trial_number=0)
    workers.leave(left)
    assert workers.busy(study_id) == 2, "of the one without a worker nobody is known"
    assert workers.reap(study_id) == 2
    assert states(store) == ["stale", "stale", "running", "running"], "the other study's stays"
    assert workers.busy(study_id) == 1


def test_one_run_of_a_trial_or_of_an_arm_runs_at_a_time(store, study_id, examples):
    worker = Workers(store).register("cpu", os.getpid())
    first = start(store, study_id, examples, worker, trial_number=0)
    with pytest.raises(Exception, match="(?i)unique"):
        start(store, study_id, examples, worker, trial_number=0)
    arm = {"phase": "confirm", "arm": "no dropout", "block": 1}
    start(store, study_id, examples, worker, **arm)
    with pytest.raises(Exception, match="(?i)unique"):
        start(store, study_id, examples, worker, **arm)
    start(store, study_id, examples, worker, **arm | {"block": 2})
    store.end_run(first, "interrupted", seconds=1, epochs=1)
    start(store, study_id, examples, worker, trial_number=0)


def test_what_was_taken_is_no_longer_held(store, study_id, examples):
    workers, claims = Workers(store), Claims(store, study_id)
    worker = workers.register("cpu", os.getpid())
    runs = [start(store, study_id, examples, worker, trial_number=n) for n in range(3)]
    assert claims.trials() == {0, 1, 2}
    store.end_run(runs[1], "stale", seconds=1, epochs=1)
    with store.transaction():
        assert claims.held(runs) == {runs[0], runs[2]}
    assert claims.trials() == {0, 2}


def test_the_last_run_of_a_trial_says_where_to_go_on(store, study_id, examples):
    claims = Claims(store, study_id)
    worker = Workers(store).register("cpu", os.getpid())
    for name in ("3-1", "3-2"):
        run = start(store, study_id, examples, worker, trial_number=7, slot=2, clock=4)
        store.record([(run, epoch, 1.0, {"val_loss": 1 / epoch}) for epoch in (1, 2)])
        claims.keep([run], name)
        claims.progress([(run, 2, 0.5)])
        store.execute(text(f"UPDATE droptune_run SET state = 'stale' WHERE id = {run}"))
    (last,) = claims.last_runs([7, 8])
    assert (last["id"], last["trial_number"], last["slot"], last["clock"]) == (run, 7, 2, 4)
    assert last["checkpoint"] == {"name": "3-2"} and last["metrics"] == {"val_loss": 0.5}
    assert store.search_seconds(study_id) == 1.0, "what dead workers have spent counts"
    claims.keep([run], None)
    assert claims.last_runs([7])[0]["checkpoint"] is None


def test_alive_are_those_that_would_not_be_reaped(store):
    workers = Workers(store)
    here, left, far = (workers.register("cpu", os.getpid()) for _ in range(3))
    workers.leave(left)
    elsewhere(store, far)
    assert workers.alive([here, left, far, None]) == {here, far}
    move_clock(store, far, -LEASE - 5)
    assert workers.alive([here, left, far]) == {here}
    assert workers.alive([]) == set()


def claim(store, study_id, examples, **changes):
    """Start a run as a worker that knows nothing of others."""
    about = {"plan": examples.plan(0.1), "trial_number": None} | examples.run | changes
    return Claims(store, study_id).start(**about)


ARM = {"phase": "confirm", "arm": "no dropout", "block": 1}


@pytest.mark.parametrize("what", [{"trial_number": 0}, ARM], ids=["trial", "arm"])
def test_what_somebody_trains_or_has_trained_is_taken(store, study_id, examples, what):
    run = claim(store, study_id, examples, **what)
    with pytest.raises(Taken):
        claim(store, study_id, examples, **what)
    for state in ("complete", "pruned", "failed"):
        store.end_run(run, state, seconds=1, epochs=1)
        with pytest.raises(Taken):
            claim(store, study_id, examples, **what)
    assert len(states(store)) == 1, "nothing was stored"
    store.execute(text("UPDATE droptune_run SET state = 'stale'"))
    assert claim(store, study_id, examples, **what) != run


def test_an_arm_that_has_ended_is_known_by_its_plan(store, study_id, examples):
    store.end_run(claim(store, study_id, examples, **ARM), "complete", seconds=1, epochs=1)
    with pytest.raises(Taken):
        claim(store, study_id, examples, **ARM | {"arm": "no dropout, objective 2"})
    claim(store, study_id, examples, **ARM | {"plan": examples.plan(0.2)})
    claim(store, study_id, examples, **ARM | {"block": 2})


def test_two_that_claim_at_the_same_moment_do_not_both_get_it(store, study_id, examples):
    """Neither sees the other's run before it has written its own."""
    with store.engine.connect() as other, other.begin():
        if store.engine.dialect.name == "sqlite":
            pytest.skip("its transactions come one after the other")
        columns = {name: value for name, value in examples.run.items() if name != "arm"}
        columns |= {"study_id": study_id, "arm": "trial", "trial_number": 0, "state": "running"}
        columns |= {"plan": examples.plan(0.1), "started_at": now()}
        other.execute(insert(RunRow), columns)
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(claim, store, study_id, examples, trial_number=0)
            while not store.rows(text("SELECT 1 FROM pg_locks WHERE NOT granted")):
                assert not late.done()
            other.commit()
            with pytest.raises(Taken):
                late.result()
    assert states(store) == ["running"]


def test_what_else_a_database_refuses_is_not_taken_for_a_claim(store, study_id, examples):
    store.worker = 99  # there is none
    with pytest.raises(StoreError):
        claim(store, study_id, examples, trial_number=0)
    store.worker = None
    claim(store, study_id, examples, trial_number=0)


def test_a_worker_that_trained_nothing_leaves_no_row(store, study_id, examples):
    workers = Workers(store)
    idle, busy = (workers.register("cpu", os.getpid()) for _ in range(2))
    start(store, study_id, examples, busy, trial_number=0)
    workers.leave(idle)
    workers.leave(busy)
    found = store.rows(text("SELECT id, ended_at FROM droptune_worker"))
    assert [row["id"] for row in found] == [busy] and found[0]["ended_at"] is not None


def test_a_worker_that_left_while_the_database_was_away_is_dead_at_once(
    store, study_id, examples, monkeypatch
):
    workers = Workers(store)
    worker = workers.register("cpu", os.getpid())
    start(store, study_id, examples, worker, trial_number=0)
    assert workers.reap(study_id) == 0
    with monkeypatch.context() as away:
        away.setattr(Store, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workers.leave(worker)
    assert Workers(store).reap(study_id) == 1
