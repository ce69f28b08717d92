"""The command line: what it prints, where, and with which exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import optuna
import pytest
from click.testing import CliRunner

from droptune import cli, target
from droptune.errors import StudyError
from droptune.store import Store
from droptune.trainers import TRAINERS

ROOT = Path(__file__).parents[1]
EVIL = "\x1b[31mred [bold]loud[/bold]"
FIXED = {"name": "half everywhere"}
TRIED = [0.0, 0.3, 0.6, 0.1]  # the rates of four trials; the third fails
VALUES = [0.5, 0.25, None, 0.4]
VERDICT = {
    "verdict": "helps",
    "text": "helps: -0.021 nats [-0.029, -0.013], p = 0.0004, 8 paired seeds",
    "objective": "val_loss",
    "direction": "minimize",
    "difference": -0.021,
    "low": -0.029,
    "high": -0.013,
    "p_value": 0.0004,
    "blocks": 8,
    "level": 0.95,
    "best": {"arm": "finalist 1", "value": 0.4, "trial": 1, "search_value": 0.25},
    "control": {"arm": "no dropout", "value": 0.421, "trial": 0, "search_value": 0.5},
    "test": {"test_loss": {"best": 0.41, "control": 0.43}},
}
BEST_KEYS = [
    "study",
    "verdict",
    "plan",
    "objective",
    "best",
    "control",
    "difference",
    "test",
    "fit",
    "others",
]


def plan(rate: float) -> dict:
    """Return a plan's JSON with one site."""
    site = {"kind": "standard", "rate": rate, "schedule": "constant"}
    return {"version": 1, "sites": {"0": site} if rate else {}}


def add_study(url: str, name: str, verdict: bool) -> None:
    """Store a study of four trials, one of which failed, and one that waits."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(url)
    run = {"seed": 1, "block": 0, "clock": 0, "slot": 0, "trainer": "fused", "device": "cpu"}
    site = {"name": "0", "role": "hidden", "layout": "NF", "reach": "output", "shape": [8]}
    with Store(url) as store:
        definition = {"objective": "val_loss", "direction": "minimize"}
        study_id = store.create_study(name, definition, {"torch": "2"}, [site])
        study = optuna.create_study(study_name=name, storage=storage, direction="minimize")
        for number, (rate, value) in enumerate(zip(TRIED, VALUES, strict=True)):
            study.enqueue_trial({"rate": rate})
            trial = study.ask()
            trial.suggest_float("rate", 0, 0.9)
            arm = "trial" if number else "no dropout"
            run |= {"trial_number": number, "phase": "search", "arm": arm}
            run_id = store.start_run(study_id, plan=plan(rate), **run)
            store.record([(run_id, epoch, 1.0, {"val_loss": 1 / epoch}) for epoch in (1, 2)])
            state = "complete" if value else "failed"
            store.end_run(run_id, state, seconds=1.5, epochs=2, message=None if value else "NaN")
            failed = optuna.trial.TrialState.FAIL if value is None else None
            study.tell(trial, value, state=failed)
        study.enqueue_trial({"rate": 0.5}, user_attrs={**FIXED, "plan": plan(0.5)})
        if verdict:
            store.save_verdict(study_id, {**VERDICT, "plan": plan(0.3)})
    storage.engine.dispose()


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A database with a study that has a verdict and one that has none, made once."""
    path = tmp_path_factory.mktemp("made") / "droptune.db"
    add_study(f"sqlite:///{path}", "mine", verdict=True)
    add_study(f"sqlite:///{path}", EVIL, verdict=False)
    return path


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A working directory of its own, without settings from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("DROPTUNE_STORE", cli.TRACEBACK, "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def store(made, workplace) -> Path:
    """A copy of that database where the command line looks for it."""
    return Path(shutil.copyfile(made, workplace / "droptune.db"))


def run(*arguments: object, code: int = 0):
    """Run the command line in this process and expect this exit code."""
    result = CliRunner().invoke(cli.main, [str(word) for word in arguments], prog_name="droptune")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*arguments: object, code: int = 1) -> str:
    """Run what fails, and return what it says: one line on stderr, nothing on stdout."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("Error: ")
    return result.stderr


def data(*arguments: object):
    """Run a command with --json and return what it prints; stdout holds JSON alone."""
    return json.loads(run(*arguments, "--json").stdout)


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    words = [sys.executable, "-c", "from droptune.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, env=environment, **options)


def commands(group: click.Group = cli.main, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the words of every command, groups too."""
    found = [path]
    for name, command in group.commands.items():
        deeper = (*path, name)
        found += commands(command, deeper) if isinstance(command, click.Group) else [deeper]
    return found


# Help


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_opens_with_an_example_of_the_command(path):
    usage, example = run(*path, "--help").stdout.split("\n\n")[:2]
    assert usage.startswith("Usage: droptune")
    assert example.strip().startswith(" ".join(("droptune", *path)))


