"""What `droptune db check` finds in a study, one thing broken at a time, and mends."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from droptune import cli
from droptune.store import Store, Workers
from tests.faults.whole import check_whole
from tests.small import Notes, fresh, study

SEARCH = "phase = 'search' AND trial_number = 3"
COPIED = "study_id, arm, block, seed, clock, slot, trainer, device, plan, started_at"
#: Kind -> the SQL that makes it, what it breaks.
BROKEN = {
    "lost": [f"UPDATE droptune_run SET state = 'running', worker_id = NULL WHERE {SEARCH}"],
    "untold": [
        "DELETE FROM trial_values WHERE trial_id = (SELECT trial_id FROM trials WHERE number = 3)",
        "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 3",
    ],
    "untrained": [
        f"DELETE FROM droptune_curve WHERE run_id = (SELECT id FROM droptune_run WHERE {SEARCH})",
        f"DELETE FROM droptune_run WHERE {SEARCH}",
    ],
    "nowhere": [
        f"INSERT INTO droptune_run ({COPIED}, phase, state, trial_number, epochs)"
        f" SELECT {COPIED}, phase, 'complete', 99, 0 FROM droptune_run WHERE {SEARCH}"
    ],
    "twice": [
        f"INSERT INTO droptune_run ({COPIED}, phase, state, trial_number, epochs)"
        f" SELECT {COPIED}, phase, state, trial_number, 0 FROM droptune_run WHERE {SEARCH}"
    ],
    "beyond": [
        "INSERT INTO droptune_curve (run_id, epoch, train_loss, metrics)"
        f" SELECT id, 7, 0.5, '{{}}' FROM droptune_run WHERE {SEARCH}"
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bytes:
    """A study that has ended, as a SQLite file."""
    url = fresh(tmp_path_factory.mktemp("made"))
    study(url).optimize(progress=Notes())
    execute(url, "PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(url.removeprefix("sqlite:///")).read_bytes()


@pytest.fixture
def url(made, tmp_path) -> str:
    (tmp_path / "d.db").write_bytes(made)
    return f"sqlite:///{tmp_path / 'd.db'}"


def execute(url: str, *statements: str) -> list[tuple]:
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool
    )
    with engine.begin() as connection:
        done = [connection.execute(text(sql.replace(":", "\\:"))) for sql in statements][-1]
        return [tuple(row) for row in done] if done.returns_rows else []


def check(url: str, *options: str, code: int = 0) -> dict:
    words = ["db", "check", "--store", url, "--json", *options]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def broken(url: str, kind: str) -> None:
    """Break a study in one way, find that alone, mend it, and find nothing more."""
    execute(url, *BROKEN[kind])
    before = execute(url, "SELECT * FROM droptune_run ORDER BY id")
    (found,) = check(url, code=1)["found"]
    assert (found["study"], found["kind"], len(found["items"])) == ("mine", kind, 1)
    assert execute(url, "SELECT * FROM droptune_run ORDER BY id") == before
    done = check(url, "--repair")
    assert [one["kind"] for one in done["repaired"]] == [kind]
    assert check(url)["found"] == check(url, "--repair")["repaired"] == []


@pytest.mark.parametrize("kind", list(BROKEN))
def test_each_kind_is_found_and_mended(url, tmp_path, kind):
    assert check(url)["ok"]
    before = execute(
        url, "SELECT t.number, v.value FROM trials t JOIN trial_values v USING (trial_id)"
    )
    broken(url, kind)
    assert (tmp_path / "d.db.bak-0003").is_file()
    assert not (tmp_path / "d.db.bak-0003.1").exists()  # where nothing is done nothing is copied
    study(url).optimize(progress=Notes())
    after = execute(
        url, "SELECT t.number, v.value FROM trials t JOIN trial_values v USING (trial_id)"
    )
    assert sorted(after) == sorted(before)
    if kind not in ("untrained", "nowhere", "lost"):
        check_whole(url, "mine", 6)


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_server_is_mended_as_well(postgres, kind):
    url = postgres.fresh()
    study(url, trials=5, epochs=2, confirm_blocks=0).optimize(progress=Notes())
    broken(url, kind)


def test_a_trial_that_ended_without_a_run_says_so(url):
    broken(url, "untrained")
    said = execute(url, "SELECT value_json FROM trial_user_attributes WHERE key = 'message'")
    assert said == [('"ended without a run: how it was trained is not known"',)]


def test_failed_and_pruned_trials_are_told_as_their_runs_ended(url):
    for number, state, told in ((3, "failed", "FAIL"), (4, "pruned", "PRUNED")):
        execute(
            url,
            "DELETE FROM trial_values WHERE trial_id ="
            f" (SELECT trial_id FROM trials WHERE number = {number})",
            f"UPDATE trials SET state = 'RUNNING' WHERE number = {number}",
            f"UPDATE droptune_run SET state = '{state}', message = 'it diverged'"
            f" WHERE phase = 'search' AND trial_number = {number}",
        )
        check(url, "--repair")
        assert execute(url, f"SELECT state FROM trials WHERE number = {number}") == [(told,)]


def test_checkpoints_that_nobody_needs_go_and_others_stay(url, tmp_path):
    unused, used = "1-1-0a", "1-1-0b"
    for name in (unused, used, "9-1-0c", "notes"):
        (tmp_path / "d.db-checkpoints" / name).mkdir(parents=True)
    execute(
        url,
        f"INSERT INTO droptune_run ({COPIED}, phase, state, trial_number, checkpoint)"
        f" SELECT {COPIED}, phase, 'stale', trial_number, '{{\"name\":\"1-1-0b\"}}'"
        f" FROM droptune_run WHERE {SEARCH}",
    )
    (found,) = check(url, code=1)["found"]
    assert (found["kind"], found["items"]) == ("unused", [unused])
    check(url, "--repair")
    left = {path.name for path in (tmp_path / "d.db-checkpoints").iterdir()}
    assert left == {used, "9-1-0c", "notes"}


def test_a_study_on_which_somebody_works_is_passed_over(url, tmp_path):
    execute(url, *BROKEN["twice"])
    with Store(url) as store:
        workers = Workers(store)
        worker = workers.register("cpu", os.getpid())
        workers.beat(worker, 1, None)
        found = check(url, "--repair")
        assert (found["busy"], found["repaired"], found["found"]) == (["mine"], [], [])
        assert not list(tmp_path.glob("*.bak*"))
        workers.leave(worker)
    assert check(url, code=1)["busy"] == []


def test_what_was_found_and_done_is_said_in_lines(url, tmp_path):
    execute(url, *BROKEN["twice"], *BROKEN["untold"])
    said = CliRunner().invoke(cli.main, ["db", "check", "--store", url])
    assert said.exit_code == 1
    first, *lines, hint = said.output.splitlines()
    assert first.endswith(": not ok") and hint.endswith("--repair")
    assert "trial 3: still running, but its run has ended" in lines[1]
    done = CliRunner().invoke(cli.main, ["db", "check", "--repair", "--store", url])
    assert done.exit_code == 0, done.output
    assert f"the database as it was is in {tmp_path / 'd.db.bak-0003'}" in done.output
    assert "trial 3: told as its run ended" in done.output
