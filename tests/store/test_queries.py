"""The listings, over a study that Optuna itself made, read by both kinds of reader."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from droptune.errors import StoreError, StudyError
from droptune.store import Queries, Store
from droptune.store.reader import SQLiteReader


@pytest.fixture(scope="session")
def made(tmp_path_factory, tuned):
    """A database with a study of six trials, made once."""
    path = tmp_path_factory.mktemp("tuned") / "droptune.db"
    tuned(f"sqlite:///{path}")
    return path


@pytest.fixture
def tuned_url(made, tmp_path, url):
    """The URL of a copy of that database."""
    shutil.copyfile(made, tmp_path / "droptune.db")
    return url


@pytest.fixture(scope="session")
def made_on_server(postgres, tuned):
    """The name of a database like `made` on a server."""
    tuned(postgres.database(name="tuned"))
    return "tuned"


@pytest.fixture(params=["sqlite3", "sqlalchemy", "postgresql"])
def where(request):
    """The URL of a study with six trials, for each reader."""
    if request.param == "postgresql":
        made = request.getfixturevalue("made_on_server")
        return request.getfixturevalue("postgres").database(made)
    options = "?uri=false" if request.param == "sqlalchemy" else ""
    return request.getfixturevalue("tuned_url") + options


@pytest.fixture
def queries(where):
    """The listings of a study with six trials, by each reader."""
    with Queries(where) as queries:
        assert isinstance(queries._reader, SQLiteReader) == where.endswith(".db")
        yield queries


VERDICT = {
    "verdict": "helps",
    "text": "helps: -0.021 [-0.029, -0.013]",
    "objective": "val_loss",
    "direction": "minimize",
    "difference": -0.021,
    "low": -0.029,
    "high": -0.013,
    "p_value": 0.0004,
    "blocks": 8,
    "level": 0.95,
    "best": {"mean": 0.4},
    "control": {"mean": 0.421},
    "test": {"best": 0.41},
    "details": {"relative": -0.05, "search": -0.08},
}


def test_studies_have_counts_and_the_best_value(queries):
    (study,) = queries.studies()
    assert study.pop("created_at").endswith("Z")
    assert study == {
        "name": "mine",
        "objective": "val_loss",
        "direction": "minimize",
        "objectives": {"val_loss": "minimize"},
        "trials": {"complete": 3, "pruned": 0, "failed": 1, "running": 1, "waiting": 1},
        "best": 0.25,
        "verdict": None,
    }


def test_trials_come_by_number_with_what_is_known(queries, examples):
    trials = queries.trials("mine")
    assert [trial["number"] for trial in trials] == list(range(6))
    states = ["complete", "complete", "failed", "complete", "running", "waiting"]
    assert [trial["state"] for trial in trials] == states
    assert [trial["value"] for trial in trials] == [0.25, 0.5, None, 0.4, None, None]
    assert [trial["epochs"] for trial in trials] == [2, 2, 2, 2, 1, None]
    assert trials[0]["name"] == "no dropout"
    assert trials[1]["name"] is None
    assert trials[4]["plan"] == examples.plan(0.1)


def test_a_waiting_trial_shows_its_fixed_plan(queries, examples):
    waiting = queries.trials("mine")[5]
    assert (waiting["name"], waiting["plan"]) == ("half everywhere", examples.plan(0.5))


def test_a_trial_done_again_after_an_interruption_is_listed_once(queries):
    assert [trial["number"] for trial in queries.trials("mine")].count(3) == 1
    assert queries.trials("mine")[3]["seconds"] == 1.5


@pytest.mark.parametrize(("limit", "numbers"), [(2, [4, 5]), (0, []), (99, list(range(6)))])
def test_a_limit_keeps_the_latest_trials(queries, limit, numbers):
    assert [trial["number"] for trial in queries.trials("mine", limit)] == numbers


def test_one_trial_has_its_params_and_curve(queries):
    trial = queries.trial("mine", 0)
    assert trial["params"] == {"rate": 0.0, "kind": "standard"}
    assert trial["curve"] == [
        {"epoch": 1, "train_loss": 1.0, "metrics": {"val_loss": 1.0}},
        {"epoch": 2, "train_loss": 1.0, "metrics": {"val_loss": 0.5}},
    ]
    assert (trial["seed"], trial["clock"], trial["trainer"]) == (2**40, 3, "fused")
    assert queries.trial("mine", 2)["message"] == "diverged"
    assert queries.trial("mine", 5)["curve"] == []


def test_a_study_has_its_definition_and_sites(queries):
    study = queries.study("mine")
    assert study["definition"]["epochs"] == 3
    assert study["environment"] == {"torch": "2"}
    assert [(site["name"], site["shape"], site["rate"]) for site in study["sites"]] == [
        ("0", [8], None),
        ("drop", [8], 0.5),
    ]
    assert study["verdict"] is None


def test_best_before_a_verdict_is_the_best_trial_so_far_and_undecided(queries, examples):
    assert queries.best("mine") == {
        "study": "mine",
        "verdict": "undecided",
        "plan": examples.plan(0),
        "objective": "val_loss",
        "best": {"trial": 0, "value": 0.25},
        "control": {"trial": 0, "value": 0.25},
        "difference": None,
        "test": None,
        "fit": None,
        "others": {},
    }


def test_best_is_the_verdict_once_there_is_one(queries, where, examples):
    with Store(where) as store:
        store.save_verdict(store.study("mine")["id"], {**VERDICT, "plan": examples.plan(0.2)})
    assert queries.best("mine") == {
        "study": "mine",
        "verdict": "helps",
        "plan": examples.plan(0.2),
        "objective": "val_loss",
        "best": {"mean": 0.4},
        "control": {"mean": 0.421},
        "difference": {
            "mean": -0.021,
            "low": -0.029,
            "high": -0.013,
            "p_value": 0.0004,
            "blocks": 8,
            "level": 0.95,
            "relative": -0.05,
            "search": -0.08,
        },
        "test": {"best": 0.41},
        "fit": None,
        "others": {},
    }
    assert queries.verdict("mine")["text"] == VERDICT["text"]
    assert queries.studies()[0]["verdict"] == queries.study("mine")["verdict"]["verdict"] == "helps"


def test_the_best_trial_of_a_maximised_study_is_the_largest(url, tuned):
    tuned(url, direction="maximize")
    with Queries(url) as queries:
        assert queries.best("mine")["best"] == {"trial": 1, "value": 0.5}
        assert queries.studies()[0]["direction"] == "maximize"


def test_studies_of_one_database_are_kept_apart(tuned_url, tuned):
    url = tuned_url
    tuned(url, "yours", "maximize")
    with Queries(url) as queries:
        assert [study["best"] for study in queries.studies()] == [0.25, 0.5]
        assert len(queries.trials("yours")) == 6
        assert queries.trial("mine", 0)["curve"] == queries.trial("yours", 0)["curve"]


def test_a_study_without_trials_yet_is_listed(url, examples):
    with Store(url) as store:
        examples.new_study(store)
    with Queries(url) as queries:
        assert queries.studies()[0]["trials"]["complete"] == 0
        assert queries.studies()[0]["direction"] == "minimize"
        assert queries.trials("mine") == []
        assert queries.best("mine")["plan"] is None
        with pytest.raises(StudyError, match="has no trial 0; it has none yet"):
            queries.trial("mine", 0)


def test_an_unknown_study_names_the_nearest(queries):
    for ask in (queries.trials, queries.study, queries.best, queries.verdict, queries.confirm_runs):
        with pytest.raises(StudyError, match="no study 'mime' in this database; nearest: mine"):
            ask("mime")


def test_an_unknown_study_in_an_empty_database_says_what_to_run(url):
    Store(url).close()
    with Queries(url) as queries, pytest.raises(StudyError, match="run `droptune optimize`"):
        queries.best("mine")


def test_an_unknown_trial_says_which_there_are(queries):
    with pytest.raises(StudyError, match="study 'mine' has no trial 99; it has trials 0 to 5"):
        queries.trial("mine", 99)


def test_a_name_is_never_taken_as_sql(queries):
    with pytest.raises(StudyError):
        queries.best("mine' OR '1'='1")
    assert len(queries.studies()) == 1


def test_confirm_runs_are_those_of_the_store(queries, where, examples):
    with Store(where) as store:
        run = {**examples.run, "phase": "confirm", "arm": "no dropout"}
        run_id = store.start_run(1, plan=examples.plan(0), **run)
        store.record([(run_id, 1, 0.5, {"val_loss": 0.5})])
        store.end_run(run_id, "complete", seconds=1, epochs=1)
        assert queries.confirm_runs("mine") == store.confirm_runs(1)
    assert queries.confirm_runs("mine")[0]["metrics"] == {"val_loss": 0.5}


def test_every_answer_is_json(queries):
    answers = [queries.studies(), queries.trials("mine"), queries.study("mine")]
    answers += [queries.trial("mine", number) for number in range(6)]
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers


def test_a_store_reads_what_it_wrote_in_an_open_transaction(url, examples):
    with Store(url) as store, store.transaction():
        examples.new_study(store)
        assert store.queries().studies()[0]["name"] == "mine"


def test_a_reader_cannot_write(tuned_url, made_on_server, postgres):
    for url in (tuned_url, postgres.database(made_on_server)):
        with Queries(url) as queries, pytest.raises(StoreError, match="read-only"):
            queries._reader.rows("DELETE FROM droptune_study")


LOADED = """
import sys
from contextlib import closing
from droptune.store import Queries
Queries(sys.argv[1]).best("mine")
print(sorted({"torch", "optuna", "sqlalchemy", "alembic"} & set(sys.modules)))
"""
WRITES = LOADED.replace("Queries", "Store").replace('.best("mine")', "")


@pytest.mark.parametrize(("code", "loaded"), [(LOADED, "[]"), (WRITES, "['sqlalchemy']")])
def test_only_what_is_needed_is_loaded(tuned_url, code, loaded):
    command = [sys.executable, "-c", code, tuned_url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded


def test_an_infinite_value_is_never_the_best(tuned_url, tmp_path):
    with closing(sqlite3.connect(tmp_path / "droptune.db")) as connection, connection:
        connection.execute(
            "UPDATE trial_values SET value = NULL, value_type = 'INF_NEG' WHERE trial_id = 4"
        )
    with Queries(tuned_url) as queries:
        assert queries.best("mine")["best"] == {"trial": 0, "value": 0.25}
        assert queries.trials("mine")[3]["value"] is None
