"""Migrations on a PostgreSQL server: one truth with the models, and up from each revision."""

import pytest
from sqlalchemy import inspect, text

from droptune.errors import SchemaError
from droptune.store import Queries, Store, migrate
from droptune.store.engine import open_engine


@pytest.fixture
def url(postgres):
    return postgres.database()


@pytest.fixture
def engine(url):
    engine = open_engine(url, create=True)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("revision", migrate.revisions())
def test_the_schema_is_reached_from_each_revision_and_equals_the_models(engine, url, revision):
    migrate.upgrade(engine, revision)
    assert migrate.current(engine) == revision
    done = migrate.upgrade(engine)
    assert (done.before, done.after, done.backup) == (revision, migrate.head(), None)
    report = migrate.check(url)
    assert report.problems == ()
    assert str(report).startswith(f"{url}: schema {migrate.head()}")


def test_the_comparison_would_find_a_difference(engine, url):
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE droptune_run ADD COLUMN surprise INTEGER"))
        connection.execute(text("ALTER TABLE droptune_run ALTER COLUMN seed TYPE INTEGER"))
        connection.execute(text("DROP INDEX ix_droptune_verdict_study_id"))
    problems = migrate.check(url).problems
    assert len(problems) == 3
    assert any("surprise" in line for line in problems)


def test_down_and_up_again(engine):
    def tables():
        names = inspect(engine).get_table_names()
        return {name for name in names if name.startswith("droptune_")}

    migrate.upgrade(engine)
    before = tables()
    migrate.downgrade(engine, "base")
    assert tables() == {"droptune_version"}
    migrate.upgrade(engine)
    assert tables() == before


def test_a_newer_schema_and_none_are_told_in_words(engine, url):
    with pytest.raises(SchemaError, match="has no droptune study"):
        Queries(url)
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE droptune_version SET version_num = '9999'"))
    for opening in (Store, Queries):
        with pytest.raises(SchemaError, match="schema 9999 of a newer droptune"):
            opening(url)
    assert not migrate.check(url).ok
