"""Limits of time and memory: of a trial, of a study, and of a GPU."""

import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing, contextmanager

import pytest
import torch

from droptune.errors import StudyError
from droptune.store import Queries
from droptune.trainers import SerialTrainer, gpu_share
from tests.small import Notes, fresh, rows, runs, study, trials


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


@pytest.fixture
def slow(monkeypatch):
    """An epoch takes one second, or so it says; with gaussian noise three."""
    whole = SerialTrainer.epoch

    def epoch(self):
        kinds = {n: {e.kind for e in m.plan.values()} for n, m in self._members.items()}
        took = {slot: 3.0 if "gaussian" in used else 1.0 for slot, used in kinds.items()}
        return {slot: one._replace(seconds=took[slot]) for slot, one in whole(self).items()}

    monkeypatch.setattr(SerialTrainer, "epoch", epoch)


KINDS = {"kinds": ["standard", "gaussian"], "trials": 12, "epochs": 4}


@pytest.mark.parametrize("slots", [1, 4])
def test_a_trial_that_takes_too_long_is_stopped_after_the_epoch_and_has_failed(url, slow, slots):
    one = study(url, slots=slots, confirm_blocks=0, trial_time="5s", **KINDS)
    one.optimize(progress=Notes())
    ended = rows(url, "SELECT state, epochs, seconds, message, plan FROM droptune_run")
    assert {("gaussian" in plan, state) for state, *_, plan in ended} == {
        (True, "failed"),
        (False, "complete"),
    }
    told = "stopped: it took longer than 5 s (it took 6 s for 2 of 4 epochs)"
    failed = [one for one in ended if one[0] == "failed"]
    assert {(epochs, took, why) for _, epochs, took, why, _ in failed} == {(2, 6.0, told)}
    states = [state for _, state in trials(url)]
    assert (states.count("FAIL"), len(states)) == (len(failed), 12)
    number = states.index("FAIL")
    assert Queries(url).trial("mine", number)["message"] == told


def test_a_run_that_ends_in_time_with_its_last_epoch_is_complete(url, slow):
    study(url, trials=2, epochs=3, confirm_blocks=0, trial_time=2.5).optimize(progress=Notes())
    assert {run[3] for run in runs(url, "search")} == {"complete"}


def test_a_run_of_confirmation_is_stopped_too(url, slow):
    one = study(url, slots=4, finalists=5, **KINDS | {"kinds": ["gaussian"]})
    one.using(confirm_blocks=0).optimize(progress=Notes())
    one.using(trial_time="5s").optimize(progress=Notes())
    confirmed = runs(url, "confirm")
    assert {("gaussian" in plan, state) for *_, state, plan in confirmed} == {
        (True, "failed"),
        (False, "complete"),
    }


def test_no_dropout_that_takes_too_long_is_an_error_that_costs_no_trial(url, slow):
    one = study(url, slots=2, confirm_blocks=0, **KINDS)
    with pytest.raises(StudyError, match=r"no dropout takes longer .* 2 s \(it took 3 s for 3 of"):
        one.using(trial_time=2).optimize(progress=Notes())
    assert {run[3] for run in runs(url, "search")} == {"interrupted"}
    one.optimize(progress=Notes())
    assert {state for _, state in trials(url)} == {"COMPLETE"}


@pytest.mark.parametrize("how", ["interrupted", "stale", "nothing"])
def test_what_a_worker_left_when_the_time_was_up_does_not_stay_running(url, slow, how):
    """Of two members one was trained by a worker that then died, before or behind its run."""
    one = study(url, trials=99, slots=2, epochs=9, confirm_blocks=0)
    with pytest.raises(KeyboardInterrupt):
        one.optimize(time=99, progress=Notes(pressing()))
    change = {
        "interrupted": "UPDATE droptune_run SET seconds = 99 WHERE trial_number = 1",
        "stale": "UPDATE droptune_run SET seconds = 99, state = 'stale' WHERE trial_number = 1",
        "nothing": "DELETE FROM droptune_run WHERE trial_number = 1",
    }[how]
    execute(url, change)
    execute(url, "UPDATE droptune_run SET seconds = 99 WHERE trial_number = 0")
    one.optimize(time=99, progress=Notes())
    assert trials(url)[:2] == [(0, "FAIL"), (1, "FAIL")]
    assert {state for _, state in trials(url)[2:]} == {"WAITING"}
    told = "SELECT value_json FROM trial_user_attributes WHERE key = 'message'"
    assert rows(url, told) == [('"stopped: the time budget is used up"',)] * 2
    left = rows(url, "SELECT state, message FROM droptune_run")
    assert set(left) == {("failed", "stopped: the time budget is used up")}
    assert one.optimize(time=99, progress=Notes()).finished_before


