"""`droptune submit`, `withdraw` and `status`: what they check, store, print and escape."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from droptune import cli
from droptune.store import Store, Workers, submissions
from tests.workers.targets import write

ROOT = Path(__file__).parents[1]
EVIL = "\x1b[31mred [bold]loud[/bold]\n\u202eturned"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory that can be imported from, with one study in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine_to_queue", raising=False)
    monkeypatch.delenv("DROPTUNE_STORE", raising=False)
    write(tmp_path, "mine_to_queue.py")
    return tmp_path


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(cli.main, [str(word) for word in arguments], prog_name="droptune")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def queued(url: str = cli.STORE) -> list[tuple]:
    with Store(url) as store:
        rows = submissions.queued(store)
    return [(row["name"], row["target"], row["options"]) for row in rows]


def test_a_study_is_queued_with_its_options_and_nothing_of_the_machine(workplace):
    options = ["--trials", 9, "--slots", 4, "--time", "5m", "--tune", "", "--objective", "val_loss"]
    url = "sqlite:///q.db"
    said = run("submit", "mine_to_queue", *options[:6], "--study", "x", "--store", url).stdout
    assert said == (
        "study 'x' is queued\nnext:\n"
        f"  droptune worker --store {url} --allow mine_to_queue\n  droptune status --store {url}\n"
    )
    assert queued(url) == [("x", "mine_to_queue", {"trials": 9, "slots": 4, "time": "5m"})]
    run("submit", "mine_to_queue", "--trials", 10, "--study", "y")
    again = run("submit", "mine_to_queue", "--trials", 10, "--study", "y", code=1).stderr
    assert "already with this budget" in again
    assert "updated" in run("submit", "mine_to_queue", "--trials", 11, "--study", "y").stdout
    assert "--allow-files" in run("submit", "./mine_to_queue.py", "--study", "z").stdout
    run("withdraw", "--study", "y")
    assert [name for name, _, _ in queued()] == ["z"]
    assert "not in the queue" in run("withdraw", "--study", "nobody", code=1).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere_at_all"], "there is no module"),
        (["mine_to_queue:other"], "has no 'other'"),
        (["mine_to_queue", "--sampler", "tbe"], "unknown sampler"),
        (["mine_to_queue", "--objective", "val_loss,val_loss"], "objective"),
        (["mine_to_queue", "--from", "sqlite:///x.db#s"], "'warm_start'"),
    ],
)
def test_mistakes_come_out_before_anything_is_queued(workplace, words, said):
    assert said in run("submit", *words, code=1).stderr
    assert not (workplace / "droptune.db").exists()


def test_status_shows_who_works_on_what_and_escapes_it(workplace):
    with Store(cli.STORE) as store:
        submissions.submit(store, EVIL, EVIL, {"trials": 3})
        (row,) = submissions.queued(store)
        submissions.end(store, row["id"], row["submitted_at"], "failed", EVIL)
        worker = Workers(store).register(EVIL, os.getpid())
        Workers(store).beat(worker, None, {"phase": EVIL, "running": EVIL, "done": 1})
    shown = run("status").stdout
    assert "failed" in shown and "alive" in shown
    assert "[bold]loud[/bold]" in shown and "\\x1b[31m" in shown and "\\u202e" in shown
    assert not re.search("[\x1b\u202e]", shown)
    assert shown.isascii() or "─" in shown
    printed = json.loads(run("status", "--json").stdout)
    assert printed["studies"][0]["name"] == EVIL and printed["studies"][0]["message"] == EVIL
    assert printed["workers"][0]["alive"] is True


def test_status_of_an_empty_store_and_of_none(workplace):
    assert "droptune optimize" in run("status", code=1).stderr
    Store(cli.STORE).close()
    assert "nothing is queued" in run("status").stdout
    assert json.loads(run("status", "--json").stdout) == {"studies": [], "workers": []}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "neither auto nor a whole number"),
        (["--workers", "many"], "neither auto nor a whole number"),
        (["--address", "auto"], "give --engine ray"),
        (["--engine", "ray", "--devices", "0"], "Ray places processes itself"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(workplace, words, said):
    assert said in run("optimize", "mine_to_queue", *words, code=2).stderr


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes.yaml"])
def test_the_examples_run_commands_that_there_are(name):
    text = re.sub(r'[",\[\]]+', " ", (ROOT / "examples" / name).read_text())
    (words,) = re.findall(r"^[^#\n]* droptune +worker (.*)$", text, re.MULTILINE)
    command = cli.main.commands["worker"]
    assert command.make_context("worker", words.split()).params["allow"] == ("my_project",)
