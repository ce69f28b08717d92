"""The queue of studies that wait for workers; a row each, written in whole transactions.

A row's `submitted_at` is also its version: who ends a submission says which version it worked
on, so that one with a new budget, submitted meanwhile, is not ended with the old.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update

from droptune.errors import StudyError
from droptune.store.engine import storable
from droptune.store.schema import SubmissionRow, now
from droptune.store.store import Store

BUDGET = ("trials", "time", "confirm_blocks", "patience")
"""Options that may change while a study is queued: they say when it ends, not what it is."""

_TABLE = SubmissionRow.__table__
_AGAIN = ("failed", "withdrawn")  # may be submitted again, whatever was changed


def submit(store: Store, name: str, target: str, options: Mapping[str, Any]) -> str:
    """Queue a study; one that is there is queued again with what changed.

    Args:
        store: where workers look.
        name: of the study.
        target: `package.module[:name]`, or a file.
        options: settings that override the target's, as JSON values.

    Returns:
        "queued", or "updated" where the name was there.

    Raises:
        StudyError: the name is queued or done with the same budget, or with other settings.
    """
    values = {"target": storable(target), "options": dict(options), "submitted_at": now()}
    values |= {"state": "queued", "message": None}

    def work() -> str:
        row = _find(store, name)
        if row is None:
            store.execute(insert(SubmissionRow), {"name": storable(name), **values})
            return "queued"
        if row["submitted_at"] == values["submitted_at"]:  # stored by an earlier try
            return "queued"
        _check_changed(row, values)
        store.execute(update(SubmissionRow).where(_TABLE.c.id == row["id"]).values(values))
        return "updated"

    return store.write(work)


def withdraw(store: Store, name: str) -> None:
    """Take a study out of the queue; workers stop at the end of their epoch.

    Raises:
        StudyError: it is not queued.
    """

    def work() -> None:
        row = _find(store, name)
        if row is None or row["state"] not in ("queued", "withdrawn"):
            state = "is not in the queue" if row is None else f"is {row['state']}"
            raise StudyError(
                f"study {name!r} {state}, there is nothing to withdraw; `droptune status` lists "
                "the queue"
            )
        changed = {"state": "withdrawn", "submitted_at": now()}
        store.execute(update(SubmissionRow).where(_TABLE.c.id == row["id"]).values(changed))

    store.write(work)


def queued(store: Store) -> list[dict[str, Any]]:
    """Return id, name, target, options, submitted_at and message of what waits, oldest first."""
    columns = ("id", "name", "target", "options", "submitted_at", "message")
    waiting = select(*(_TABLE.c[key] for key in columns)).where(_TABLE.c.state == "queued")
    return store.rows(waiting.order_by(_TABLE.c.id))


def end(
    store: Store, submission: int, submitted_at: datetime, state: str, message: str | None = None
) -> None:
    """End a submission as `done` or `failed`, or say why it waits: `queued` with a message.

    Nothing happens to one that was withdrawn or submitted anew since.
    """
    same = (_TABLE.c.id == submission) & (_TABLE.c.submitted_at == submitted_at)
    values = {"state": state, "message": None if message is None else storable(message)}
    statement = update(SubmissionRow).where(same & (_TABLE.c.state == "queued")).values(values)
    store.write(lambda: store.execute(statement))


def _find(store: Store, name: str) -> dict[str, Any] | None:
    return next(iter(store.rows(select(_TABLE).where(_TABLE.c.name == storable(name)))), None)


def _check_changed(row: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check that a submission of a name that is there is about the same study, with news."""
    name, was, given = row["name"], row["options"], values["options"]
    if row["state"] in _AGAIN:
        return
    fixed = [{k: v for k, v in each.items() if k not in BUDGET} for each in (was, given)]
    if row["target"] != values["target"] or fixed[0] != fixed[1]:
        raise StudyError(
            f"study {name!r} is {row['state']} already, as {row['target']!r} with other options; "
            f"take a new name (--study NAME), or `droptune withdraw --study {name}` it first"
        )
    if was == given:
        raise StudyError(
            f"study {name!r} is {row['state']} already with this budget; change --trials, --time "
            "or --confirm-blocks, or take a new name (--study NAME)"
        )
