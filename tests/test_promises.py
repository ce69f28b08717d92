"""The promises of the design that need a whole study: 3, 4, 5, 8 and 9; 7 is test_mistakes.py."""

import ast
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing
from pathlib import Path

import pytest

from droptune.data import Data
from droptune.errors import DroptuneError
from droptune.plan import Plan
from droptune.store import Queries
from droptune.trainers import FusedTrainer, SerialTrainer
from tests.small import Notes, cancer, fresh, rows, runs, study, trials

ROOT = Path(__file__).parents[1]


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


# 3. Any stored run can be reproduced alone.


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """The URL of a study whose runs trained in company, some of them in refilled slots."""
    url = fresh(tmp_path_factory.mktemp("fused"))
    settings = {"kinds": ["standard", "gaussian"], "encoding": "site", "lr_schedule": "cosine"}
    settings |= {"pruner": "successive-halving"}  # without one all trials enter at clock 0
    study(url, trainer="fused", slots=4, trials=16, **settings).optimize(progress=Notes())
    return url


RUNS = """
    SELECT r.id, r.plan, r.seed, r.clock, s.definition, r.test
    FROM droptune_run r JOIN droptune_study s ON s.id = r.study_id
"""
CHOSEN = {
    "a trial in a refilled slot": " WHERE phase = 'search' AND clock > 0 AND plan LIKE '%rate%'",
    "the last trial": " WHERE phase = 'search' ORDER BY r.id DESC",
    "no dropout in a block": " WHERE phase = 'confirm' AND arm = 'no dropout'",
    "a finalist": " WHERE phase = 'confirm' AND arm = 'finalist 1' ORDER BY r.id DESC",
}


@pytest.mark.parametrize("trainer", [SerialTrainer, FusedTrainer])
@pytest.mark.parametrize("where", CHOSEN.values(), ids=CHOSEN)
def test_a_stored_run_is_reproduced_alone_from_the_store(fused, trainer, where):
    run_id, plan, seed, clock, definition, test = rows(fused, RUNS + where + " LIMIT 1")[0]
    training = json.loads(definition)["training"]
    plan = Plan.from_json(json.loads(plan))
    curve = "SELECT train_loss, metrics FROM droptune_curve WHERE run_id = ? ORDER BY epoch"
    stored = [(loss, json.loads(metrics)) for loss, metrics in rows(fused, curve, run_id)]
    kinds = {site: ("standard", "gaussian") for site in ("@input", "2")}
    settings = {name: value for name, value in training.items() if name not in ("train", "loss")}
    task = study(fused).using(**settings).task(kinds)
    alone = trainer(task, 1)
    alone.begin(seed, clock)
    alone.start(0, plan)
    for loss, metrics in stored:
        scores = alone.epoch()[0]
        metrics.pop("reliability", None)  # bins, which stand beside the last epoch's metrics
        assert scores.train_loss == pytest.approx(loss, abs=1e-4)
        assert scores.metrics == pytest.approx(metrics, abs=1e-4)
    if test is not None:
        assert alone.test()[0] == pytest.approx(json.loads(test), abs=1e-4)


def test_a_run_of_another_clock_would_be_seen(fused):
    where = CHOSEN["a trial in a refilled slot"]
    run_id, plan, seed, clock, *_ = rows(fused, RUNS + where + " LIMIT 1")[0]
    curve = "SELECT train_loss FROM droptune_curve WHERE run_id = ? AND epoch = 1"
    alone = SerialTrainer(
        study(fused).task({site: ("standard", "gaussian") for site in ("@input", "2")}), 1
    )
    alone.begin(seed, clock + 1)
    alone.start(0, Plan.from_json(json.loads(plan)))
    assert abs(alone.epoch()[0].train_loss - rows(fused, curve, run_id)[0][0]) > 1e-3


# 4. Kill any process at any moment.

WORKER = """
import sys, time
import torch
torch.set_num_threads(1)
from droptune.progress import LineProgress
from tests.small import mlp, study

class Slow(LineProgress):
    def update(self, status):
        print(status.phase, status.done, status.running, flush=True)
        time.sleep(0.05)

study(sys.argv[1], slots=2, trials=8, epochs=2, confirm_blocks=1).optimize(progress=Slow())
"""


def start(url: str, until: str) -> subprocess.Popen:
    """Start a study in a process of its own; return when it has printed such a status."""
    command = [sys.executable, "-c", WORKER, url]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in process.stdout:
        if line.startswith(until):
            return process
    raise AssertionError(process.stderr.read())


def finish(url: str) -> None:
    """Let the study go on in this process, and check that nothing is lost or doubled."""
    before = {number for number, state in trials(url) if state == "COMPLETE"}
    ended = [run for run in runs(url, "search") if run[3] == "complete"]
    result = study(url, slots=2, trials=8, epochs=2, confirm_blocks=1).optimize(progress=Notes())
    assert before, "nothing had ended"
    assert trials(url) == [(number, "COMPLETE") for number in range(8)]
    after = [run for run in runs(url, "search") if run[3] == "complete"]
    assert after[: len(ended)] == ended
    assert sorted(run[0] for run in after) == list(range(8))
    confirmed = [run[1] for run in runs(url, "confirm") if run[3] == "complete"]
    assert sorted(confirmed) == ["as given", "finalist 1", "no dropout"]
    with Queries(url) as queries:
        assert queries.best("mine") == result.to_json()


@pytest.mark.parametrize("until", ["search 4", "confirm 2"])
def test_a_killed_process_loses_no_finished_trial_and_the_budget_holds(url, until):
    process = start(url, until)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(url)


