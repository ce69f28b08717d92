"""Made tests/assets/schema_0003.db: a small database as droptune with schema 0003 wrote it.

Run once, with the droptune of that schema, and commit the result; it is never made again:

    python tests/assets/make_schema_0003.py

The study of make_schema_0002.py, its runs by a worker that has ended; a trial that another
worker died of is stale and has a checkpoint; a study waits in line.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from make_schema_0001 import PLACE, SITE, confirm, plan, search
from make_schema_0002 import design
from sqlalchemy import insert

from droptune.store import Claims, Store, Workers
from droptune.store.schema import SubmissionRow

FILE = Path(__file__).with_name("schema_0003.db")
HERE = "UPDATE droptune_worker SET host = 'here', place = 'this boot', pid = 7"


def make(store: Store) -> None:
    definition = {"objective": "val_loss", "direction": "minimize"}
    study_id = store.create_study("mine", definition, {"torch": "2.13"}, [{**SITE, "name": "0"}])
    workers = Workers(store)
    store.worker = workers.register("cpu", 1)
    run = {"phase": "search", "arm": "trial", "trial_number": 3, "block": 0, "seed": 1}
    died = store.start_run(study_id, plan=plan(0.75), **PLACE, **run)
    Claims(store, study_id).keep([died], f"{study_id}-{store.worker}-00000000")
    workers.leave(store.worker)
    workers.reap(study_id)
    store.worker = workers.register("cpu", 1)
    workers.beat(store.worker, study_id, {"phase": "search", "done": 1})
    search(store, study_id)
    store.save_design(study_id, design().to_json())
    confirm(store, study_id)
    workers.leave(store.worker)
    waits = {"name": "next", "target": "my_project.studies", "options": {}, "state": "queued"}
    store.execute(insert(SubmissionRow), waits)


def main() -> None:
    FILE.unlink(missing_ok=True)
    with Store(f"sqlite:///{FILE}") as store:
        make(store)
    with closing(sqlite3.connect(FILE)) as connection:  # one file, without a log beside it
        connection.execute(HERE)
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")


if __name__ == "__main__":
    main()
