"""Training that hangs: it is noticed, its place is told, and nothing is lost."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from droptune.frames import place_of
from droptune.hang import EXIT_CODE, Watchdog
from droptune.plan import Plan
from droptune.store import Claims, Queries, Store, Workers
from droptune.trainers import SerialTrainer
from droptune.watch import Clockwork
from tests.small import Notes, fresh, rows, runs, study, trials

TARGET = """
import os, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
import droptune as dt

HANGS_AT = int(os.environ["HANGS_AT"])
called = []
torch.optim.SGD([torch.zeros(1)], 0.1)  # the first one takes seconds to import what it needs

class Rows(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if len(called) == HANGS_AT and index == 5:
            time.sleep(10**6)
        return torch.randn(3), index % 2

def train(model, *, seed, device):
    called.append(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(2):
        for x, y in DataLoader(Rows(), 4):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield {"val_loss": loss.item()}

study = dt.Study(
    "mine", model=lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)),
    train=train, example=torch.zeros(1, 3), epochs=2, confirm_blocks=0, sampler="random",
    device="cpu",
)
"""


def optimize(folder: Path, hangs_at: int, *options: str) -> subprocess.CompletedProcess:
    """Run the command line until it ends."""
    (folder / "hanging.py").write_text(TARGET)
    program = "from droptune.cli import main; main()"
    command = [sys.executable, "-c", program, "optimize", "hanging.py", "--trials", "4"]
    environment = {"HANGS_AT": str(hangs_at), "PATH": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_dataset_that_hangs_ends_the_worker_and_not_the_study(tmp_path):
    """It hangs in trial 2, then again when that is trained by the next process."""
    url = f"sqlite:///{tmp_path / 'droptune.db'}"
    line = TARGET.splitlines().index("            time.sleep(10**6)") + 1
    place = f"waits in hanging.py line {line} (__getitem__)"

    first = optimize(tmp_path, 3, "--hang-time", "1")
    assert first.returncode == EXIT_CODE, first.stderr
    assert place in first.stderr
    assert "(the longest took " in first.stderr
    assert [state for *_, state, _ in runs(url, "search")] == ["complete", "complete", "stale"]
    ended = "SELECT count(*) FROM droptune_worker WHERE ended_at IS NULL"
    assert rows(url, ended) == [(0,)], "its lease is given up at once"

    second = optimize(tmp_path, 1, "--hang-time", "1")
    assert second.returncode == EXIT_CODE, second.stderr
    assert "(none has ended before)" in second.stderr
    third = optimize(tmp_path, 0)
    assert third.returncode == 0, third.stderr
    assert [state for _, state in trials(url)] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    shown = Queries(url).trial("mine", 2)
    assert shown["state"] == "failed"
    assert shown["message"].startswith("hung twice: no epoch has ended for 6")
    assert place in shown["message"]


def test_a_library_call_says_where_it_hangs_and_goes_on(tmp_path, monkeypatch):
    """Nobody wants the process of a notebook to end; here the training comes to itself again."""
    whole, url, notes = SerialTrainer.epoch, fresh(tmp_path), Notes()

    def epoch(self):
        give_up = time.monotonic() + 60
        while self.clock == 2 and not notes.messages and time.monotonic() < give_up:
            time.sleep(0.1)
        return whole(self)

    monkeypatch.setattr(SerialTrainer, "epoch", epoch)
    study(url, trials=1, confirm_blocks=0, hang_time=1).optimize(progress=notes)
    (told,) = notes.messages
    assert told.startswith("no epoch has ended for ")
    assert "test_hang.py line" in told
    assert told.endswith("(epoch)")
    assert trials(url)[0] == (0, "COMPLETE")


def watching(clockwork: Clockwork, seconds: float) -> list[str]:
    told = []
    with Watchdog(clockwork, seconds, told.append), clockwork("training", "epoch"):
        time.sleep(0.8)
    return told


def test_what_is_slow_as_a_rule_does_not_hang():
    usual = Clockwork()
    usual.longest["epoch"] = 0.01
    assert len(watching(usual, 0.2)) == 1, "once, and not again and again"
    long = Clockwork()
    long.longest.update(epoch=0.01, other=0.2)
    assert watching(long, 0.2) == [], "not even ten times as long as the longest part"
    assert watching(Clockwork(), 0.2) == [], "the first epoch has six times as long"
    assert watching(usual, 0) == [], "never"


def test_what_computes_does_not_hang():
    clockwork, told = Clockwork(longest={"epoch": 0.01}), []
    with Watchdog(clockwork, 0.5, told.append), clockwork("training", "epoch"):
        until = time.process_time() + 1.5
        while time.process_time() < until:
            pass
    assert told == []


def test_what_computes_and_then_waits_hangs():
    clockwork, told = Clockwork(longest={"epoch": 0.01}), []
    with Watchdog(clockwork, 0.5, told.append), clockwork("training", "epoch"):
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass
        give_up = time.monotonic() + 60
        while not told and time.monotonic() < give_up:
            time.sleep(0.1)
    assert len(told) == 1


def test_waiting_for_others_is_not_hanging():
    clockwork, told = Clockwork(longest={"epoch": 0.01}), []
    with Watchdog(clockwork, 0.2, told.append):
        time.sleep(0.6)
        with clockwork("store"):
            time.sleep(0.6)
        for _ in range(8):
            with clockwork("training"):
                time.sleep(0.1)
    assert told == []


def test_the_time_in_which_a_process_was_stopped_does_not_count(monkeypatch):
    clock = [0.0]

    def hours_later() -> float:
        clock[0] += 3600.0
        return clock[0]

    monkeypatch.setattr("droptune.hang.time.monotonic", hours_later)
    assert watching(Clockwork(longest={"epoch": 0.01}), 3) == []


def test_the_place_of_a_thread_is_in_the_users_own_code():
    began, over = threading.Event(), threading.Event()

    def mine():
        began.set()
        over.wait()

    thread = threading.Thread(target=mine)
    thread.start()
    began.wait()
    place = place_of(thread.ident)
    over.set()
    thread.join()
    line = mine.__code__.co_firstlineno + 2
    assert place.endswith(f"test_hang.py line {line} (mine)")
    assert place_of(thread.ident) is None


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_hung_twice_has_failed_in_confirmation_too(tmp_path, request, kind):
    server = kind == "postgresql"
    url = request.getfixturevalue("postgres").fresh() if server else fresh(tmp_path)
    about = {"seed": 1, "clock": 0, "slot": 0, "trainer": "serial", "device": "cpu"}
    with Store(url) as store:
        one = store.create_study("mine", {}, {}, [])
        claims, workers = Claims(store, one), Workers(store)

        def begin(arm: str, block: int) -> int:
            plan = Plan.none().to_json()
            more = {"phase": "confirm", "plan": plan, "arm": arm, "block": block}
            return store.start_run(one, **about, **more)

        for arms in (["a", "b"], ["a", "c"], ["b"]):
            store.worker = workers.register("cpu", 1)
            for arm in arms:
                begin(arm, 1)
            begin("a", 2 + len(arms) + (arms[1:] == ["c"]))  # of another block
            assert claims.give_up(store.worker, "it waits") == len(arms) + 1
        ended = store.rows(text("SELECT arm, block, state, message FROM droptune_run ORDER BY id"))
    states = [(run["arm"], run["state"], run["message"]) for run in ended if run["block"] == 1]
    assert states == [
        ("a", "stale", "hung: it waits"),
        ("b", "stale", "hung: it waits"),
        ("a", "failed", "hung twice: it waits"),
        ("c", "stale", "hung: it waits"),
        ("b", "failed", "hung twice: it waits"),
    ]
    assert {run["state"] for run in ended if run["block"] != 1} == {"stale"}
