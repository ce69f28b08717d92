"""Rows as every driver should give them: JSON decoded, times in ISO 8601 in UTC."""

import json
from datetime import datetime
from typing import Any

from droptune.errors import StoreError

JSON_COLUMNS = frozenset(
    "definition environment plan metrics test best control details shape design".split()
)


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with their JSON columns and times decoded, in place."""
    for row in rows:
        for key in row.keys() & JSON_COLUMNS:
            if isinstance(row[key], str):
                row[key] = decoded(key, row[key])
        if row.get("created_at") is not None:
            time = datetime.fromisoformat(str(row["created_at"]))
            row["created_at"] = time.isoformat(timespec="seconds") + "Z"
    return rows


def decoded(column: str, text: str) -> Any:
    """Return the JSON value of a column.

    Raises:
        StoreError: it is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise StoreError(
            f"column {column!r} of the database holds {text[:40]!r}, which is not JSON; "
            "it was changed by hand or is damaged, restore a copy"
        ) from None
