"""What a command loads before it answers: a person waits for it."""

import subprocess
import sys

import pytest

from tests.small import fresh, study

# Each takes longer to load than an answer may; with `email` importlib.metadata reads versions.
HEAVY = ("torch", "optuna", "sqlalchemy", "alembic", "numpy", "scipy", "sklearn", "pandas")
SLOW = (*HEAVY, "email", "asyncio", "multiprocessing", "unittest", "xml")
TABLES = "rich"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A store with a study that has ended."""
    url = fresh(tmp_path_factory.mktemp("start"))
    study(url, trials=3, confirm_blocks=0).optimize()
    return url


def loaded(*arguments):
    """Run a command; return which packages it has loaded."""
    script = (
        "import sys; from droptune.cli import main; "
        f"main({list(arguments)!r}, standalone_mode=False); "
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.partition("LOADED")[2].split())


def test_help_loads_nothing_that_takes_long():
    assert not loaded("--help") & {*SLOW, TABLES, "sqlite3", "json"}


@pytest.mark.parametrize(
    "command", [("best", "--study", "mine"), ("studies",), ("trials", "--study", "mine")]
)
def test_what_answers_from_a_file_loads_only_what_it_shows_with(url, command):
    found = loaded(*command, "--store", url)
    assert not found & {*SLOW}
    assert {TABLES, "sqlite3"} <= found


def test_the_version_is_looked_up_when_it_is_asked_for():
    assert "email" in loaded("--version")
