"""One study, several processes: the budget is one, deaths are made up for, and none is left."""

import json
import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from droptune.store import Queries
from tests.workers.targets import run, start, until, write

STOPPING = "stopping at the end of this epoch; Ctrl-C again stops at once"


def rows(folder: Path, sql: str) -> list[tuple]:
    """Return what a SELECT finds, or nothing as long as there are no tables."""
    with closing(sqlite3.connect(folder / "droptune.db")) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []


def states(folder: Path) -> list[tuple]:
    return rows(folder, "SELECT number, state FROM trials ORDER BY number")


def complete(folder: Path) -> list[tuple]:
    return [trial for trial in states(folder) if trial[1] == "COMPLETE"]


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_processes_share_a_study_and_its_budget(tmp_path, store, request):
    url = "sqlite:///droptune.db"
    if store == "postgresql":
        url = request.getfixturevalue("postgres").fresh()
    target = write(tmp_path, blocks=2, sleep=0.1)
    target.write_text(target.read_text() + 'print("noise")')
    out, err = run(tmp_path, "optimize", target.name, "--workers", 2, "--store", url, "--json")
    with Queries(url.replace("droptune.db", f"{tmp_path}/droptune.db")) as queries:
        assert json.loads(out) == queries.best("mine")
        trials = [(trial["number"], trial["state"]) for trial in queries.trials("mine")]
        runs = queries.confirm_runs("mine")
    assert trials == [(number, "complete") for number in range(6)]
    assert len(runs) == len({(run["block"], run["arm"]) for run in runs}) >= 4
    assert err.count("noise") == 2  # of this process, which reads the file, and of all others
    assert re.search("search [56]/6, .*\nconfirm [1-9]", err)  # the last may end unseen by others
    if store == "sqlite":
        assert {n for (n,) in rows(tmp_path, "SELECT worker_id FROM droptune_run")} == {1, 2}


def test_code_that_reads_stdin_finds_its_end(tmp_path):
    target = write(tmp_path, body="assert not sys.stdin.read() and not os.read(0, 1)")
    run(tmp_path, "optimize", target, "--workers", 2)
    assert states(tmp_path) == [(number, "COMPLETE") for number in range(6)]


def test_a_process_that_dies_is_replaced(tmp_path):
    body = 'if once("died"): print("last words"); os.kill(os.getpid(), signal.SIGKILL)'
    target = write(tmp_path, body=body)
    _, err = run(tmp_path, "optimize", target, "--workers", 2)
    said = "a process died (ended by SIGKILL, as the system does when memory runs out; it printed"
    assert f"{said} last: last words), and is replaced" in err
    assert states(tmp_path) == [(number, "COMPLETE") for number in range(6)]
    assert rows(tmp_path, "SELECT count(*) FROM droptune_run WHERE state = 'stale'") == [(1,)]


@pytest.mark.slow
def test_processes_that_die_at_once_end_with_the_reason(tmp_path):
    target = write(tmp_path)
    code = 'if "droptune.workers.child" in sys.orig_argv: print("no driver"); os._exit(7)\n'
    target.write_text(target.read_text() + code)
    _, err = run(tmp_path, "optimize", target, "--workers", 2, "-q", code=1)
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert "died again and again (exit code 7; it printed last: no driver)" in line


@pytest.mark.slow
def test_an_error_of_one_is_the_error_of_all_and_is_said_once(tmp_path):
    target = write(tmp_path)
    url = f"sqlite:///{tmp_path}/no/where.db"
    err = run(tmp_path, "optimize", target, "--workers", 2, "--store", url, code=1)[1]
    assert err.count("does not exist; make it") == 1 and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_stops_all_and_the_same_command_goes_on(tmp_path, number):
    target = write(tmp_path, trials=1000)
    process = start(tmp_path, "optimize", target, "--workers", 2)
    try:
        until(lambda: len(complete(tmp_path)) > 2)
        process.send_signal(number)
        err = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.count(STOPPING) == 1
    assert err.splitlines()[-1].startswith("Interrupted: what has finished is kept")
    ended = rows(tmp_path, "SELECT ended_at IS NOT NULL FROM droptune_worker")
    assert set(ended) == {(1,)}
    assert not rows(tmp_path, "SELECT 1 FROM droptune_run WHERE state = 'running'")
    done = len(complete(tmp_path))
    run(tmp_path, "optimize", target, "--workers", 2, "--trials", done + 3)
    assert states(tmp_path) == [(number, "COMPLETE") for number in range(done + 3)]


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path):
    target = write(tmp_path, sleep=100)
    process = start(tmp_path, "optimize", target, "--workers", 2)
    try:
        pids = until(lambda: rows(tmp_path, "SELECT pid FROM droptune_worker, droptune_run"))
        process.send_signal(signal.SIGINT)
        assert until(lambda: process.stderr.readline().strip() == STOPPING)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert not any(exists(pid) for (pid,) in pids)


@pytest.mark.slow
def test_no_process_outlives_its_parent(tmp_path):
    target = write(tmp_path, trials=1000)
    process = start(tmp_path, "optimize", target, "--workers", 2)
    try:
        until(lambda: len(complete(tmp_path)) > 2)
        pids = [pid for (pid,) in rows(tmp_path, "SELECT pid FROM droptune_worker")]
        assert len(pids) == 2 and all(map(exists, pids)) and process.pid not in pids
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not any(map(exists, pids)))
    finally:
        process.kill()
        process.communicate()
    # They ended in order: what they held is handed back, and nothing failed.
    assert rows(tmp_path, "SELECT count(*) FROM droptune_worker WHERE ended_at IS NULL") == [(0,)]
    assert {state for _, state in states(tmp_path)} <= {"COMPLETE", "RUNNING"}


@pytest.mark.slow
def test_a_password_is_not_in_the_list_of_processes(tmp_path):
    target = write(tmp_path, trials=1000, body='Path("pid").write_text(str(os.getpid()))')
    url = f"sqlite:///{tmp_path}/hunter2.db"
    process = start(tmp_path, "optimize", target, "--workers", 2, "--store", url)
    try:
        pid = until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        assert b"hunter2" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"hunter2" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    finally:
        process.terminate()
        process.communicate(timeout=60)
