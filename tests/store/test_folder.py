"""droptune/store/folder.py: where checkpoints are kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from droptune.store.folder import default_folder

SERVER = "postgresql://ann:secret@Host/runs"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch, tmp_path):
    for name in ("DROPTUNE_CHECKPOINTS", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "url", ["sqlite:///a/runs.db", "sqlite+pysqlite:///a/runs.db", "sqlite:///a/runs.db?timeout=5"]
)
def test_checkpoints_lie_beside_the_file_of_a_database(url, tmp_path):
    assert default_folder(url) == tmp_path / "a" / "runs.db-checkpoints"


def test_those_of_a_server_lie_in_the_users_state(monkeypatch, tmp_path):
    home = tmp_path / "home/.local/state/droptune/checkpoints"
    assert default_folder(SERVER).parent == home
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    assert default_folder(SERVER).parent == home
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_folder(SERVER).parent == tmp_path / "state/droptune/checkpoints"


@pytest.mark.parametrize(
    "same",
    [
        "postgresql://host/runs",
        "postgres://bob:p%40ss@host:5432/runs",
        "postgresql+psycopg://ann@HOST/runs?sslmode=require&password=hush&user=ann",
    ],
)
def test_a_database_has_one_folder_whoever_asks_for_it(same):
    assert default_folder(same) == default_folder(SERVER)


@pytest.mark.parametrize(
    "other",
    [
        "postgresql://host/other",
        "postgresql://elsewhere/runs",
        "postgresql://host:5433/runs",
        "postgresql:///runs?host=/tmp/socket",
        "mysql://host/runs",
    ],
)
def test_another_database_has_another_folder(other):
    assert default_folder(other) != default_folder(SERVER)


def test_the_variable_wins_with_a_folder_for_each_database(monkeypatch, tmp_path):
    monkeypatch.setenv("DROPTUNE_CHECKPOINTS", "~/kept")
    kept = tmp_path / "home" / "kept"
    urls = [SERVER, "sqlite:///runs.db", "sqlite:///a/runs.db"]
    folders = {default_folder(url) for url in urls}
    assert len(folders) == 3 and {folder.parent for folder in folders} == {kept}
    absolute = default_folder(f"sqlite:///{tmp_path}/runs.db")
    assert absolute == default_folder("sqlite:///runs.db")


def test_no_folder_shows_a_user_or_a_password():
    shown = str(default_folder(SERVER))
    assert "secret" not in shown and "ann" not in shown.rsplit("/", 1)[1]


MEMORY = ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]


@pytest.mark.parametrize("url", MEMORY)
def test_a_database_in_memory_has_a_folder_that_goes_with_its_process(url, monkeypatch):
    monkeypatch.setenv("DROPTUNE_CHECKPOINTS", "kept")
    code = f"from droptune.store.folder import *; print(default_folder({url!r}))"
    code += f"; assert default_folder({url!r}).is_dir()"
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    folder = Path(run.stdout.strip())
    assert run.returncode == 0 and "droptune-checkpoints-" in folder.name, run.stderr
    assert not folder.exists()


def test_finding_the_folder_loads_neither_torch_nor_sqlalchemy():
    code = (
        "import sys; from droptune.store.folder import default_folder; default_folder('sqlite://');"
        "print({'torch', 'sqlalchemy', 'safetensors', 'optuna'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
