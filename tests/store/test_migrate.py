"""Migrations: one truth with the models, one head, up and down, and old databases."""

import ast
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from droptune.errors import SchemaError, StoreError
from droptune.store import Queries, Store, migrate
from droptune.store.engine import open_engine

ASSETS = Path(__file__).parents[1] / "assets"
LAST = migrate.head()
NOTE = '''
"""Note: a column more."""
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "9000", "LAST", None, None
def upgrade():
    with op.batch_alter_table("droptune_study") as table:
        table.add_column(sa.Column("note", sa.String()))
def downgrade():
    with op.batch_alter_table("droptune_study") as table:
        table.drop_column("note")
'''.replace("LAST", LAST)


@pytest.fixture
def engine(url):
    engine = open_engine(url, create=True)
    yield engine
    engine.dispose()


@pytest.fixture
def later(tmp_path, monkeypatch):
    """Make this a later droptune, with one script more; returns the folder of scripts."""
    folder = tmp_path / "later 100%"
    shutil.copytree(migrate.scripts(), folder)
    (folder / "versions" / "9000_note.py").write_text(NOTE)
    monkeypatch.setattr(migrate, "scripts", lambda: folder)
    return folder


def ours(engine) -> set[str]:
    """Return the names of droptune's tables that are there."""
    return {name for name in inspect(engine).get_table_names() if name.startswith("droptune_")}


def test_the_migrated_schema_equals_the_models(engine, url):
    migrate.upgrade(engine)
    report = migrate.check(url)
    assert report.problems == ()
    assert str(report) == f"{url}: schema {migrate.head()}, this droptune has {migrate.head()}: ok"


def test_the_comparison_would_find_a_difference(engine, url):
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE droptune_run ADD COLUMN surprise INTEGER"))
        connection.execute(text("DROP INDEX ix_droptune_verdict_study_id"))
    problems = migrate.check(url).problems
    assert len(problems) == 2
    assert any("surprise" in line for line in problems)


def test_a_check_finds_rows_that_lost_what_they_belong_to(engine, url, tmp_path):
    migrate.upgrade(engine)
    with closing(sqlite3.connect(tmp_path / "droptune.db")) as connection, connection:
        connection.execute("INSERT INTO droptune_curve VALUES (99, 1, 0.5, '{}')")
    assert any("droptune_run" in line for line in migrate.check(url).problems)


def test_there_is_one_head_and_the_names_of_the_scripts_say_it():
    config = Config()
    config.set_main_option("script_location", str(migrate.scripts()))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [migrate.head()]
    assert sorted(script.revision for script in scripts.walk_revisions()) == migrate.revisions()


