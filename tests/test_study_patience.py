"""Patience: a study whose search ends when nothing is to be gained by going on."""

import numpy as np
import pytest

from droptune.errors import StudyError
from droptune.plan import Plan
from tests.search.tiny import TinySpace, rate
from tests.small import Notes, fresh, study, trials

ENOUGH = 10  # of the sampler's plans, before anything is said


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def noise(model, *, seed, device):
    """Train nothing: a result is noise, and says nothing of the plan."""
    rates = [float(buffer) for name, buffer in model.named_buffers() if "rate" in name]
    draw = np.random.default_rng([seed, *(int(1e6 * one) for one in rates)])
    yield {"val_loss": 1 + 0.1 * draw.standard_normal()}


def hopeless(url, **changes):
    """Return a study whose search is worth nothing."""
    settings = {"train": noise, "epochs": 1, "trials": 40, "confirm_blocks": 0, "patience": 5}
    return study(url, **settings | {"trainer": "auto"} | changes)


def test_a_hopeless_search_ends_and_says_what_was_to_be_gained(url):
    notes = Notes()
    hopeless(url).optimize(progress=notes)
    assert ENOUGH < len(trials(url)) < 40
    assert {state for _, state in trials(url)} == {"COMPLETE"}
    (said,) = [text for text in notes.messages if "the search ends" in text]
    assert f"at {len(trials(url))} of 40 trials: expected gain of 5 more trials: 0.0" in said
    assert "raise --patience, or set it to 0" in said
    assert notes.statuses[-1].note in said
    assert not notes.statuses[5].note  # too early to tell


def test_a_study_that_patience_has_ended_is_finished_until_patience_is_given_up(url):
    hopeless(url).optimize(progress=Notes())
    before, notes = trials(url), Notes()
    assert hopeless(url).optimize(progress=notes).finished_before
    assert trials(url) == before
    (said,) = [text for text in notes.messages if "is finished" in text]
    assert "for more: raise --patience, or set it to 0" in said
    hopeless(url, patience=0).optimize(progress=Notes())
    assert len(trials(url)) == 40


def test_raised_patience_goes_on(url):
    hopeless(url).optimize(progress=Notes())
    before = len(trials(url))
    hopeless(url, patience=16).optimize(progress=Notes())
    assert before < len(trials(url)) < 40


def test_an_interrupted_study_ends_where_it_would_have_ended(url, tmp_path):
    (tmp_path / "other").mkdir()
    other = fresh(tmp_path / "other")
    settings = {"sampler": "qmc"}  # goes on along its sequence
    hopeless(other, **settings).optimize(progress=Notes())
    for limit in (4, 9, 40):
        hopeless(url, trials=limit, **settings).optimize(progress=Notes())
    assert trials(url) == trials(other)


@pytest.mark.parametrize("patience", [-1, 2.5, True, "ten", None])
def test_patience_is_a_whole_number_from_0(url, patience):
    with pytest.raises(StudyError, match=r"patience .*whole number from 0"):
        study(url, patience=patience)


# In the search itself


def noisy(search, most, weight=0.0):
    """Tell a search what it asks for, with noise; of a space in which only `front` counts."""
    sign = -1 if search._directions[0] == "maximize" else 1
    while search.finished < most and (asked := search.ask()) is not None:
        luck = 0.01 * np.random.default_rng(asked.number).standard_normal()
        search.tell(asked.number, sign * (weight * (rate(asked.plan, "0") - 0.2) ** 2 + luck))
    return search.finished


@pytest.fixture
def opened(tmp_path):
    from droptune.search import Search

    found = []

    def open_search(name="s", **options):
        options = {"direction": "minimize", "epochs": 3, "sampler": "random"} | options
        url = f"sqlite:///{tmp_path / 'searches.db'}"
        found.append(Search(url, name, TinySpace(), **options))
        return found[-1]

    yield open_search
    for one in found:
        one.close()


def test_the_gain_is_the_same_in_either_direction(opened):
    ahead = []
    for direction in ("minimize", "maximize"):
        search = opened(direction, direction=direction, patience=5)
        noisy(search, 12, weight=10.0)
        ahead.append(search.outlook())
    assert ahead[0] == ahead[1]
    assert ahead[0].gain > 0


def test_trials_that_a_dead_process_left_and_plans_in_line_are_trained_first(opened):
    first = opened(patience=5)
    asked = [first.ask() for _ in range(3)]
    assert noisy(first, 40) < 40
    first.close()
    again = opened(patience=5)
    assert again.outlook().over
    again.enqueue("no dropout", Plan.none())
    left = [again.ask().number for _ in range(4)]
    assert left[:3] == [one.number for one in asked]
    assert left[3] == first.finished + 3
    assert again.ask() is None


def test_without_patience_nothing_is_computed(opened, monkeypatch):
    monkeypatch.setattr("droptune.patience.look_ahead", lambda *_: pytest.fail("looked ahead"))
    assert noisy(opened(), 20) == 20
