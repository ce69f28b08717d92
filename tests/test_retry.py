"""Trying again: how often, how long, and what `work` is told."""

import pytest

from droptune import retry
from droptune.errors import StoreError, TransientError


@pytest.fixture
def waits(monkeypatch):
    """The waits, on a clock that they alone move."""
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("time.monotonic", lambda: sum(waits))
    return waits


def failing(times: int, error: Exception, told: list):
    def work(repeated):
        told.append(repeated)
        if len(told) <= times:
            raise error
        return "done"

    return work


def test_what_works_is_done_once(waits):
    assert retry.again(failing(0, TransientError("away"), told := [])) == "done"
    assert (told, waits) == ([False], [])


def test_what_fails_for_a_moment_is_done_again_and_told_so(waits):
    assert retry.again(failing(3, TransientError("away"), told := [])) == "done"
    assert told == [False, True, True, True]


def test_the_waits_double_to_a_limit_and_end_when_patience_does(waits):
    with pytest.raises(StoreError, match="^away; tried again for 60 s; what is stored is kept"):
        retry.again(failing(10**6, TransientError("away"), []))
    bounds = [min(retry.LONGEST, 0.1 * 2**n) for n in range(len(waits))]
    assert all(b / 2 <= w <= b for w, b in zip(waits[:-1], bounds, strict=False))
    assert sum(waits) == pytest.approx(retry.PATIENCE)
    assert 12 < len(waits) < 35


def test_another_error_is_passed_on_at_once(waits):
    for error in (StoreError("full"), KeyError("x")):
        with pytest.raises(type(error)):
            retry.again(failing(1, error, told := []))
        assert (told, waits) == ([False], [])


def test_a_short_failure_is_not_talked_about(waits, caplog):
    retry.again(failing(2, TransientError("deadlock"), []))
    assert caplog.text == ""
    retry.again(failing(3, TransientError("away"), []))
    assert caplog.text.count("away; trying again for up to") == 1
