"""What is watched: progress figures, the time, and Ctrl-C."""

import os
import signal
import threading

import pytest

from droptune.errors import StudyError
from droptune.watch import Clockwork, Interrupt, Meter
from tests.small import Notes, fresh, study


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, in seconds."""
    now = [0.0]
    monkeypatch.setattr("droptune.watch.time.monotonic", lambda: now[0])
    return now


def test_the_time_left_comes_from_the_speed_so_far(clock):
    notes = Notes()
    meter = Meter(notes, "search", "val_loss", epochs=10, total=4)
    clock[0] = 7.0
    meter.epoch(2, [])
    meter.show(done=0, running=[1, 1])
    status = notes.statuses[-1]
    assert (status.epochs_per_second, status.seconds_left) == (None, None), "a warm-up"
    clock[0] = 9.0
    for _ in range(5):
        meter.epoch(2, [])
    meter.show(done=0, running=[6, 6])
    status = notes.statuses[-1]
    assert status.epochs_per_second == 5.0
    assert status.seconds_left == (2 * 10 + 4 + 4) / 5.0
    assert (status.running, status.done, status.total, status.elapsed) == (2, 0, 4, 9.0)


def test_a_first_epoch_that_is_long_tells_the_speed(clock):
    notes = Notes()
    meter = Meter(notes, "search", "val_loss", epochs=3, total=2)
    clock[0] = 600.0
    meter.epoch(2, [])
    clock[0] = 630.0
    meter.show(done=0, running=[1, 1])
    assert notes.statuses[-1].seconds_left == (2 + 2) * 300.0


def test_runs_that_stop_early_shorten_the_time_left(clock):
    notes = Notes()
    meter = Meter(notes, "search", "val_loss", epochs=10, total=6)
    meter.epoch(2, [])
    clock[0] = 1.0
    meter.epoch(2, [2, 4])
    meter.show(done=2, running=[], pruned=2)
    assert notes.statuses[-1].seconds_left == 4 * 3 / 2.0
    meter.show(done=6, running=[])
    assert notes.statuses[-1].seconds_left == 0.0


def test_a_time_budget_bounds_the_time_left(clock):
    notes = Notes()
    meter = Meter(notes, "search", "val_loss", epochs=10, total=1000)
    meter.show(done=0, running=[], seconds_left=7.0)
    clock[0] = 1.0
    meter.epoch(1, [])
    meter.show(done=0, running=[1], seconds_left=6.0)
    assert [status.seconds_left for status in notes.statuses] == [7.0, 6.0]


def test_the_figures_of_a_study_are_those_of_its_end(tmp_path):
    notes, url = Notes(), fresh(tmp_path)
    result = study(url, slots=4).optimize(progress=notes)
    search = [status for status in notes.statuses if status.phase == "search"]
    confirm = [status for status in notes.statuses if status.phase == "confirm"]
    assert search + confirm == notes.statuses
    for phase, total in ((search, 6), (confirm, 6)):
        assert {status.total for status in phase} == {total}
        assert [status.done for status in phase] == sorted(status.done for status in phase)
        assert all(status.done + status.running <= total for status in phase)
        assert (phase[-1].done, phase[-1].running, phase[-1].seconds_left) == (total, 0, 0.0)
    assert [status.note for status in confirm][-1] == "block 2 of at most 2"
    assert max(status.running for status in search) == 4
    best = [status.best for status in search if status.best is not None]
    assert best == sorted(best, reverse=True)
    assert best[-1] <= result.best["search_value"]


def test_a_study_that_goes_on_shows_what_was_done_before(tmp_path):
    url = fresh(tmp_path)
    study(url, trials=4, confirm_blocks=0).optimize(progress=Notes())
    notes = Notes()
    study(url, trials=6, confirm_blocks=0).optimize(progress=notes)
    assert notes.statuses[0].done == 4
    assert notes.statuses[0].best is not None
    assert notes.statuses[-1].done == 6


def test_failed_runs_are_counted_in_both_phases(tmp_path, monkeypatch):
    url, notes = fresh(tmp_path), Notes()
    study(url, trials=2, confirm_blocks=0).optimize(progress=Notes())
    monkeypatch.setattr("droptune.trainers.serial.diverged", lambda *args: "diverged")
    study(url, trials=4, confirm_blocks=1, finalists=1).optimize(progress=notes)
    ends = {status.phase: status for status in notes.statuses}
    assert (ends["search"].done, ends["search"].failed) == (4, 2)
    assert (ends["confirm"].done, ends["confirm"].failed) == (2, 2)


def test_the_time_is_counted_where_it_goes(monkeypatch):
    now = iter([0.0, 1.0, 5.0, 7.0])
    monkeypatch.setattr("droptune.watch.time.perf_counter", lambda: next(now))
    clockwork = Clockwork()
    with clockwork("store"):
        pass
    with pytest.raises(KeyError), clockwork("store"):
        raise KeyError
    assert clockwork.seconds == {"store": 3.0}


def test_the_first_ctrl_c_is_a_wish_and_the_second_stops():
    before, said = signal.getsignal(signal.SIGINT), []
    with Interrupt(said.append) as interrupt:
        assert not interrupt.wished
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.wished
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(said) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_to_a_process_and_its_parent_which_passes_it_on_is_one_wish():
    said = []
    with Interrupt(said.append) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.wished and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_while_a_line_is_written_is_no_error():
    def busy(text):
        raise RuntimeError("reentrant call inside a buffered writer")

    with Interrupt(busy) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.wished


def test_a_model_that_ends_the_program_is_an_error_of_one_line(tmp_path):
    def build():
        raise SystemExit(3)

    with pytest.raises(StudyError, match=r"ends the program \(exit code 3\)"):
        study(fresh(tmp_path), model=build).optimize(progress=Notes())


def test_a_study_runs_in_a_thread(tmp_path):
    results, url = [], fresh(tmp_path)

    def work():
        results.append(study(url, trials=2, confirm_blocks=0).optimize(progress=Notes()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].best is not None
