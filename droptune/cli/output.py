"""What commands print: JSON for programs, tables for people; and what they read."""

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from droptune.store import Queries
    from droptune.study import Study


def print_rows(rows: Any, as_json: bool, table: str, empty: str | None = None) -> None:
    """Print rows as JSON or as the table of that name; `empty` is said when there is none."""
    if as_json:
        return print_json(rows)
    if not rows:
        return click.echo(empty, err=True)
    from droptune.report import tables

    tables.show(getattr(tables, table)(rows))


def print_json(value: Any) -> None:
    from droptune.report.text import json_text

    click.echo(json_text(value))


def stdout_for_data(as_json: bool) -> contextlib.AbstractContextManager:
    """Send what the user's own code prints to stderr, where stdout is for JSON alone."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def open_queries(store: str) -> "Queries":
    from droptune.store import Queries

    return Queries(store)


def load_study(target: str, options: Mapping[str, Any]) -> "Study":
    """Return the study of a target with the options that were given."""
    from droptune.target import load_target

    return load_target(target).using(**settings(options))


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given as settings of a study."""
    changes = {key: value for key, value in options.items() if value is not None}
    with contextlib.suppress(KeyError, ValueError):
        changes["slots"] = int(changes["slots"])
    return changes
