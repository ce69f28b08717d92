"""A task so small that a whole study takes a tenth of a second; shared by several tests."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from droptune.data import Data
from droptune.progress import SilentProgress, Status
from droptune.store import Store
from droptune.study import Study

TABLES = ("study", "site", "run", "curve", "confirmation", "verdict")


def mlp(rate: float = 0.2, width: int = 8) -> nn.Module:
    """Return a network for 30 inputs and 2 classes."""
    return nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Dropout(rate), nn.Linear(width, 2))


def plain() -> nn.Module:
    """Return a network without dropout."""
    return nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2))


def cancer(garbage: bool = False) -> Data:
    """Return 240 rows of breast cancer, scaled; with garbage, the labels of test are noise."""
    x, y = load_breast_cancer(return_X_y=True)
    data = Data.split((x[:240] - x.mean(0)) / x.std(0), y[:240])
    if garbage:
        noise = torch.randint(2, (len(data.test),), generator=torch.Generator().manual_seed(5))
        data.test.y.copy_(noise)
    return data


@cache
def _empty_database() -> bytes:
    """Return a database with all tables, Optuna's too; making one takes longer than a study."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "d.db"
        Store(f"sqlite:///{path}").close()
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        storage.remove_session()
        storage.engine.dispose()
        return path.read_bytes()


def fresh(folder: Path) -> str:
    """Return the URL of a new database without a study."""
    path = folder / "d.db"
    path.write_bytes(_empty_database())
    return f"sqlite:///{path}"


def study(url: str, **changes: Any) -> Study:
    """Return a study that trains in no time."""
    settings = {
        "model": mlp,
        "data": cancer(),
        "epochs": 3,
        "lr": 0.01,
        "trials": 6,
        "confirm_blocks": 2,
        "trainer": "serial",
        "sampler": "random",
        "store": url,
    }
    return Study(changes.pop("name", "mine"), **settings | changes)


class Notes(SilentProgress):
    """A progress that remembers, and calls `hook` at each update.

    Args:
        hook: is given the status.
    """

    def __init__(self, hook: Callable[[Status], object] = lambda status: None) -> None:
        self.statuses: list[Status] = []
        self.messages: list[str] = []
        self.fits: list[str] = []  # what is said of the control when it ends
        self._hook = hook

    def update(self, status: Status) -> None:
        self.statuses.append(status)
        self._hook(status)

    def message(self, text: str) -> None:
        (self.fits if text.startswith("without dropout: ") else self.messages).append(text)


def rows(url: str, sql: str, *values: Any) -> list[tuple]:
    """Return what a SELECT finds in a SQLite file, with nothing of droptune."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return connection.execute(sql, values).fetchall()


def trials(url: str) -> list[tuple[int, str]]:
    """Return number and state of all trials, as Optuna stored them."""
    return rows(url, "SELECT number, state FROM trials ORDER BY number")


def runs(url: str, phase: str) -> list[tuple]:
    """Return trial, arm, block, state and plan of the runs of a phase, in their order."""
    sql = "SELECT trial_number, arm, block, state, plan FROM droptune_run WHERE phase = ?"
    return rows(url, sql + " ORDER BY id", phase)


def sizes(url: str) -> dict[str, int]:
    """Return the number of rows of droptune's tables and of Optuna's trials."""
    tables = [*(f"droptune_{table}" for table in TABLES), "trials", "studies"]
    known = {name for (name,) in rows(url, "SELECT name FROM sqlite_master")}
    return {
        table: rows(url, f"SELECT count(*) FROM {table}")[0][0] if table in known else 0
        for table in tables
    }
