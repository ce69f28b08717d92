"""Made tests/assets/schema_0001.db: a small database as droptune with schema 0001 wrote it.

Run once, with the droptune of that schema, and commit the result; it is never made again:

    python tests/assets/make_schema_0001.py

One study of four trials (no dropout, two sampled, one failed), two confirmation blocks
and a verdict, with Optuna's tables of optuna 5.0.0 beside it.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna

from droptune.store import Store

FILE = Path(__file__).with_name("schema_0001.db")
SITE = {"role": "hidden", "layout": "features", "reach": "output", "shape": [8]}
PLACE = {"clock": 0, "slot": 0, "trainer": "serial", "device": "cpu"}


def plan(rate: float) -> dict:
    entry = {"kind": "standard", "rate": rate, "schedule": "constant"}
    return {"version": 1, "sites": {"0": entry} if rate else {}}


def train(store: Store, study_id: int, rate: float, value: float | None, **run: object) -> None:
    run_id = store.start_run(study_id, plan=plan(rate), **PLACE, **run)
    scores = {"val_loss": value, "val_accuracy": 0.9}
    store.record([(run_id, epoch, 1 / epoch, scores) for epoch in (1, 2)])
    state = "failed" if value is None else "complete"
    store.end_run(run_id, state, seconds=0.5, epochs=2, test={"test_loss": value})


def search(store: Store, study_id: int) -> None:
    storage = optuna.storages.RDBStorage(store.url)
    study = optuna.create_study(study_name="mine", storage=storage)
    for number, (rate, value) in enumerate([(0.0, 0.5), (0.25, 0.25), (0.5, 0.375), (0.75, None)]):
        study.enqueue_trial({"rate": rate})
        trial = study.ask()
        trial.suggest_float("rate", 0.0, 0.9)
        run = {"phase": "search", "trial_number": number, "block": 0, "seed": 1}
        train(store, study_id, rate, value, arm="trial" if number else "no dropout", **run)
        study.tell(trial, value, state=None if value else optuna.trial.TrialState.FAIL)
    storage.engine.dispose()


def confirm(store: Store, study_id: int) -> None:
    for block in (1, 2):
        run = {"phase": "confirm", "block": block, "seed": 1 + block}
        train(store, study_id, 0.0, 0.5 + block / 8, arm="no dropout", **run)
        train(store, study_id, 0.25, 0.25 + block / 8, arm="finalist 1", **run)
    number = {"difference": -0.25, "low": -0.3, "high": -0.2, "p_value": 0.01, "level": 0.95}
    words = {"verdict": "helps", "text": "helps: -0.25", "objective": "val_loss"}
    verdict = {**number, **words, "direction": "minimize", "plan": plan(0.25), "blocks": 2}
    store.save_verdict(study_id, {**verdict, "best": {"mean": 0.4375}, "control": {"mean": 0.6875}})


def main() -> None:
    FILE.unlink(missing_ok=True)
    with Store(f"sqlite:///{FILE}") as store:
        definition = {"objective": "val_loss", "direction": "minimize"}
        study_id = store.create_study(
            "mine", definition, {"torch": "2.13"}, [{**SITE, "name": "0"}]
        )
        search(store, study_id)
        confirm(store, study_id)
    with closing(sqlite3.connect(FILE)) as connection:  # one file, without a log beside it
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")


if __name__ == "__main__":
    main()
