"""droptune/progress.py: what is shown where, and how often."""

import io
import os
from dataclasses import replace

import pytest

from droptune.progress import (
    LineProgress,
    LiveProgress,
    SilentProgress,
    Status,
    describe,
    duration,
    progress,
)

STATUS = Status(
    phase="search",
    done=34,
    total=64,
    running=4,
    pruned=12,
    failed=1,
    best=0.21345,
    objective="val_loss",
    epochs_per_second=1532.4,
    seconds_left=12.3,
    elapsed=100.0,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until it is told to move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_line_says_everything_that_is_known():
    assert describe(STATUS) == (
        "search 34/64, 4 running, 12 pruned, 1 failed, best val_loss 0.2135, 1,532 epochs/s, "
        "1 min 40 s so far, 12 s left"
    )


def test_a_line_says_what_more_trials_are_expected_to_gain():
    ahead = "expected gain of 10 more trials: 0.0003 nats"
    assert ahead in describe(replace(STATUS, note=ahead))
    assert "gain" not in describe(STATUS)


def test_a_line_leaves_out_what_is_not_known():
    nothing = Status("confirm", 0, None, 0, 0, 0, None, "val_loss", None, None, 0.0)
    assert describe(nothing) == "confirm 0, 0 s so far"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_count_as_unknown(value):
    status = replace(STATUS, best=value, epochs_per_second=value, seconds_left=value)
    assert describe(status) == "search 34/64, 4 running, 12 pruned, 1 failed, 1 min 40 s so far"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_a_duration_is_written_in_two_units_at_most(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("quiet", "stream", "term", "kind"),
    [
        (True, Terminal(), "xterm", SilentProgress),
        (False, io.StringIO(), "xterm", LineProgress),
        (False, Terminal(), "dumb", LineProgress),
        (False, Terminal(), "xterm", LiveProgress),
    ],
)
def test_the_stream_decides_what_is_shown(quiet, stream, term, kind, monkeypatch):
    monkeypatch.setenv("TERM", term)
    with progress(quiet, stream) as shown:
        assert type(shown) is kind


def test_progress_goes_to_stderr_and_never_to_stdout(capsys):
    with progress() as shown:
        shown.update(STATUS)
        shown.message("a line that stays")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["a line that stays", describe(STATUS)]


def test_plain_lines_come_at_most_every_five_seconds():
    stream, clock = io.StringIO(), Clock()
    shown = LineProgress(stream, clock=clock)
    for second in range(12):
        clock.now = float(second)
        shown.update(replace(STATUS, done=second))
    assert [line.split(",")[0] for line in lines(stream)] == ["search 5/64", "search 10/64"]


def test_every_phase_ends_with_a_line_of_its_last_status():
    stream = io.StringIO()
    with LineProgress(stream, clock=Clock()) as shown:
        shown.update(STATUS)
        shown.update(replace(STATUS, done=64))
        shown.update(replace(STATUS, phase="confirm", done=1))
        shown.update(replace(STATUS, phase="confirm", done=8))
    assert [line.split(",")[0] for line in lines(stream)] == ["search 64/64", "confirm 8/64"]


def test_a_status_is_never_written_twice():
    stream, clock = io.StringIO(), Clock()
    shown = LineProgress(stream, clock=clock)
    clock.now = 6.0
    shown.update(STATUS)
    shown.close()
    shown.close()
    assert len(lines(stream)) == 1


def test_nothing_is_written_about_a_study_that_never_started():
    stream = io.StringIO()
    with LineProgress(stream):
        pass
    assert stream.getvalue() == ""


def test_silence_is_silent(capsys):
    with progress(quiet=True) as shown:
        shown.update(STATUS)
        shown.message("unheard")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_the_live_bar_shows_counts_and_gives_the_cursor_back(terminal):
    with LiveProgress(terminal) as shown:
        shown.update(STATUS)
    text = terminal.getvalue()
    assert "34/64, 12 s left" in text and "best val_loss 0.2135, 1,532 epochs/s" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # cursor hidden, shown again
    assert text.splitlines()[-1].endswith(describe(STATUS))


def test_the_cursor_comes_back_when_the_user_interrupts(terminal):
    with pytest.raises(KeyboardInterrupt), LiveProgress(terminal) as shown:
        shown.update(STATUS)
        raise KeyboardInterrupt
    assert "\x1b[?25h" in terminal.getvalue()


def test_the_live_bar_is_not_drawn_more_often_than_the_eye_sees(terminal):
    clock = Clock()
    with LiveProgress(terminal, clock=clock) as shown:
        shown.update(STATUS)
        drawn = len(terminal.getvalue())
        for done in range(1000):
            shown.update(replace(STATUS, done=done))
        assert len(terminal.getvalue()) == drawn
        clock.now = 0.2
        shown.update(replace(STATUS, done=50))
        assert "50/64" in terminal.getvalue()[drawn:]


def test_the_live_bar_leaves_a_line_for_a_finished_phase(terminal):
    with LiveProgress(terminal) as shown:
        shown.update(replace(STATUS, done=64))
        shown.update(replace(STATUS, phase="confirm"))
        assert describe(replace(STATUS, done=64)) in terminal.getvalue()


def test_messages_are_printed_as_they_are(terminal):
    with LiveProgress(terminal) as shown:
        shown.message("trial 3 failed: [red] is not a layer " + "x" * 100)
    assert "trial 3 failed: [red] is not a layer " + "x" * 100 in terminal.getvalue()


def test_a_study_without_a_total_still_shows_a_bar(terminal):
    with LiveProgress(terminal) as shown:
        shown.update(replace(STATUS, total=None))
    assert "34, 12 s left" in terminal.getvalue()


def test_prints_to_stdout_stay_on_stdout(terminal, capsys):
    with LiveProgress(terminal):
        print("data")
    assert capsys.readouterr().out == "data" + os.linesep
    assert "data" not in terminal.getvalue()
