"""What a report reads: points of curves, and the parameters of trials."""

import pytest

from droptune.store import Store
from droptune.store.drawn import POINTS, Drawn
from tests.report.storing import RUN, add_trial, begin, plan, value


@pytest.fixture
def filled(tmp_path) -> str:
    """A study of two trials; the first has 2,001 epochs, the second, which failed, 2."""
    url = f"sqlite:///{tmp_path / 'droptune.db'}"
    with Store(url) as store:
        study_id, study = begin(store, "mine")
        add_trial(store, study_id, study, (0.1, 0.3), epochs=2001)
        add_trial(store, study_id, study, (0.2, 0.0), epochs=2, bad=True)
        store.start_run(study_id, phase="confirm", arm="x", plan=plan(0.1), block=1, **RUN)
    return url


def test_of_a_long_curve_only_some_points_are_read(filled):
    with Drawn(filled) as drawn:
        curve = drawn.curves([1])[1]
    epochs = [row["epoch"] for row in curve]
    assert 100 < len(epochs) <= POINTS
    assert (epochs[0], epochs[-1]) == (1, 2001)
    assert curve[-1]["metrics"] == {"val_loss": value(0.1, 0.3)}
    steps = {b - a for a, b in zip(epochs[1:-2], epochs[2:-1], strict=True)}
    assert len(steps) == 1  # evenly spaced


def test_of_a_short_curve_every_point_is_read(filled):
    with Drawn(filled) as drawn:
        curves = drawn.curves([2, 2, 3])
    assert list(curves) == [2]  # the third has no epoch yet
    assert [row["epoch"] for row in curves[2]] == [1, 2]
    assert curves[2][1]["metrics"]["val_loss"] is None  # it was NaN


def test_no_runs_have_no_curves(filled):
    with Drawn(filled) as drawn:
        assert drawn.curves([]) == {}


def test_the_run_of_a_trial(filled):
    with Drawn(filled) as drawn:
        assert drawn.search_run("mine", 1) == 2
        assert drawn.search_run("mine", 7) is None


def test_the_parameters_of_complete_trials(filled):
    with Drawn(filled) as drawn:
        (row,) = drawn.parameters("mine")
    assert (row["number"], row["value"]) == (0, value(0.1, 0.3))
    assert {name: stored for name, (stored, _) in row["params"].items()} == {
        "dropout": 0.0,
        "rate.hidden": 0.1,
        "rate.head": 0.3,
    }
