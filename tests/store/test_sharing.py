"""One database with Optuna's tables and ours, whoever comes first."""

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy import inspect

from droptune.store import Store, migrate


def use_optuna(url: str) -> None:
    """Let Optuna make its tables, if need be, and a study with one trial."""
    storage = RDBStorage(url)
    study = optuna.create_study(study_name="mine", storage=storage, load_if_exists=True)
    study.tell(study.ask(), 0.5)
    storage.engine.dispose()


def use_droptune(url: str, examples) -> None:
    """Let droptune make its tables, if need be, and a study."""
    with Store(url) as store:
        if store.study("mine") is None:
            examples.new_study(store)


@pytest.mark.parametrize("optuna_first", [True, False])
def test_both_live_in_one_database_in_either_order(url, examples, optuna_first):
    makers = [lambda: use_optuna(url), lambda: use_droptune(url, examples)]
    for make in makers if optuna_first else reversed(makers):
        make()
    for make in makers:
        make()
    assert migrate.check(url).ok
    with Store(url) as store, store.queries() as queries:
        assert queries.studies()[0]["trials"]["complete"] == (2)
        tables = set(inspect(store.engine).get_table_names())
    assert {"alembic_version", "version_info", "trials"} <= tables
    assert {"droptune_version", "droptune_study"} <= tables


def test_taking_our_tables_away_leaves_optunas(url, examples):
    use_droptune(url, examples)
    use_optuna(url)
    with Store(url) as store:
        migrate.downgrade(store.engine, "base")
    storage = RDBStorage(url)
    assert len(optuna.load_study(study_name="mine", storage=storage).trials) == 1
    storage.engine.dispose()


def test_optunas_own_upgrade_leaves_our_tables(url, examples):
    use_droptune(url, examples)
    use_optuna(url)
    storage = RDBStorage(url)
    storage.upgrade()
    storage.engine.dispose()
    assert migrate.check(url).ok


def test_optuna_on_a_prepared_engine_writes_beside_the_store(url, examples):
    from droptune.store import prepare_engine

    use_droptune(url, examples)
    storage = RDBStorage(url)
    prepare_engine(storage.engine).dispose()
    study = optuna.create_study(study_name="mine", storage=storage)
    with Store(url) as store:
        for number in range(5):
            trial = study.ask()
            run = {**examples.run, "trial_number": number}
            store.start_run(1, plan=examples.plan(0.1), **run)
            study.tell(trial, number)
        assert [row["value"] for row in store.queries().trials("mine")] == [0, 1, 2, 3, 4]
    storage.engine.dispose()
