"""Draw docs/best.svg from the database that `make demo` leaves: `python docs/draw.py`."""

import io
from pathlib import Path

from rich.console import Console

from droptune.report import tables
from droptune.store import Queries


def main() -> None:
    console = Console(record=True, width=94, file=io.StringIO())
    with Queries("sqlite:///droptune.db") as queries:
        console.print("$ droptune best --study digits")
        console.print(tables.best(queries.best("digits"), queries.verdict("digits")["text"]))
    console.save_svg(str(Path(__file__).parent / "best.svg"), title="droptune")


if __name__ == "__main__":
    main()
