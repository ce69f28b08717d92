"""The loop: budgets, pruning, memory, interrupts, and a death between any two writes."""

import gc
import itertools
import os
import signal
from collections import Counter

import pytest
import sqlalchemy
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from droptune.errors import StoreError, StudyError, TrainingError
from droptune.search import Search
from droptune.store import Store
from droptune.trainers import SerialTrainer
from tests.small import Notes, fresh, plain, rows, runs, sizes, study, trials


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Give up on locks at once, for nobody else has any."""
    monkeypatch.setattr("droptune.store.engine.BUSY_SECONDS", 0.1)


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def complete(count: int) -> list[tuple[int, str]]:
    return [(number, "COMPLETE") for number in range(count)]


# Budgets


def test_the_budget_is_a_total_over_all_calls(url):
    for budget, total in ((3, 3), (3, 3), (7, 7), (5, 7)):
        study(url, trials=budget, confirm_blocks=0, epochs=1).optimize(progress=Notes())
        assert [state for _, state in trials(url)].count("COMPLETE") == total
    assert [run[0] for run in runs(url, "search")] == list(range(7))


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_the_budget_holds_for_any_number_of_slots(url, slots):
    study(url, trials=8, slots=slots, confirm_blocks=0, epochs=2).optimize(progress=Notes())
    assert trials(url) == complete(8)
    clocks = rows(url, "SELECT trial_number, clock, slot FROM droptune_run ORDER BY trial_number")
    assert clocks == [(n, 0, n % slots) for n in range(8)], "who finds nobody begins at clock 0"


@pytest.fixture
def slow(monkeypatch):
    """Every member's epoch takes one second, or so it says."""
    epoch = SerialTrainer.epoch

    def one_second(self):
        return {slot: scores._replace(seconds=1.0) for slot, scores in epoch(self).items()}

    monkeypatch.setattr(SerialTrainer, "epoch", one_second)


def test_the_time_is_a_total_of_training_over_all_calls(url, slow):
    one = study(url, trials=99, confirm_blocks=0, epochs=3)
    first = one.optimize(time=7, progress=Notes())
    assert trials(url)[:3] == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "FAIL")]
    assert {state for _, state in trials(url)[3:]} == {"WAITING"}
    ((message, epochs),) = rows(url, "SELECT message, epochs FROM droptune_run WHERE id = 3")
    assert (message, epochs) == ("stopped: the time budget is used up", 1)
    before, notes = sizes(url), Notes()
    again = one.optimize(time=7, progress=notes)
    assert again.finished_before
    assert again.to_json() == first.to_json()
    assert "raise --time" in notes.messages[-1]
    assert sizes(url) == before
    one.optimize(time="10s", progress=Notes())
    assert trials(url)[3] == (3, "COMPLETE")
    assert rows(url, "SELECT sum(seconds) FROM droptune_run") == [(10.0,)]


