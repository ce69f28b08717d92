"""The search's store: what others read and do there, and what is refused."""

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest

from droptune.errors import StoreError, StudyError, TransientError
from droptune.plan import Entry, Plan
from droptune.search import SAMPLERS
from tests.search.tiny import TinySpace, run, storage, stored


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'd.db'}"
    return request.getfixturevalue("postgres").fresh()


def test_optuna_reads_the_study_without_droptune(search, url):
    one = search("theirs", direction="maximize", pruner="median", rungs=(1,))
    asked = one.ask()
    one.report(asked.number, 1, 0.5)
    one.tell(asked.number, 0.75)
    one.ask()
    with storage(url) as opened:
        study = optuna.load_study(study_name="theirs", storage=opened)
        assert study.direction.name == "MAXIMIZE"
        assert study.best_value == 0.75
        assert TinySpace().suggest(optuna.trial.FixedTrial(study.best_params)) == asked.plan
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
        assert study.trials[0].intermediate_values == {1: 0.5}
        assert study.trials[0].datetime_complete >= study.trials[0].datetime_start


def test_the_command_line_of_optuna_reads_the_store(search, url):
    run(search(), 3)
    tool = Path(sys.executable).with_name("optuna")
    call = [tool, "best-trial", "--storage", url, "--study-name", "s", "--format", "json"]
    result = subprocess.run(call, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["value"] == search().best()[2]


def test_optunas_dashboard_reads_the_store(search, url):
    run(search(), 3)
    with storage(url) as opened:
        app = optuna_dashboard.wsgi(opened)

        def get(path: str) -> dict:
            request = {"PATH_INFO": path, "QUERY_STRING": "after=0"}
            setup_testing_defaults(request)
            return json.loads(b"".join(app(request, lambda *status: None)))

        (study,) = get("/api/studies")["study_summaries"]
        assert study["study_name"] == "s"
        trials = get(f"/api/studies/{study['study_id']}")["trials"]
        assert [trial["state"] for trial in trials] == ["Complete"] * 3
        assert [trial["values"] for trial in trials] == [[t.value] for t in stored(url)]


def test_a_process_that_came_in_between_is_noticed_before_anything_is_stored(search, url):
    """As where the lock of a study was lost with its connection, or Optuna's own tools write."""
    one, two = search(), search()
    one.tell(one.ask().number, 1.0)
    with pytest.raises(TransientError, match="another process came in on study 's'"):
        two.ask()
    assert [trial.value for trial in stored(url)] == [1.0]
    assert two.ask().number == 1, "it begins again with what is stored"
    assert two.best()[2] == 1.0


@pytest.mark.parametrize("ended", [False, True])
def test_a_trial_in_line_is_started_by_one_process(search, url, ended):
    one = search()
    for name, rate in (("first", 0.1), ("second", 0.2)):
        one.enqueue(name, Plan({"0": Entry("standard", rate)}))
    two = search()
    asked = one.ask()
    if ended:
        one.tell(asked.number, 1.0)
    with pytest.raises(TransientError, match="another process came in"):
        two.ask()
    assert two.ask({asked.number}).name == "second"
    assert [trial.state.name for trial in stored(url)][1:] == ["RUNNING"]


def test_a_trial_told_by_another_process_is_not_overwritten(search, url):
    one = search()
    asked = one.ask()
    two = search()
    two.ask()
    two.tell(asked.number, 1.0)
    with pytest.raises(StudyError, match="another process"):
        one.tell(asked.number, 2.0)
    assert stored(url)[0].value == 1.0


def test_a_study_of_another_direction_or_space_is_refused(search):
    run(search(), 2)
    with pytest.raises(StudyError, match="there to minimize, not to maximize"):
        search(direction="maximize")
    for space in (TinySpace(high=0.4), TinySpace(kinds=["standard"])):
        with pytest.raises(StudyError, match="restore the space"):
            search(space=space)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sampler": "cmase"}, "nearest: cmaes; choose one of tpe, gp, cmaes, qmc, random, grid"),
        ({"pruner": "asha"}, "choose one of none, paired, median, hyperband, successive-halving"),
        ({"pruner": "median"}, "needs a rung"),
        ({"direction": None}, "'minimize' or 'maximize'"),
        ({"seed": -1}, "integer from 0"),
        ({"epochs": 0}, "integer from 1"),
        ({"rungs": (3, 2)}, "rising epochs from 1 to 27"),
        ({"rungs": (1, 28)}, "rising epochs from 1 to 27"),
    ],
)
def test_an_argument_that_is_not_allowed_is_named_in_one_line(search, options, match):
    with pytest.raises(StudyError, match=match) as caught:
        search(**options)
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_used_is_one_line(search, tmp_path):
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    for bad in (f"sqlite:///{tmp_path}/no/such/folder.db", f"sqlite:///{tmp_path}/text.db", "x"):
        with pytest.raises(StoreError) as caught:
            search(url=bad)
        assert "\n" not in str(caught.value)


def test_a_password_does_not_get_into_an_error(search):
    with pytest.raises(StoreError) as caught:
        search(url="postgresql+nodriver://me:geheim@localhost/d")
    assert "geheim" not in str(caught.value)


def test_braces_in_a_url_are_no_template(search, tmp_path):
    url = f"sqlite:///{tmp_path}/{{x}}.db"
    run(search(url=url), 1)
    assert (tmp_path / "{x}.db").exists()


def test_optuna_is_kept_quiet_and_its_settings_are_left_alone(search, capfd):
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for sampler in SAMPLERS:
                run(search(sampler, sampler=sampler), 3)
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(before)
    assert not caught
    assert capfd.readouterr().err == ""