def test_the_commands_are_those_of_the_design():
    names = {"optimize", "best", "sites", "studies", "trials", "show", "export", "db"}
    names |= {"report", "dashboard", "submit", "withdraw", "worker", "status"}
    assert set(cli.main.commands) == names
    assert set(cli.db.commands) == {"upgrade", "check"}


@pytest.mark.parametrize("path", [path for path in commands() if path[:1] not in ((), ("db",))])
def test_every_command_that_prints_data_has_json(path):
    others = ("export", "report", "dashboard", "submit", "withdraw", "worker")
    if path[0] not in others:  # which print nothing else
        assert "--json" in run(*path, "--help").stdout


def test_help_names_what_the_library_knows():
    from droptune.encodings import ENCODINGS
    from droptune.search import PRUNERS, SAMPLERS

    text = " ".join(run("optimize", "--help").stdout.split())
    text = text.replace("successive- halving", "successive-halving")  # broken at the hyphen
    for known in map(tuple, (SAMPLERS, PRUNERS, ENCODINGS, TRAINERS)):
        assert f"{', '.join(known[:-1])} or {known[-1]}" in text


def test_version():
    assert run("--version").stdout.startswith("droptune, version ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["best"],
        ["trials", "--study", "mine", "--limit", "0"],
        ["show", "--study", "mine", "--trial", "-1"],
        ["optimize"],
        ["optimize", "x.py", "--trials", "two"],
        ["optimize", "x.py", "--seed", "one"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert "Usage: droptune" in run(*arguments, code=2).stderr


# Listings


def test_best_prints_the_verdict_first_and_the_plan(store):
    lines = run("best", "--study", "mine").stdout.splitlines()
    assert lines[0] == VERDICT["text"]
    assert any(line.split()[:4] == ["0", "standard", "0.3", "██████"] for line in lines)


def test_best_as_json_has_the_documented_keys(store):
    answer = data("best", "--study", "mine")
    assert list(answer) == BEST_KEYS
    assert (answer["verdict"], answer["plan"]) == ("helps", plan(0.3))
    numbers = {"mean", "low", "high", "p_value", "blocks", "level", "relative", "search"}
    assert set(answer["difference"]) == numbers
    assert set(answer["best"]) == {"arm", "value", "trial", "search_value"}


def test_best_before_a_verdict_is_the_best_trial(store):
    answer = data("best", "--study", EVIL)
    assert answer["verdict"] == "undecided" and answer["difference"] is None
    assert answer["best"] == {"trial": 1, "value": 0.25}
    assert run("best", "--study", EVIL).stdout.startswith("undecided: nothing is confirmed yet")


def test_studies(store):
    assert [study["name"] for study in data("studies")] == ["mine", EVIL]
    keys = "name objective direction objectives trials best verdict created_at".split()
    assert list(data("studies")[0]) == keys
    text = run("studies").stdout
    assert "3 complete, 1 failed, 1 waiting" in text
    assert r"\x1b[31mred [bold]loud[/bold]" in text and "\x1b" not in text


def test_trials(store):
    rows = data("trials", "--study", "mine")
    assert [row["value"] for row in rows] == [*VALUES, None]
    assert list(rows[0]) == "number state value values epochs seconds plan name".split()
    assert [row["number"] for row in data("trials", "--study", "mine", "--limit", 2)] == [3, 4]
    assert "half everywhere" in run("trials", "--study", "mine").stdout


def test_show(store):
    study = data("show", "--study", "mine")
    assert study["definition"]["objective"] == "val_loss"
    assert study["sites"][0]["name"] == "0" and study["verdict"]["p_value"] == 0.0004
    trial = data("show", "--study", "mine", "--trial", 2)
    assert (trial["message"], trial["params"], len(trial["curve"])) == ("NaN", {"rate": 0.6}, 2)
    assert run("show", "--study", "mine").stdout.startswith("helps: ")
    assert "NaN" in run("show", "--study", "mine", "--trial", 2).stdout


def test_a_listing_of_nothing_says_what_to_do(workplace):
    Store(f"sqlite:///{workplace / 'droptune.db'}").close()
    result = run("studies")
    assert (result.stdout, "droptune optimize" in result.stderr) == ("", True)
    assert data("studies") == []


@pytest.mark.parametrize("command", ["best", "trials", "show", "export"])
def test_an_unknown_study_names_the_nearest(store, command):
    assert "no study 'mime' in this database; nearest: mine" in refused(command, "--study", "mime")


@pytest.mark.parametrize("command", ["best", "trials", "show", "export"])
def test_reading_never_makes_a_database(workplace, command):
    assert "droptune optimize" in refused(command, "--study", "mine")
    assert not list(workplace.iterdir())


def test_the_store_is_given_by_option_before_environment(store, monkeypatch, workplace):
    moved = store.rename(workplace / "moved.db")
    refused("studies")
    monkeypatch.setenv("DROPTUNE_STORE", f"sqlite:///{moved}")
    assert len(data("studies")) == 2
    assert "none.db" in refused("studies", "--store", "sqlite:///none.db")


def test_an_error_never_shows_the_password():
    said = refused("studies", "--store", "postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert "secret" not in said


# Export


def test_export_writes_the_plan_of_best(store, workplace):
    assert json.loads(run("export", "--study", "mine").stdout) == plan(0.3)
    result = run("export", "--study", "mine", "-o", "plan.json")
    assert result.stdout == ""
    assert json.loads((workplace / "plan.json").read_text()) == plan(0.3)


def test_an_exported_plan_can_be_loaded(store, workplace):
    from droptune import Plan

    run("export", "--study", "mine", "-o", "plan.json")
    assert Plan.load(workplace / "plan.json") == Plan.from_json(plan(0.3))


def test_export_says_when_nothing_is_confirmed(store):
    assert "not confirmed" in run("export", "--study", EVIL).stderr
    assert "not confirmed" not in run("export", "--study", "mine").stderr


def test_export_without_a_finished_trial_is_refused(workplace):
    with Store(f"sqlite:///{workplace / 'droptune.db'}") as store:
        store.create_study("new", {}, {}, [])
    assert "no trial has finished" in refused("export", "--study", "new")


def test_export_to_where_nothing_can_be_written_is_refused(store):
    said = refused("export", "--study", "mine", "-o", "no/such/plan.json")
    assert said == "Error: cannot write 'no/such/plan.json': No such file or directory\n"


# The database


def test_db_check_and_upgrade_of_a_good_database(store):
    assert run("db", "check").stdout.endswith(": ok\n")
    assert "nothing to do" in run("db", "upgrade").stdout


def test_db_check_of_a_bad_database_is_exit_code_1(store):
    import sqlite3

    with sqlite3.connect(store) as connection:
        connection.execute("DROP TABLE droptune_curve")
    connection.close()
    assert "droptune_curve" in run("db", "check", code=1).stdout


def test_db_upgrade_makes_an_old_database_readable(workplace):
    assets = sorted((ROOT / "tests/assets").glob("schema_*.db"))
    shutil.copyfile(assets[0], workplace / "droptune.db")
    run("db", "upgrade")
    assert data("studies")


# Errors


class FakeStudy:
    """A study whose run ends in an error."""

    name, url, device, strategy = "mine", cli.STORE, "cpu", "search"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def using(self, **changes):
        return self

    def optimize(self, progress, on_hang=None):
        raise self.error


@pytest.fixture
def failing(monkeypatch):
    """The maker of a target whose study fails with this error."""
    return lambda error: monkeypatch.setattr(target, "load_target", lambda _: FakeStudy(error))


def test_an_error_of_ours_is_one_line(failing):
    failing(StudyError("say\nwhat \x1b[2J"))
    assert refused("optimize", "x.py") == "Error: say what \\x1b[2J\n"


def test_an_error_of_the_users_code_is_one_line_with_its_type_and_place(workplace, failing):
    def users_own():
        raise RuntimeError("mat1 and mat2\n  cannot be multiplied")

    try:
        users_own()
    except RuntimeError as error:
        failing(error)
    said = refused("optimize", "x.py")
    assert "RuntimeError: mat1 and mat2 cannot be multiplied, at " in said
    assert "test_cli.py line" in said and "set DROPTUNE_TRACEBACK=1" in said


def test_the_traceback_is_shown_on_demand(failing, monkeypatch):
    failing(RuntimeError("deep"))
    monkeypatch.setenv(cli.TRACEBACK, "1")
    said = run("optimize", "x.py", code=1).stderr
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith("Error: RuntimeError: deep")


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(failing):
    failing(KeyboardInterrupt())
    result = run("optimize", "x.py", code=130)
    assert result.stdout == ""
    assert result.stderr == (
        "Interrupted: what has finished is kept; the same command goes on from there\n"
    )


# Processes


def test_help_and_listings_start_without_torch_optuna_and_sqlalchemy(store, workplace):
    code = (
        "import sys; from droptune.cli import main; main({}, standalone_mode=False); "
        "heavy = {{'torch', 'optuna', 'sqlalchemy', 'numpy', 'scipy'}} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    study = ["--study", "mine"]
    listings = [["studies"], *([name, *study] for name in ("best", "trials", "show", "export"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in (["db", "check"], *listings):
        words = [sys.executable, "-c", code.format(arguments)]
        result = subprocess.run(words, capture_output=True, text=True, env=environment)
        light = arguments[0] != "db"  # which shows that this test can fail
        assert (result.returncode == 0) == light, result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["best", "--study", "mine"]])
def test_help_and_best_start_at_once(store, arguments):
    resource = pytest.importorskip("resource")  # of POSIX systems
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor, for others may use it at the same time.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.35


@pytest.mark.parametrize("arguments", [["--help"], ["trials", "--study", "mine"]])
def test_a_closed_pipe_is_quiet(store, arguments):
    words = [sys.executable, "-c", "from droptune.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            words, stdout=write, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        os.close(write)
    assert result.stderr == ""
