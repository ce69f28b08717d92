"""A whole study on a PostgreSQL server: the same answer, through restarts, and in every command."""

import json
import logging
import threading
import traceback

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from droptune import cli, retry
from droptune.errors import DroptuneError, StoreError
from droptune.store import Queries
from tests.small import Notes, fresh, study

SECRET = "hunter2@x/y"


@pytest.fixture
def url(postgres):
    return postgres.fresh()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The answer and the plans of the same study on SQLite, undisturbed."""
    url = fresh(tmp_path_factory.mktemp("sqlite"))
    return study(url).optimize(progress=Notes()).to_json(), plans(url)


def plans(url: str) -> list:
    """Return number, state, value and plan of all trials."""
    with Queries(url) as queries:
        rows = queries.trials("mine")
    return [tuple(row[key] for key in ("number", "state", "value", "plan")) for row in rows]


def rows(url: str, sql: str) -> list[tuple]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


def at(update: int, action) -> Notes:
    """Return a progress that does something at one of its updates."""
    notes = Notes(lambda status: len(notes.statuses) == update and action())
    return notes


def interrupt():
    raise KeyboardInterrupt


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(cli.main, [str(word) for word in arguments], prog_name="droptune")
    assert result.exit_code == code, (result.output, result.exception)
    return result


# The same study


@pytest.mark.parametrize("update", [2, 10, 20])
def test_an_interrupted_study_goes_on_to_the_answer_that_sqlite_gives(url, update, tmp_path):
    ends = []
    for database in (fresh(tmp_path), url):
        with pytest.raises(KeyboardInterrupt):
            study(database).optimize(progress=at(update, interrupt))
        ends.append((study(database).optimize(progress=Notes()).to_json(), plans(database)))
        with Queries(database) as queries:
            assert queries.best("mine") == ends[-1][0]
    assert ends[0] == ends[1]


def test_a_server_that_restarts_in_every_phase_changes_nothing(url, expected, postgres):
    def restart():
        postgres.stop()
        starters.append(threading.Timer(0.3, postgres.start))
        starters[-1].start()

    starters = []
    notes = Notes(lambda status: len(notes.statuses) in (3, 12, 20) and restart())
    try:
        answer = study(url).optimize(progress=notes).to_json()
    finally:
        for starter in starters:
            starter.join()
    assert len(starters) == 3
    assert (answer, plans(url)) == expected
    runs = rows(url, "SELECT state, count(*) FROM droptune_run GROUP BY state")
    assert runs == [("complete", len(plans(url)) + len(confirmed(url)))]


def confirmed(url: str) -> list:
    with Queries(url) as queries:
        return queries.confirm_runs("mine")


def test_cut_connections_at_every_epoch_change_nothing(url, expected, postgres):
    notes = Notes(lambda status: postgres.cut(url))
    assert study(url).optimize(progress=notes).to_json() == expected[0]
    assert plans(url) == expected[1]


def test_a_server_that_stays_away_ends_in_one_line_and_the_study_goes_on(
    url, postgres, monkeypatch
):
    monkeypatch.setattr(retry, "PATIENCE", 0.3)
    try:
        with pytest.raises(StoreError) as caught:
            study(url).optimize(progress=at(8, postgres.stop))
    finally:
        postgres.start()
    assert "\n" not in str(caught.value)
    assert "what is stored is kept, and the same command goes on" in str(caught.value)
    done = [row for row in plans(url) if row[1] == "complete"]
    assert done
    study(url).optimize(progress=Notes())
    assert plans(url)[: len(done)] == done
    assert [row[:2] for row in plans(url)] == [(number, "complete") for number in range(6)]
    assert len(confirmed(url)) == 6  # three arms in two blocks


# The commands


def test_every_command_reads_the_server(url, expected, tmp_path):
    study(url).optimize(progress=Notes())
    here = ["--study", "mine", "--store", url]
    assert json.loads(run("best", *here, "--json").stdout) == expected[0]
    (row,) = json.loads(run("studies", "--store", url, "--json").stdout)
    assert row["trials"]["complete"] == 6
    latest = json.loads(run("trials", *here, "--limit", 2, "--json").stdout)
    assert [trial["number"] for trial in latest] == [4, 5]
    shown = json.loads(run("show", *here, "--json").stdout)
    assert shown["definition"]["training"]["epochs"] == 3
    assert shown["verdict"]["verdict"] == expected[0]["verdict"]
    trial = json.loads(run("show", *here, "--trial", 3, "--json").stdout)
    assert [point["epoch"] for point in trial["curve"]] == [1, 2, 3]
    for command in ("best", "trials", "show"):
        assert run(command, *here).stdout
    path = tmp_path / "plan.json"
    run("export", *here, "-o", path)
    assert json.loads(path.read_text()) == expected[0]["plan"]
    assert run("db", "check", "--store", url).stdout.rstrip().endswith(": ok")
    assert "nothing to do" in run("db", "upgrade", "--store", url).stdout


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_url_is_taken_as_hosts_hand_it_out(url, scheme):
    other = url.replace("postgresql", scheme, 1)
    study(other, trials=2, confirm_blocks=0).optimize(progress=Notes())
    with Queries(other) as queries:
        assert queries.studies()[0]["trials"]["complete"] == 2


# Who may not, and passwords


@pytest.fixture(scope="module")
def users(postgres):
    """Users with passwords: `ann` may do all in a database of hers, `bob` only read."""
    for user in ("ann", "bob"):
        postgres.protect(user, SECRET)


def doors(url: str):
    """Return each way to open a database."""
    here = ["--study", "mine", "--store", url]
    yield lambda: study(url).optimize(progress=Notes())
    for words in (["best", *here], ["studies", "--store", url], ["db", "check", "--store", url]):
        yield lambda words=words: run(*words, code=1)


WRONG = {
    "password": ("refuses this user or password; check both", {"password": "hunter2@x"}),
    "user": ("refuses this user, who does not exist there", {"user": "eve", "password": SECRET}),
    "database": ("does not exist on that server; make it", {"database": "none_such"}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_url_is_one_line(postgres, users, caplog, wrong):
    said, changes = WRONG[wrong]
    url = postgres.url(**{"database": "postgres", "user": "ann", "password": SECRET} | changes)
    check_doors(url, said, caplog)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1:1", "cannot be reached; check that the server runs"),
        ("no-such-host.invalid", "its host is not known; check the name of the host"),
    ],
)
def test_a_host_that_is_wrong_is_one_line(host, said, caplog):
    check_doors(f"postgresql://ann:hunter2%40x%2Fy@{host}/mine", said, caplog)


def check_doors(url: str, said: str, caplog) -> None:
    """Check what every way to open a database says, and that no password is in it."""
    with caplog.at_level(logging.DEBUG):
        for open_it in doors(url):
            try:
                shown = open_it().output
            except DroptuneError as error:
                assert "\n" not in str(error)
                shown = "".join(traceback.format_exception(error))
            assert said in shown
            assert "***" in shown
            for secret in ("hunter2", SECRET):
                assert secret not in shown + caplog.text


def test_a_user_who_may_only_read_reads_and_is_told_what_to_ask_for(url, users, postgres):
    study(url, trials=2, confirm_blocks=0).optimize(progress=Notes())
    name = url.split("?")[0].rpartition("/")[2]
    postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO bob", name)
    reads = postgres.url(name, "bob", SECRET)
    assert json.loads(run("studies", "--store", reads, "--json").stdout)[0]["name"] == "mine"
    with pytest.raises(StoreError, match="let its owner GRANT the rights") as caught:
        study(reads, trials=4).optimize(progress=Notes())
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown
    assert "\n" not in str(caught.value)


def test_a_password_is_in_no_table_and_in_no_next_line(users, postgres, tmp_path, monkeypatch):
    url = postgres.url("annas", "ann", SECRET)
    postgres.execute("CREATE DATABASE annas OWNER ann")
    path = tmp_path / "tiny.py"
    path.write_text(
        "from tests.small import study\nstudy = study(None, trials=2, confirm_blocks=1)"
    )
    said = run("optimize", path, "--store", url)
    assert "--store 'postgresql://ann:***@/annas" in said.stdout
    tables = rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) > 15
    dump = [said.output] + [str(rows(url, f"SELECT * FROM {table}")) for (table,) in tables]
    assert "val_loss" in "".join(dump)
    assert "hunter2" not in "".join(dump)


# Names


def test_a_name_with_anything_in_it_is_stored_or_refused_in_one_line(url):
    for name in ("drop'; --", "naïve 研究 \N{WRENCH}", "x" * 512):
        study(url, name=name, trials=2, confirm_blocks=0).optimize(progress=Notes())
        with Queries(url) as queries:
            assert queries.study(name)["trials"]["complete"] == 2
    for name in ("a\0b", "x" * 513, "half \udce9"):
        with pytest.raises(DroptuneError) as caught:
            study(url, name=name, trials=2, confirm_blocks=0).optimize(progress=Notes())
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 800