def test_the_time_counts_runs_that_were_interrupted(url, slow):
    one = study(url, trials=99, confirm_blocks=0, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        one.optimize(time=6, progress=Notes(pressing(after=2)))
    one.optimize(time=6, progress=Notes())
    assert rows(url, "SELECT sum(seconds) FROM droptune_run") == [(6.0,)]


def test_confirmation_is_not_cut_by_the_time(url, slow):
    study(url, trials=99, confirm_blocks=2, epochs=2).optimize(time=4, progress=Notes())
    assert {state for _, _, _, state, _ in runs(url, "confirm")} == {"complete"}
    assert {block for _, _, block, _, _ in runs(url, "confirm")} == {1, 2}


# Pruning


@pytest.mark.parametrize("pruner", ["median", "hyperband", "successive-halving"])
@pytest.mark.parametrize("slots", [1, 4])
def test_pruned_trials_stop_at_a_rung_and_the_others_train_to_the_end(url, pruner, slots):
    settings = {"pruner": pruner, "epochs": 8, "slots": slots, "encoding": "site"}
    one, notes = study(url, trials=10, confirm_blocks=0, **settings), Notes()
    one.optimize(progress=Notes())
    one.optimize(trials=20, progress=notes)
    ended = rows(url, "SELECT trial_number, state, epochs FROM droptune_run")
    assert sorted(number for number, _, _ in ended) == list(range(20))
    states = {number: state.lower() for number, state in trials(url)}
    assert {number: state for number, state, _ in ended} == states
    assert {epochs for _, state, epochs in ended if state == "complete"} == {8}
    pruned = {epochs for _, state, epochs in ended if state == "pruned"}
    assert pruned <= {1, 2, 4}
    assert pruned, "nothing was pruned"
    assert states[0] == "complete", "no dropout is never pruned"
    assert notes.statuses[-1].pruned == list(states.values()).count("pruned")
    steps = {step for (step,) in rows(url, "SELECT step FROM trial_intermediate_values")}
    assert steps == {1, 2, 4}
    lengths = "SELECT r.epochs, count(*) FROM droptune_run r JOIN droptune_curve ON run_id = r.id"
    assert all(epochs == count for epochs, count in rows(url, lengths + " GROUP BY r.id"))


def test_no_dropout_and_as_given_are_never_pruned_however_bad_they_are(url, monkeypatch):
    monkeypatch.setattr(Search, "report", lambda *args: True)
    study(url, pruner="median", trials=4, confirm_blocks=0).optimize(progress=Notes())
    states = dict(trials(url))
    assert [states[number] for number in range(4)] == ["COMPLETE"] * 2 + ["PRUNED"] * 2


def test_without_a_pruner_no_rung_is_stored(url):
    study(url, epochs=4, trials=3, confirm_blocks=0).optimize(progress=Notes())
    assert rows(url, "SELECT * FROM trial_intermediate_values") == []


# Memory


def out_of_memory(monkeypatch, method: str, when, error=torch.OutOfMemoryError):
    """Let a trainer's method run out of memory when `when(trainer)` is true."""
    whole = getattr(SerialTrainer, method)

    def short(self, *args):
        if when(self):
            raise error("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return whole(self, *args)

    monkeypatch.setattr(SerialTrainer, method, short)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_slots_and_loses_no_trial(url, monkeypatch, error):
    epochs = itertools.count(1)
    out_of_memory(monkeypatch, "epoch", lambda t: t.slots == 4 and next(epochs) == 5, error)
    notes = Notes()
    study(url, slots=4, trials=10, confirm_blocks=0).optimize(progress=notes)
    assert notes.messages == ["out of memory at 4 members at once; goes on with 2"]
    assert trials(url) == complete(10)
    ended = [(number, state) for number, _, _, state, _ in runs(url, "search")]
    assert [n for n, state in ended if state == "interrupted"] == [4, 5, 6, 7]
    assert sorted(n for n, state in ended if state == "complete") == list(range(10))
    clock = "SELECT clock, slot FROM droptune_run WHERE trial_number = 4 ORDER BY id"
    assert rows(url, clock) == [(0, 0), (0, 0)]
    done = [status.done for status in notes.statuses]
    assert done == sorted(done)
    assert notes.statuses[-1].done == 10


@pytest.mark.parametrize("method", ["start", "test", "epoch"])
def test_out_of_memory_in_confirmation_repeats_only_what_did_not_end(url, monkeypatch, method):
    out_of_memory(monkeypatch, method, lambda t: t.slots > 2 and len(t._members) > 1)
    notes = Notes()
    one = study(url, slots=4, trials=4, finalists=2)
    one.using(slots=1, confirm_blocks=0).optimize(progress=Notes())
    one.optimize(progress=notes)
    ended = [
        (block, arm) for _, arm, block, state, _ in runs(url, "confirm") if state == "complete"
    ]
    assert len(ended) == len(set(ended)) == 6
    assert len(notes.messages) == 1
    clocks = rows(url, "SELECT DISTINCT clock FROM droptune_run WHERE phase = 'confirm'")
    assert clocks == [(0,)], "members of a block of confirmation start together"
    assert one.optimize(progress=Notes()).finished_before


def test_out_of_memory_while_a_trial_starts_loses_no_trial(url, monkeypatch):
    out_of_memory(monkeypatch, "start", lambda t: len(t._members) == 2)
    notes = Notes()
    study(url, slots=8, trials=7, confirm_blocks=0).optimize(progress=notes)
    assert [text.split()[-1] for text in notes.messages] == ["4", "2"]
    assert trials(url) == complete(7)


def test_out_of_memory_at_the_end_of_a_grid_loses_no_trial(url, monkeypatch):
    out_of_memory(monkeypatch, "epoch", lambda t: t.slots == 32)
    one = study(url, sampler="grid", encoding="uniform", slots=32, trials=99, confirm_blocks=0)
    one.optimize(progress=Notes())
    assert {state for _, state in trials(url)} == {"COMPLETE"}


def test_out_of_memory_with_one_slot_is_one_line_and_the_study_can_go_on(url):
    with pytest.MonkeyPatch.context() as patch:
        epochs = itertools.count(1)
        out_of_memory(patch, "epoch", lambda t: next(epochs) >= 5)
        with pytest.raises(TrainingError, match="one member at a time; take a smaller batch_size"):
            study(url, slots=4).optimize(progress=Notes())
    assert Counter(run[3] for run in runs(url, "search"))["running"] == 0
    study(url, slots=4).optimize(progress=Notes())
    assert trials(url) == complete(6)


def test_another_error_is_not_taken_for_a_lack_of_memory(url, monkeypatch):
    def fails(self):
        raise RuntimeError("something else")

    monkeypatch.setattr(SerialTrainer, "epoch", fails)
    with pytest.raises(RuntimeError, match="something else"):
        study(url, slots=2).optimize(progress=Notes())
    assert {run[3] for run in runs(url, "search")} == {"interrupted"}


def test_an_objective_that_is_not_yielded_is_named_and_runs_do_not_stay_running(url):
    def train(model, *, seed, device):
        yield {"a": 1.0, "b": 2.0, "test_c": 3.0}

    own = {"data": None, "train": train, "example": torch.zeros(2, 30)}
    with pytest.raises(StudyError, match=r"objective 'c' is not among the metrics \(a, b\)"):
        study(url, objective="c", **own).optimize(progress=Notes())
    assert [run[3] for run in runs(url, "search")] == ["interrupted"]


# Interrupts


def pressing(after: int, times: int = 1):
    """Return a hook that presses Ctrl-C once so many updates have come."""
    seen = []

    def hook(status):
        seen.append(status)
        if len(seen) == after:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return hook


@pytest.mark.parametrize(("slots", "after"), [(1, 4), (1, 14), (1, 18), (4, 1), (4, 14)])
def test_ctrl_c_stores_what_there_is_and_the_next_call_goes_on(url, slots, after):
    handler = signal.getsignal(signal.SIGINT)
    notes = Notes(pressing(after))
    one = study(url, slots=slots, trials=5 if slots == 1 else 18)
    with pytest.raises(KeyboardInterrupt):
        one.optimize(progress=notes)
    assert signal.getsignal(signal.SIGINT) is handler
    assert notes.messages == ["stopping at the end of this epoch; Ctrl-C again stops at once"]
    assert len(notes.statuses) == after, "it stopped at the end of the epoch"
    assert "running" not in {run[3] for run in runs(url, "search") + runs(url, "confirm")}
    ended = [run for run in runs(url, "search") if run[3] == "complete"]
    one.optimize(progress=Notes())
    whole = [run for run in runs(url, "search") if run[3] == "complete"]
    assert whole[: len(ended)] == ended, "what had ended is not trained again"
    assert sorted(run[0] for run in whole) == list(range(one.trials))
    assert [pair for pair in trials(url) if pair[1] != "WAITING"] == complete(one.trials)


def test_a_second_ctrl_c_stops_at_once_and_nothing_is_lost(url):
    with pytest.raises(KeyboardInterrupt):
        study(url).optimize(progress=Notes(pressing(4, times=2)))
    assert trials(url)[0] == (0, "COMPLETE")
    study(url).optimize(progress=Notes())
    assert trials(url) == complete(6)


def test_ctrl_c_in_the_very_last_epoch_lets_the_study_end(url):
    notes = Notes()
    study(url, name="counted", trials=2, finalists=1).optimize(progress=notes)
    last = Notes(pressing(len(notes.statuses)))
    result = study(url, trials=2, finalists=1).optimize(progress=last)
    assert result.difference.n == 2


# A death between any two writes


class Death(BaseException):
    """The process is gone: from here on nothing is written."""


class Deadly:
    """Counts commits of all engines, and lets the process die before one of them.

    Args:
        at: number of the commit, from 0; None: never.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at, self.commits = at, 0

    def __enter__(self):
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", self._commit)
        return self

    def __exit__(self, *error):
        sqlalchemy.event.remove(sqlalchemy.Engine, "commit", self._commit)

    def _commit(self, connection) -> None:
        if self.at is not None and self.commits >= self.at:
            raise Death
        self.commits += 1


def mortal(url):
    return study(url, model=plain, slots=2, trials=5, epochs=2, finalists=1, pruner="median")


@pytest.fixture(scope="module")
def commits(tmp_path_factory):
    """How many transactions the mortal study takes."""
    with Deadly() as counted:
        mortal(f"sqlite:///{tmp_path_factory.mktemp('m') / 'd.db'}").optimize(progress=Notes())
    assert counted.commits > 40
    return counted.commits


@settings(max_examples=6, phases=[Phase.generate])  # shrinking would take hours
@given(part=st.floats(0, 1, exclude_max=True), again=st.integers(0, 12))
def test_a_death_between_any_two_writes_loses_nothing_and_counts_nothing_twice(
    commits, tmp_path_factory, part, again
):
    url = f"sqlite:///{tmp_path_factory.mktemp('death') / 'd.db'}"
    for at in (int(part * commits), again):  # and it dies once more while it goes on
        with Deadly(at) as deadly:
            try:
                mortal(url).optimize(progress=Notes())
            except Death:
                assert deadly.commits == at
        gc.collect()  # a dead process holds no lock
    result = mortal(url).optimize(progress=Notes())
    assert trials(url) == complete(5)
    searched = Counter(run[0] for run in runs(url, "search") if run[3] == "complete")
    assert searched == {number: 1 for number in range(5)}
    confirmed = Counter(
        (block, plan) for _, _, block, state, plan in runs(url, "confirm") if state == "complete"
    )
    assert len(confirmed) == 4
    assert set(confirmed.values()) == {1}
    assert result.difference.n == 2
    assert rows(url, "SELECT count(*) FROM droptune_run WHERE state = 'running'") == [(0,)]
    before = sizes(url)
    assert mortal(url).optimize(progress=Notes()).finished_before
    assert sizes(url) == before


@pytest.mark.parametrize("lr", [0.01, 1e30])
def test_a_trial_that_ended_but_was_not_told_is_not_trained_again(url, monkeypatch, lr):
    def die(*args):
        raise Death

    one = study(url, slots=3, trials=3, confirm_blocks=0, lr=lr, optimizer="sgd")
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(Search, "tell", die)
        one.optimize(progress=Notes())
    state = "complete" if lr < 1 else "failed"
    assert [run[3] for run in runs(url, "search")] == [state] * 3
    before = runs(url, "search")
    notes = Notes()
    one.optimize(progress=notes)
    assert runs(url, "search") == before
    assert not notes.statuses
    assert {s for n, s in trials(url) if n < 3} == {"COMPLETE" if lr < 1 else "FAIL"}
    if lr < 1:
        last = "SELECT json_extract(metrics, '$.val_loss') FROM droptune_curve WHERE epoch = 3"
        assert rows(url, "SELECT value FROM trial_values ORDER BY trial_id") == rows(url, last)


def test_a_run_that_a_dead_process_left_is_marked_when_the_study_goes_on(url):
    one = study(url, trials=2, confirm_blocks=0)
    one.optimize(progress=Notes())
    with Store(url) as store:
        plan = {"version": 1, "sites": {}}
        where = {"seed": 1, "block": 1, "clock": 0, "slot": 0, "trainer": "t", "device": "cpu"}
        store.start_run(1, phase="confirm", arm="no dropout", plan=plan, **where)
    one.optimize(progress=Notes())
    assert [run[3] for run in runs(url, "confirm")] == ["stale"]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused_in_one_line(url):
    with pytest.raises(StoreError, match="is a database in memory .*; give a file") as error:
        study(url).optimize(progress=Notes())
    assert "\n" not in str(error.value)
