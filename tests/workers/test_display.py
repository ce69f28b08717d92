"""One display of several processes, when more of them pay, and when one is replaced."""

import json
import os
import signal
import threading
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest

from droptune.progress import Status
from droptune.watch import Interrupt
from droptune.workers.child import Channel
from droptune.workers.crew import QUICK, Deaths, cause
from droptune.workers.display import Display, together
from droptune.workers.paying import Scout
from tests.small import Notes

HALF = Status("search", 5, 20, 2, 0, 0, 0.5, "val_loss", 10.0, 100.0, 30.0)


def worker(trained: bool = True) -> SimpleNamespace:
    class Hashable(SimpleNamespace):
        __hash__ = object.__hash__

    return Hashable(trained=trained)


def test_statuses_add_up():
    other = replace(HALF, done=6, running=3, best=0.4, epochs_per_second=30.0, seconds_left=20.0)
    both = together([HALF, other])
    assert (both.done, both.total, both.running, both.best) == (6, 20, 5, 0.4)
    assert both.epochs_per_second == 40.0
    # What is left, as each sees it: 100 s of 10 epochs/s, and 20 s of 30: 800 epochs for both.
    assert both.seconds_left == pytest.approx(800 / 40)


def test_a_later_phase_is_that_of_all():
    confirm = replace(HALF, phase="confirm", done=1, epochs_per_second=None, seconds_left=None)
    assert together([HALF, confirm]) == replace(confirm, running=2)


def test_a_process_that_ended_counts_no_more():
    notes = Notes()
    display, one, two = Display(notes), worker(), worker()
    for each in (one, two):
        display.show(each, {"event": "status", "status": HALF.__dict__})
    assert notes.statuses[-1].running == 4
    display.show(one, {"event": "ended", "code": 0})
    assert notes.statuses[-1].running == 2


def test_what_several_say_is_shown_once():
    notes = Notes()
    display, one, two = Display(notes), worker(False), worker(False)
    for each, speed in ((one, 2.1), (two, 2.3)):
        display.show(each, {"event": "message", "text": f"fused, {speed} times as fast"})
    assert notes.messages == ["fused, 2.1 times as fast"]
    one.trained = two.trained = True
    for each in (one, one, two):
        display.show(each, {"event": "printed", "text": "epoch 1"})
    display.show(two, {"event": "printed", "text": "epoch 2"})
    assert notes.messages[1:] == ["epoch 1", "epoch 1", "epoch 2"]


def test_a_signal_that_comes_while_a_line_is_written_may_say_a_line_itself():
    class Interrupted(StringIO):
        def write(self, text):
            if '"first"' in text:
                channel.send("message", text="from the handler")
            return super().write(text)

    stream = Interrupted()
    channel = Channel(stream)
    sending = threading.Thread(target=channel.send, args=("first",), daemon=True)
    sending.start()
    sending.join(timeout=10)
    assert not sending.is_alive()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [
        "message",
        "first",
    ]


# Do more pay?

LONG = replace(HALF, running=1, seconds_left=200.0, elapsed=10.0)


def scouted(monkeypatch, statuses, processes=4, gpus=False) -> tuple[Scout, list]:
    raised = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    scout = Scout(Notes(), processes, gpus)
    for status in statuses:
        scout.update(status)
    return scout, raised


def test_a_long_study_of_single_trials_gets_more_processes(monkeypatch):
    scout, raised = scouted(monkeypatch, [LONG] * 5)
    assert raised == [signal.SIGINT]
    assert scout.found.startswith("4 processes of one thread each")
    assert "alone this would take 3 min 20 s more" in scout.found


@pytest.mark.parametrize(
    "change",
    [
        {"seconds_left": 40.0},
        {"seconds_left": None},
        {"elapsed": 1.0},
        {"running": 4},  # trains fused
        {"done": 19},
    ],
)
def test_a_short_or_fused_study_does_not(monkeypatch, change):
    scout, raised = scouted(monkeypatch, [replace(LONG, **change)] * 5)
    assert scout.found is None and not raised


def test_other_gpus_pay_for_fused_trials_too_but_not_by_one_slow_epoch(monkeypatch):
    fused = replace(LONG, running=8, total=100)
    scout, raised = scouted(monkeypatch, [fused] * 3, gpus=True)
    assert raised and "one GPU each" in scout.found
    scout, raised = scouted(
        monkeypatch, [fused, fused, replace(fused, seconds_left=9.0)], gpus=True
    )
    assert not raised


def test_who_pressed_ctrl_c_gets_no_processes(monkeypatch):
    raised = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    scout = Scout(Notes(), 4, gpus=False)
    with Interrupt(scout.message):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(5):
            scout.update(LONG)
    assert scout.found is None and not raised


def test_of_long_epochs_one_is_enough(monkeypatch):
    _, raised = scouted(monkeypatch, [LONG])
    assert not raised
    _, raised = scouted(monkeypatch, [replace(LONG, elapsed=70.0)])
    assert raised


# Deaths


def test_who_dies_untrained_is_tried_a_few_times_with_growing_waits():
    deaths = Deaths(2)
    waits = [deaths.died(worker(False)) for _ in range(QUICK + 1)]
    assert waits[:-1] == sorted(waits[:-1]) and waits[0] < 1 and waits[-1] is None


def test_who_trains_is_replaced_as_long_as_trials_end():
    deaths = Deaths(1)
    for done in range(100):
        deaths.trained(done)
        assert deaths.died(worker()) is not None
    for _ in range(30):
        deaths.trained(99)
        ended = deaths.died(worker())
    assert ended is None


def test_a_death_has_its_cause():
    assert cause(-signal.SIGSEGV, []) == "ended by SIGSEGV"
    assert cause(3, ["a", "b", ""]) == "exit code 3; it printed last: b"