def execute(url: str, sql: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(sql)


def pressing():
    return lambda status: os.kill(os.getpid(), signal.SIGINT)


def work(url: str, seconds: float) -> None:
    torch.set_num_threads(1)
    study(url, trials=10**6, epochs=20, confirm_blocks=0).optimize(time=seconds, progress=Notes())


def test_the_time_is_kept_by_several_processes_together(url):
    """Each looks every two seconds at what the others have spent, so they pass it by so much."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(url, 4.0)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    ((spent,),) = rows(url, "SELECT sum(seconds) FROM droptune_run")
    assert 4.0 <= spent < 4.0 + 2 * 2.0 + 1.0
    assert "RUNNING" not in {state for _, state in trials(url)}
    assert rows(url, "SELECT count(DISTINCT worker_id) FROM droptune_run") == [(2,)]


def test_a_share_of_memory_without_a_gpu_is_said_to_do_nothing(url):
    notes = Notes()
    one = study(url, trials=1, confirm_blocks=0, device="cpu", gpu_memory=0.5)
    one.optimize(progress=notes)
    assert notes.messages == ["gpu_memory 0.5 has no effect on cpu, only on CUDA's devices"]


@pytest.mark.parametrize(
    ("free", "held", "asked", "given"),
    [(0.8, 0.0, None, 0.72), (0.5, 0.2, None, 0.65), (0.2, 0.0, 0.5, 0.5)],
)
def test_the_share_of_a_gpu_is_set_and_taken_back(monkeypatch, free, held, asked, given):
    """Torch's own functions are recorded here; the test below is for a real GPU."""
    total, shares = 2**34, [1.0]
    cuda = {
        "mem_get_info": lambda device: (free * total, total),
        "memory_reserved": lambda device: held * total,
        "get_per_process_memory_fraction": lambda device: shares[-1],
        "set_per_process_memory_fraction": lambda share, device: shares.append(share),
        "empty_cache": lambda: None,
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    with gpu_share(torch.device("cuda"), asked):
        assert shares[-1] == pytest.approx(given)
    assert shares == [1.0, pytest.approx(given), 1.0]


def test_a_study_trains_within_its_share(url, monkeypatch):
    seen = []

    @contextmanager
    def recorded(device, share):
        seen.append((device.type, share, trials(url)))
        yield
        seen.append(trials(url))

    monkeypatch.setattr("droptune.optimize.gpu_share", recorded)
    one = study(url, trials=1, confirm_blocks=0, device="cpu", gpu_memory=0.5)
    one.optimize(progress=Notes())
    assert seen[0] == ("cpu", 0.5, [])
    assert seen[1][0] == (0, "COMPLETE")


@pytest.mark.gpu
def test_no_more_than_the_share_of_a_gpu_can_be_taken():
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    with gpu_share(device, 0.1):
        torch.empty(int(0.05 * total), dtype=torch.uint8, device=device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.2 * total), dtype=torch.uint8, device=device)
    assert torch.cuda.get_per_process_memory_fraction(device) == 1.0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"trial_time": 0}, "trial_time 0: give seconds above 0, or text such as 90s"),
        ({"trial_time": "soon"}, "trial_time 'soon': give seconds above 0"),
        ({"hang_time": -1}, "hang_time -1: give seconds, 0 for never, or text"),
        ({"hang_time": "never"}, "hang_time 'never': give seconds, 0 for never"),
        ({"gpu_memory": 0}, "gpu_memory 0: a share above 0 and up to 1"),
        ({"gpu_memory": 50}, "gpu_memory 50: a share above 0 and up to 1"),
        ({"gpu_memory": "half"}, "gpu_memory 'half': a share above 0"),
        ({"gpu_memory": True}, "gpu_memory True: a share above 0"),
    ],
)
def test_what_is_no_limit_is_refused(url, wrong, told):
    with pytest.raises(StudyError, match=told):
        study(url, **wrong)
