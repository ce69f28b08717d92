"""What is stored of verdicts: the latest of an objective counts, and one so far gives way."""

import pytest
from sqlalchemy import text

from droptune.store import SO_FAR, Verdicts


def verdict(examples, blocks: int, so_far: bool, objective: str = "val_loss") -> dict:
    """Return a verdict on so many blocks."""
    details = {"judged": list(range(3, 3 + blocks))} | ({SO_FAR: True} if so_far else {})
    return {
        "verdict": "undecided" if so_far else "helps",
        "text": "so it is",
        "plan": examples.plan(0.1),
        "objective": objective,
        "direction": "minimize",
        "blocks": blocks,
        "details": details,
    }


def blocks(store) -> list[tuple[str, int]]:
    """Return verdict and blocks of what is stored."""
    sql = "SELECT verdict, blocks FROM droptune_verdict ORDER BY id"
    return [tuple(row.values()) for row in store.rows(text(sql))]


def test_one_so_far_gives_way_to_the_next(store, study_id, examples):
    verdicts = Verdicts(store, study_id)
    for count in (1, 2, 2):
        verdicts.save(verdict(examples, count, so_far=True))
    verdicts.save(verdict(examples, 5, so_far=True, objective="val_f1"))
    assert blocks(store) == [("undecided", 2), ("undecided", 5)]
    verdicts.save(verdict(examples, 3, so_far=False))
    assert blocks(store) == [("helps", 3), ("undecided", 5)]


def test_the_same_is_stored_once_and_another_one_besides(store, study_id, examples):
    verdicts = Verdicts(store, study_id)
    for count in (3, 3, 4):
        verdicts.save(verdict(examples, count, so_far=False))
    assert blocks(store) == [("helps", 3), ("helps", 4)]
    verdicts.save(verdict(examples, 5, so_far=True))
    assert blocks(store) == [("helps", 3), ("helps", 4), ("undecided", 5)], "of more blocks"


@pytest.mark.parametrize("so_far", [True, False])
def test_one_so_far_that_comes_late_is_dropped(store, study_id, examples, so_far):
    """Of a worker whose lock was lost while it wrote."""
    verdicts = Verdicts(store, study_id)
    verdicts.save(verdict(examples, 4, so_far))
    verdicts.save(verdict(examples, 2, so_far=True))
    assert [count for _, count in blocks(store)] == [4]