def test_an_interrupted_process_stores_its_runs_and_the_study_goes_on(url):
    process = start(url, "search 4")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert "stopping at the end of this epoch" in said
    assert process.returncode != 0
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "running" not in {run[3] for run in runs(url, "search")}
    finish(url)


# 5. The test split takes no part in any choice.

CHOICES = """
    SELECT r.phase, r.trial_number, r.arm, r.block, r.plan, c.epoch, c.train_loss, c.metrics
    FROM droptune_run r JOIN droptune_curve c ON c.run_id = r.id ORDER BY r.id, c.epoch
"""


def test_garbage_in_the_test_split_changes_no_choice(tmp_path):
    answers, choices, tests = [], [], []
    for garbage in (False, True):
        folder = tmp_path / str(garbage)
        folder.mkdir()
        url = fresh(folder)
        one = study(url, data=cancer(garbage), sampler="tpe", trials=9, pruner="median")
        answers.append(one.optimize(progress=Notes()).to_json())
        choices.append(rows(url, CHOICES))
        tests.append(answers[-1].pop("test"))
    assert choices[0] == choices[1]
    assert len(choices[0]) > 9 * 3
    assert answers[0] == answers[1]
    assert tests[0] != tests[1], "the garbage was there to be seen"


def test_the_test_split_is_read_once_for_each_run_of_confirmation(url, monkeypatch):
    reads, score = [], SerialTrainer._score

    def seen(self, model, split, prefix):
        reads.append((prefix, split is self._data.test, self.clock))
        return score(self, model, split, prefix)

    monkeypatch.setattr(SerialTrainer, "_score", seen)
    study(url, confirm_blocks=0).optimize(progress=Notes())
    assert {prefix for prefix, _, _ in reads} == {"val"}
    assert not any(is_test for _, is_test, _ in reads)
    study(url, confirm_blocks=2).optimize(progress=Notes())
    confirmed = runs(url, "confirm")
    assert [clock for prefix, _, clock in reads if prefix == "test"] == [3] * len(confirmed)
    assert rows(
        url, "SELECT count(*) FROM droptune_run WHERE phase = 'search' AND test NOT NULL"
    ) == [(0,)]


def test_a_study_without_a_test_split_has_an_answer_without_test(url):
    data = cancer()
    data = Data(train=(data.train.x, data.train.y), val=(data.val.x, data.val.y))
    result = study(url, data=data, trials=2).optimize(progress=Notes())
    assert result.test is None
    assert result.difference.n == 2


# 8. Nothing read from a store is executed.


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """The URL of a database with a study. To be read only."""
    url = fresh(tmp_path_factory.mktemp("used"))
    study(url, trials=2, confirm_blocks=1, finalists=1).optimize(progress=Notes())
    return url


PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SOURCES = sorted((ROOT / "droptune").rglob("*.py")) + sorted((ROOT / "alembic").rglob("*.py"))


def unsafe(source: str) -> list[str]:
    """Return the calls and imports of a source that could execute what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in PICKLES else []
            found += [a.name for a in node.names if node.module == "torch" and a.name == "load"]
            found += [a.name for a in node.names if a.name == "PickleType"]
        elif isinstance(node, ast.Attribute):
            called = ast.unparse(node)
            found += [called] if called == "torch.load" or node.attr == "PickleType" else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in ("eval", "exec", "__import__") else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_evaluates(path):
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import os, joblib.memory",
        "from dill import loads",
        "from torch import load",
        "x = torch.load(path)",
        "def f():\n    import cloudpickle as c",
        "eval(text)",
        "column(sqlalchemy.PickleType())",
    ],
)
def test_what_unpickles_or_evaluates_would_be_seen(line):
    assert unsafe(line)


def test_the_store_holds_numbers_texts_and_json_alone(used):
    tables = [name for (name,) in rows(used, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    ours = [table for table in tables if table.startswith("droptune_")]
    assert len(ours) == 9
    for table in ours:
        kinds = {kind for _, _, kind, *_ in rows(used, f"PRAGMA table_info({table})")}
        assert kinds <= {
            "INTEGER",
            "BIGINT",
            "VARCHAR",
            "TEXT",
            "JSON",
            "DOUBLE",
            "DATETIME",
            "VARCHAR(32)",
        }
        for row in rows(used, f"SELECT * FROM {table}"):
            assert not any(isinstance(value, bytes) for value in row)


# 9. A database password is never printed, logged or stored.

SECRET = "hunter2%40x"
POSTGRES = f"postgresql://user:{SECRET}@127.0.0.1:1/x"


def test_a_password_is_not_in_what_a_study_says(caplog, capfd):
    one = study(POSTGRES)
    with caplog.at_level(logging.DEBUG), pytest.raises(DroptuneError) as caught:
        one.optimize()
    said = str(caught.value)
    assert "\n" not in said
    assert "psycopg" in said or "cannot be reached" in said
    printed = "".join(capfd.readouterr())
    shown = traceback.format_exception(caught.value)
    for text in (said, repr(caught.value), repr(one), str(one), caplog.text, printed, *shown):
        for secret in ("hunter2", "hunter2@x", SECRET):
            assert secret not in text, text
    assert "user:***@127.0.0.1" in repr(one)


def test_a_password_is_not_stored(url):
    # SQLite ignores the option; what matters is that the URL goes nowhere.
    path = url.removeprefix("sqlite:///")
    secret = f"sqlite:///file:{path}?uri=true&password=hunter2"
    study(secret, trials=2, confirm_blocks=1).optimize(progress=Notes())
    with closing(sqlite3.connect(path)) as connection:
        dump = "\n".join(connection.iterdump())
    assert "breast" not in dump
    assert "definition" in dump
    assert "hunter2" not in dump
