"""Runs that go on from a checkpoint: as if nothing had been, for neighbours and pruner."""

import contextlib
import json
import os
import signal
import sqlite3

import numpy as np
import pytest

from droptune.errors import TransientError
from droptune.paired import Paired
from droptune.store import Store
from droptune.watch import Idle, NothingFree
from tests.small import Notes, fresh, rows, study, trials


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def interrupted(url: str, after: int, **settings) -> None:
    """Train three trials until Ctrl-C, after so many epochs."""

    def press(_):
        if len(notes.statuses) == after:
            os.kill(os.getpid(), signal.SIGINT)

    notes = Notes(press)
    with pytest.raises(KeyboardInterrupt):
        study(url, slots=3, confirm_blocks=0, **settings).optimize(progress=notes)


def test_trials_that_begin_beside_restored_ones_have_their_clock(url):
    interrupted(url, 3, epochs=8)
    study(url, slots=6, epochs=8, confirm_blocks=0).optimize(progress=Notes())
    clocks = "SELECT trial_number, clock FROM droptune_run WHERE state = 'complete' ORDER BY 1"
    assert rows(url, clocks) == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3)]


def test_successive_halving_knows_the_rungs_behind_a_restored_trial(url):
    settings = {"epochs": 8, "trials": 3, "pruner": "successive-halving"}
    interrupted(url, 3, **settings)
    study(url, slots=3, confirm_blocks=0, **settings).optimize(progress=Notes())
    rung = """
        SELECT t.number, a.value_json FROM trial_system_attributes a
        JOIN trials t ON t.trial_id = a.trial_id WHERE a.key = 'completed_rung_0'
    """
    curve = """
        SELECT r.trial_number, c.metrics FROM droptune_run r JOIN droptune_curve c ON r.id = run_id
        WHERE c.epoch = 1 AND r.state = 'interrupted'
    """
    first = {number: json.loads(metrics)["val_loss"] for number, metrics in rows(url, curve)}
    found = {number: json.loads(value) for number, value in rows(url, rung)}
    assert len(first) > 1, "none was restored"
    assert {number: found[number] for number in first} == pytest.approx(first)


def test_the_paired_pruner_learns_from_the_whole_curve_of_a_restored_trial(url, monkeypatch):
    whole = []
    end = Paired.end

    def ended(self, trial, *last):
        end(self, trial, *last)
        whole.append(bool(np.isfinite(self._ended[trial]).all()))

    monkeypatch.setattr(Paired, "end", ended)
    settings = {"epochs": 8, "trials": 3, "pruner": "paired"}
    interrupted(url, 3, **settings)
    study(url, slots=3, confirm_blocks=0, **settings).optimize(progress=Notes())
    assert whole == [True, True, True], "all levels are known"


@pytest.mark.parametrize("phase", ["search", "confirm"])
def test_an_epoch_whose_commit_is_not_answered_ends_its_runs_once(url, monkeypatch, phase):
    """The server goes away after it has stored the ends of runs, and before it says so."""
    ends, answers, end, whole = [], [], Store.end_run, Store.transaction

    def end_run(self, run, state, **rest):
        if state == "complete" and (phase == "search" or rest["test"] is not None):
            ends.append(run)
        end(self, run, state, **rest)

    @contextlib.contextmanager
    def transaction(self):
        outer = self._connection is None
        with whole(self):
            yield
        if outer and ends and not answers:
            answers.append("lost")
            raise TransientError("the server restarts")

    def never(self):
        raise AssertionError("it waits for itself")

    monkeypatch.setattr(Store, "end_run", end_run)
    monkeypatch.setattr(Store, "transaction", transaction)
    monkeypatch.setattr(Idle, "__call__", never)
    notes = Notes()
    study(url, slots=2).optimize(progress=notes)
    assert answers == ["lost"] and notes.messages == []
    assert trials(url) == [(number, "COMPLETE") for number in range(6)]
    assert rows(url, "SELECT DISTINCT state FROM droptune_run") == [("complete",)]


def test_a_trial_that_another_worker_has_told_meanwhile_is_not_reported(url):
    """As after a process that was stopped between two epochs."""
    settings = {"trials": 3, "epochs": 4, "pruner": "successive-halving", "confirm_blocks": 0}

    def taken(_):
        if len(notes.statuses) == 1:
            with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
                database.execute("UPDATE droptune_run SET state = 'stale' WHERE trial_number = 1")
                database.commit()
            with pytest.raises(NothingFree):
                study(url, slots=1, **settings).optimize(progress=Notes(), wait=False)

    notes = Notes(taken)
    study(url, slots=4, **settings).optimize(progress=notes)
    assert "1 runs were taken over" in notes.messages[0]
    assert {n for n, state in trials(url) if state != "WAITING"} == {0, 1, 2}
    ended = "SELECT trial_number FROM droptune_run WHERE state IN ('complete', 'pruned')"
    assert sorted(rows(url, ended)) == [(0,), (1,), (2,)]
