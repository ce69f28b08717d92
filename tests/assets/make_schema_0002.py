"""Made tests/assets/schema_0002.db: a small database as droptune with schema 0002 wrote it.

Run once, with the droptune of that schema, and commit the result; it is never made again:

    python tests/assets/make_schema_0002.py

The study of make_schema_0001.py, with the design of its confirmation.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from make_schema_0001 import SITE, confirm, plan, search

from droptune.design import Arm, Design
from droptune.plan import Plan
from droptune.store import Store
from droptune.verdict import Rules

FILE = Path(__file__).with_name("schema_0002.db")


def design() -> Design:
    arms = {
        "no dropout": Arm(Plan.none(), 0, 0.5),
        "finalist 1": Arm(Plan.from_json(plan(0.25)), 1, 0.25),
    }
    return Design(Rules("val_loss", "minimize", planned=2), arms)


def main() -> None:
    FILE.unlink(missing_ok=True)
    with Store(f"sqlite:///{FILE}") as store:
        definition = {"objective": "val_loss", "direction": "minimize"}
        study_id = store.create_study(
            "mine", definition, {"torch": "2.13"}, [{**SITE, "name": "0"}]
        )
        search(store, study_id)
        store.save_design(study_id, design().to_json())
        confirm(store, study_id)
    with closing(sqlite3.connect(FILE)) as connection:  # one file, without a log beside it
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")


if __name__ == "__main__":
    main()
