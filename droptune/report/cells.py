"""Cells and empty tables for a terminal. No text of a store reaches rich as markup."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from droptune.report.text import number, visible


def table_of(*headers: str) -> Table:
    """Return an empty table; a header that starts with ">" stands over numbers."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
    for header in headers:
        name = header.removeprefix(">")
        right = header.startswith(">")
        table.add_column(
            text_cell(name),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    return table


def text_cell(value: object, style: str = "") -> Text:
    """Return text of a store as a cell; what cannot be printed is escaped."""
    return Text(visible(value), style=style)


def number_cell(value: Any) -> Text:
    """Return a measured number as a cell."""
    return Text(number(value))
