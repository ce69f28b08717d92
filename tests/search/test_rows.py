"""droptune/rows.py: trials as rows of Optuna's tables, few statements a trial."""

import time
from contextlib import contextmanager

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from droptune import rows
from tests.search.tiny import run, storage, stored

SPACE = {
    "rate": FloatDistribution(0.0, 0.6, step=0.01),
    "weight": FloatDistribution(1e-3, 1.0, log=True),
    "kind": CategoricalDistribution(["standard", "gaussian", None]),
    "depth": IntDistribution(1, 4),
}


def template(state=TrialState.RUNNING):
    return create_trial(
        state=state,
        params={"rate": 0.3, "weight": 0.1, "kind": None, "depth": 2},
        distributions=SPACE,
        user_attrs={"name": "half", "plan": {"sites": {"0": [0.5]}}},
        system_attrs={"fixed_params": {"rate": 0.3}},
    )


@contextmanager
def counted(search):
    """Yield a list of the statements that a search executes."""
    engine, said = search._record._rdb.engine, []

    def note(connection, cursor, statement, *rest):
        said.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'd.db'}"
    return request.getfixturevalue("postgres").fresh()


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.WAITING])
def test_a_trial_is_stored_as_optuna_stores_it(url, state, monkeypatch):
    if hasattr(time, "tzset"):  # the store keeps UTC, Optuna shows the time of the place
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
    with storage(url) as opened:
        study = optuna.create_study(storage=opened, study_name="s")._study_id
        other = optuna.create_study(storage=opened, study_name="other")._study_id
        rows.insert(opened, other, template(), 0)
        theirs = opened.get_trial(opened.create_new_trial(study, given := template(state)))
        assert rows.insert(opened, study, given, 0) is rows.insert(opened, study, given, 2) is None
        ours = opened.get_trial(rows.insert(opened, study, given, 1))
        assert (theirs.number, ours.number) == (0, 1)
        assert len(opened.get_all_trials(study)) == 2
        assert ours.datetime_start == given.datetime_start
        for name in ("state", "params", "distributions", "user_attrs", "system_attrs", "values"):
            assert getattr(ours, name) == getattr(theirs, name) == getattr(given, name), name
        assert ours.datetime_complete is None
    monkeypatch.undo()
    if hasattr(time, "tzset"):
        time.tzset()


def test_what_moved_is_what_is_new_or_in_another_state(url):
    with storage(url) as opened:
        study = optuna.create_study(storage=opened, study_name="s")._study_id
        other = optuna.create_study(storage=opened, study_name="other")._study_id
        ids = [rows.insert(opened, study, template(), number) for number in range(3)]
        rows.insert(opened, other, template(), 0)
        known = dict.fromkeys(ids, TrialState.RUNNING)
        assert rows.moved(opened, study, ids[-1], known) == []
        opened.set_trial_state_values(ids[1], TrialState.COMPLETE, [0.5])
        new = rows.insert(opened, study, template(TrialState.WAITING), 3)
        found = rows.moved(opened, study, ids[-1], known)
        states = [(1, TrialState.COMPLETE, [0.5]), (3, TrialState.WAITING, None)]
        assert [(one.number, one.state, one.values) for one in found] == states
        assert found[0].params == template().params
        del known[ids[1]]
        assert rows.moved(opened, study, new, known | {new: TrialState.WAITING}) == []
        assert [one.number for one in rows.moved(opened, study, -1, {})] == [0, 1, 2, 3]


def test_to_look_for_news_takes_as_many_statements_with_many_trials_as_with_few(search):
    one = search()
    said = []
    for trials in (1, 20):
        run(one, trials)
        one.ask()
        with counted(one) as statements:
            one.sync()
        said.append(len(statements))
    assert said[0] == said[1] <= 3


def test_an_ask_takes_as_many_statements_with_many_parameters_as_with_few(url):
    many = {f"rate {i}": FloatDistribution(0, 1) for i in range(50)}
    with storage(url) as opened:
        study = optuna.create_study(storage=opened)._study_id
        count = []
        event.listen(opened.engine, "before_cursor_execute", lambda *_: count.append(1))
        taken = []
        for number, space in enumerate((SPACE, SPACE | many)):
            params = template().params | dict.fromkeys(set(space) - set(SPACE), 0.5)
            given = create_trial(state=TrialState.RUNNING, params=params, distributions=space)
            count.clear()
            rows.insert(opened, study, given, number)
            taken.append(len(count))
        assert taken[0] == taken[1] <= 5


def test_counts_and_best_follow_trials_that_end_in_any_order(search, url):
    one, two = search(), search()
    for _ in range(4):
        one.ask()
    assert one.best() is None
    values = {3: 0.5, 1: 0.5, 2: 0.7}
    for number, value in values.items():
        one.tell(number, value)
        assert one.best()[::2] == (1 if number != 3 else 3, 0.5)
    counts = one.counts()
    assert (counts.complete, counts.running, one.finished) == (3, 1, 3)
    two.sync()
    assert two.counts() == counts and two.best() == one.best()
    assert [number for number, *_ in one._results()] == [1, 2, 3]
    one.tell(0, state="fail", message="on purpose")
    two.sync()
    assert two.counts() == one.counts() and two.counts().failed == 1
    assert {t.number: t.value for t in stored(url)} == values | {0: None}
