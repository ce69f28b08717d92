"""The tables: prefixed, JSON only, no fact that Optuna's tables hold."""

import pytest
from sqlalchemy import JSON, LargeBinary, PickleType, Table
from sqlalchemy.orm import mapped_column

from droptune.store.schema import Base

COLUMNS = [column for table in Base.metadata.tables.values() for column in table.columns]


def holds_bytes(column) -> bool:
    """Say whether a column could hold something that is loaded by executing it."""
    return isinstance(column.type, PickleType | LargeBinary)


def test_every_table_has_the_prefix():
    assert len(Base.metadata.tables) == 8
    assert all(name.startswith("droptune_") for name in Base.metadata.tables)


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_no_column_can_hold_a_pickle(column):
    assert not holds_bytes(column)


def test_the_check_for_pickles_would_find_one():
    column = mapped_column("model", PickleType).column
    assert holds_bytes(Table("x", Base.metadata.__class__(), column).c.model)


def test_everything_with_parts_is_json():
    assert {str(column) for column in COLUMNS if isinstance(column.type, JSON)} == {
        "droptune_study.definition",
        "droptune_study.environment",
        "droptune_site.shape",
        "droptune_run.plan",
        "droptune_run.test",
        "droptune_run.checkpoint",
        "droptune_worker.doing",
        "droptune_submission.options",
        "droptune_curve.metrics",
        "droptune_confirmation.design",
        "droptune_verdict.plan",
        "droptune_verdict.best",
        "droptune_verdict.control",
        "droptune_verdict.test",
        "droptune_verdict.details",
    }
