"""Made tests/assets/half_0002.db: two studies that droptune with schema 0002 had not ended.

Run once, with the droptune of that schema, and commit the result; it is never made again:

    python tests/assets/make_half_0002.py

Their process was killed, one in the middle of the search and one in the confirmation. They are
those of tests/small.py, under other names.
"""

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.small import Notes, study  # noqa: E402

FILE = Path(__file__).with_name("half_0002.db")
KILLED = {"searching": 8, "confirming": 22}  # at which update of the progress


def die(name: str, update: int) -> None:
    notes = Notes(lambda status: len(notes.statuses) == update and os._exit(9))
    study(f"sqlite:///{FILE}", name=name).optimize(progress=notes)


def main() -> None:
    FILE.unlink(missing_ok=True)
    for name, update in KILLED.items():
        if not (pid := os.fork()):
            die(name, update)
        os.waitpid(pid, 0)
    with closing(sqlite3.connect(FILE)) as connection:  # one file, without a log beside it
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")


if __name__ == "__main__":
    main()