def imports(source: str) -> set[str]:
    """Return the top-level packages that a script imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_no_script_imports_droptune():
    assert imports("def upgrade():\n    from droptune.kinds import x") == {"droptune"}
    for script in migrate.scripts().glob("versions/*.py"):
        assert imports(script.read_text()) == {"alembic", "sqlalchemy"}


def test_the_folder_of_scripts_does_not_hide_the_library():
    assert not (migrate.scripts() / "__init__.py").exists()
    code = "import alembic.command; print(alembic.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=migrate.scripts().parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "site-packages" in done.stdout


def test_up_down_and_up_again(engine):
    assert migrate.current(engine) is None
    assert str(migrate.upgrade(engine)) == f"schema none -> {migrate.head()}"
    tables = ours(engine)
    assert len(tables) == 9
    migrate.downgrade(engine, "base")
    assert ours(engine) == {"droptune_version"}
    migrate.upgrade(engine)
    assert ours(engine) == tables
    assert migrate.current(engine) == migrate.head()


def test_each_script_can_be_taken_back(engine, url):
    migrate.upgrade(engine)
    migrate.downgrade(engine, "0001")
    assert "droptune_confirmation" not in ours(engine)
    migrate.upgrade(engine)
    assert migrate.check(url).ok


def test_an_upgrade_of_a_current_database_changes_and_copies_nothing(engine, tmp_path):
    migrate.upgrade(engine)
    done = migrate.upgrade(engine)
    assert (done.before, done.after, done.backup) == (LAST, LAST, None)
    assert "nothing to do" in str(done)
    assert not list(tmp_path.glob("*.bak*"))


def test_an_older_database_names_the_command_and_is_upgraded_with_a_copy(
    url, examples, tmp_path, request
):
    with Store(url) as store:
        examples.new_study(store)
    request.getfixturevalue("later")
    for opening in (Store, Queries):
        with pytest.raises(SchemaError) as caught:
            opening(url)
        assert f"run `droptune db upgrade --store {url}`" in str(caught.value)
    done = migrate.upgrade_url(url)
    assert done.backup == tmp_path / f"droptune.db.bak-{LAST}"
    assert str(done) == f"schema {LAST} -> 9000; the database as it was is in {done.backup}"
    with Store(url) as store:
        columns = inspect(store.engine).get_columns("droptune_study")
        assert "note" in {column["name"] for column in columns}
        assert store.study("mine")["name"] == "mine"
    with closing(sqlite3.connect(done.backup)) as copy:
        assert copy.execute("SELECT version_num FROM droptune_version").fetchone() == (LAST,)
        assert copy.execute("SELECT name FROM droptune_study").fetchone() == ("mine",)


def test_a_second_copy_does_not_replace_the_first(url, tmp_path, later):
    (tmp_path / f"droptune.db.bak-{LAST}").write_text("kept")
    engine = open_engine(url, create=True)
    migrate.upgrade(engine, LAST)
    assert migrate.upgrade(engine).backup == tmp_path / f"droptune.db.bak-{LAST}.1"
    assert (tmp_path / f"droptune.db.bak-{LAST}").read_text() == "kept"
    engine.dispose()


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(url, examples, later):
    engine = open_engine(url, create=True)
    migrate.upgrade(engine, LAST)
    script = later / "versions" / "9000_note.py"
    script.write_text(NOTE.replace("def downgrade", "    raise RuntimeError('cut')\ndef downgrade"))
    with pytest.raises(RuntimeError, match="cut"):
        migrate.upgrade(engine)
    assert migrate.current(engine) == LAST
    columns = {column["name"] for column in inspect(engine).get_columns("droptune_study")}
    assert "note" not in columns
    engine.dispose()


def test_a_newer_database_is_not_upgraded(engine):
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE droptune_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="9999 of a newer droptune"):
        migrate.upgrade(engine)


def test_an_upgrade_of_a_locked_database_says_so(url, tmp_path, monkeypatch, request):
    Store(url).close()
    request.getfixturevalue("later")
    monkeypatch.setattr("droptune.store.engine.BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / "droptune.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked by another program"):
            migrate.upgrade_url(url)
    assert migrate.upgrade_url(url).after == "9000"


def test_missing_scripts_say_to_reinstall(tmp_path, monkeypatch):
    monkeypatch.setattr(migrate, "__file__", str(tmp_path / "droptune" / "store" / "migrate.py"))
    with pytest.raises(StoreError, match="installed without its migrations; reinstall it"):
        migrate.scripts()


@pytest.mark.parametrize("asset", sorted(ASSETS.glob("schema_*.db")), ids=lambda path: path.stem)
def test_a_database_of_each_schema_is_upgraded_and_goes_on(asset, url, tmp_path, examples):
    shutil.copyfile(asset, tmp_path / "droptune.db")
    engine = open_engine(url, create=False)
    assert migrate.current(engine) == asset.stem.removeprefix("schema_")
    migrate.upgrade(engine)
    engine.dispose()
    assert migrate.check(url).ok
    with Store(url) as store, store.queries() as queries:
        assert queries.studies()[0]["trials"]["complete"] == 3
        assert queries.best("mine")["verdict"] == "helps"
        assert queries.trial("mine", 1)["curve"][1]["metrics"]["val_loss"] == 0.25
        study_id = store.study("mine")["id"]
        assert len(store.confirm_runs(study_id)) == 4
        store.start_run(study_id, plan=examples.plan(0.1), **examples.run)


def test_there_is_an_asset_of_each_schema_and_a_script_that_made_it():
    for revision in migrate.revisions():
        assert (ASSETS / f"schema_{revision}.db").is_file()
        assert (ASSETS / f"make_schema_{revision}.py").is_file()
    assert not list(ASSETS.glob("*-wal"))


def test_the_alembic_command_works_for_developers(url):
    repository = migrate.scripts().parent
    command = [sys.executable, "-m", "alembic", "-x", f"url={url}"]
    for verb in (["upgrade", "head"], ["check"]):
        subprocess.run([*command, *verb], cwd=repository, capture_output=True, check=True)
    assert migrate.check(url).ok
