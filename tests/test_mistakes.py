"""Promise 7: every user error is one line, and nothing that is stored is lost."""

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy
import torch
from torch import nn

from droptune.errors import DroptuneError, StoreError
from tests.small import Notes, fresh, rows, runs, sizes, study, trials


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def one_line(call, *args, error=DroptuneError, **options) -> str:
    """Return what the error says; it must be one line."""
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Mistakes


def broken():
    raise ValueError("first line\nsecond line")


def no_numbers(model, *, seed, device):
    yield "no dict"


def no_site():
    return nn.EmbeddingBag(9, 2)


def deep():
    layers = [layer for _ in range(8) for layer in (nn.Linear(30, 30), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(30, 2))


def scripted():
    return torch.jit.script(deep())


def compiled():
    return torch.compile(deep(), backend="eager")


X = torch.zeros(4, 30)
MISTAKES = {
    "a scripted model": {"model": scripted},
    "a compiled model": {"model": compiled},
    "a model that fails": {"model": broken},
    "a model that is none": {"model": lambda: 3},
    "a model that needs arguments": {"model": nn.Linear},
    "a model for other inputs": {"model": lambda: nn.Linear(7, 2)},
    "too few outputs": {"model": lambda: nn.Linear(30, 1)},
    "a model without parameters": {"model": nn.Flatten},
    "no site": {"model": no_site, "data": None, "train": no_numbers, "example": X.long()},
    "an unknown kind": {"kinds": ["zonout"]},
    "a kind that is no list": {"kinds": "standard"},
    "an unknown loss": {"loss": "hinge"},
    "a loss that fails": {"loss": lambda output, target: output.nothing},
    "a loss of other targets": {"loss": "mse"},
    "an unknown optimizer": {"optimizer": "lion"},
    "a negative learning rate": {"lr": -1.0},
    "an objective with a typo": {"objective": "val_acuracy"},
    "an objective of the test split": {"objective": "test_loss"},
    "no data": {"data": None},
    "a device that is not there": {"device": "cuda:9"},
    "a pruner without rungs": {"pruner": "median", "epochs": 1},
    "a grid too large": {"sampler": "grid", "encoding": "site", "model": deep},
    "another definition": {"name": "mine", "epochs": 9},
    "another direction": {"name": "mine", "direction": "maximize"},
}


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """The URL of a database with a study. To be read only."""
    url = fresh(tmp_path_factory.mktemp("used"))
    study(url, trials=2, confirm_blocks=1, finalists=1).optimize(progress=Notes())
    return url


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_stored_changes(used, mistake):
    before = sizes(used)
    said = one_line(lambda: study(used, **{"name": "new"} | mistake).optimize(progress=Notes()))
    assert len(said) > 20
    assert sizes(used) == before


def test_a_sampler_whose_package_is_missing_stores_nothing(used, monkeypatch):
    before = sizes(used)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    one = study(used, name="new", sampler="cmaes")
    assert "pip install cmaes" in one_line(one.optimize, progress=Notes())
    assert sizes(used) == before


# Databases that fail in the middle of a study


@pytest.fixture
def impatient(monkeypatch):
    """Give up at once, where droptune and Optuna wait for better times."""
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda seconds: None)
    monkeypatch.setattr("droptune.store.engine.BUSY_SECONDS", 0.05)
    monkeypatch.setattr("droptune.store.reader.BUSY_SECONDS", 0.05)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path):
    path = tmp_path / "d.db"
    path.write_text("dear diary\n" * 999)
    url = f"sqlite:///{path}"
    assert "is not a SQLite database" in one_line(study(url).optimize, error=StoreError)
    assert path.read_text() == "dear diary\n" * 999


def test_a_read_only_store_says_so(url):
    study(url, trials=2, confirm_blocks=0).optimize(progress=Notes())
    path = url.removeprefix("sqlite:///")
    before = sizes(url)
    frozen = study(f"sqlite:///file:{path}?mode=ro&uri=true", trials=4)
    assert "read-only" in one_line(frozen.optimize, progress=Notes(), error=StoreError)
    assert sizes(url) == before


@pytest.mark.parametrize("updates", [1, 3, 7, 19])
def test_a_lock_in_the_middle_loses_nothing_and_the_study_goes_on(url, impatient, updates):
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        notes = Notes(
            lambda status: len(notes.statuses) == updates and other.execute("BEGIN EXCLUSIVE")
        )
        said = one_line(study(url).optimize, progress=notes, error=StoreError)
        assert "locked" in said
        other.execute("ROLLBACK")
    stored = trials(url)
    ended = [run for run in runs(url, "search") if run[3] == "complete"]
    result = study(url).optimize(progress=Notes())
    assert [pair for pair in stored if pair[1] == "COMPLETE"] == trials(url)[: updates // 3][:6]
    assert trials(url) == [(number, "COMPLETE") for number in range(6)]
    assert [run for run in runs(url, "search") if run[3] == "complete"][: len(ended)] == ended
    assert result.difference.n == 2


@pytest.mark.parametrize("growth", [0, 2])
def test_a_full_disk_in_the_middle_loses_nothing_and_the_study_goes_on(url, impatient, growth):
    pages = rows(url, "PRAGMA page_count")[0][0] + growth

    def small_disk(connection, _record):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    one = study(url, trials=24, epochs=6, confirm_blocks=0)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", small_disk)
    try:
        said = one_line(one.optimize, progress=Notes(), error=StoreError)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", small_disk)
    assert "full" in said
    ended = [run for run in runs(url, "search") if run[3] == "complete"]
    assert len(ended) < 24
    assert ended or growth == 0
    one.optimize(progress=Notes())
    assert trials(url) == [(number, "COMPLETE") for number in range(24)]
    whole = [run for run in runs(url, "search") if run[3] == "complete"]
    assert whole[: len(ended)] == ended
    assert sorted(run[0] for run in whole) == list(range(24))
