"""`droptune submit`, `withdraw`, `worker` and `status`: studies that wait for workers."""

import os
import shlex
from typing import Any

import click

from droptune.cli.group import STORE, json_option, main, store_option, study_option
from droptune.cli.options import devices_option, own_store_option, study_options, workers_option
from droptune.cli.output import load_study, print_json, settings


@main.command(short_help="Queue a study for workers.")
@click.argument("target")
@study_options
@own_store_option
def submit(target: str, **options: Any) -> None:
    """\b
        droptune submit my_project.tuning --store postgresql://me@host/droptune --trials 200

    Queue a study in a database, where `droptune worker` finds it, on any machine.

    TARGET and options are as in `droptune optimize`; the study is loaded and checked here. Workers
    import package.module[:name]; a file only if they were started with --allow-files. Submit it
    again with another budget (--trials, --time, --confirm-blocks, --patience) to go on.
    """
    from droptune.store import Store, submissions
    from droptune.workers.allowed import check_options

    given = settings({**options, "store": None, "name": None})
    check_options(given)
    study = load_study(target, options)
    study.definition()  # builds the model and looks for sites: mistakes come out here
    with Store(study.url) as store:
        done = submissions.submit(store, study.name, target, given)
    click.echo(_next(target, study.name, study.url, done))


def _next(target: str, name: str, url: str, done: str) -> str:
    """Return what was queued, and what to type next."""
    from droptune.report.text import visible
    from droptune.store import hide
    from droptune.workers.allowed import module_of

    where = ""
    if url != (os.environ.get("DROPTUNE_STORE") or STORE):
        where = f" --store {shlex.quote(hide(url))}"
    module = module_of(target)
    allow = "--allow-files" if module is None else f"--allow {module.partition('.')[0]}"
    lines = [f"study {name!r} is {done}", "next:"]
    lines += [f"  droptune worker{where} {allow}", f"  droptune status{where}"]
    return "\n".join(map(visible, lines))


@main.command(short_help="Take a study out of the queue.")
@study_option
@store_option
def withdraw(name: str, store: str) -> None:
    """\b
        droptune withdraw --study mine

    Take a study out of the queue. Workers stop at the end of their epoch; what is stored stays,
    and submitting it again goes on from there.
    """
    from droptune.store import Store, submissions

    with Store(store, create=False) as opened:
        submissions.withdraw(opened, name)
    click.echo("withdrawn", err=True)


@main.command(short_help="Work on queued studies until told to stop.")
@store_option
@devices_option
@workers_option("Processes on this machine; by default one a GPU, without GPUs one.")
@click.option("--study", "studies", metavar="NAME", multiple=True, help="Only this; repeatable.")
@click.option(
    "--allow",
    metavar="PACKAGE",
    multiple=True,
    help="A package or module that studies may import their code from; repeatable.",
)
@click.option("--allow-files", is_flag=True, help="Run studies that are files, too.")
@click.option("--until-empty", is_flag=True, help="End when no study is left in the queue.")
def worker(
    store: str,
    devices: str | None,
    workers: int | None,
    studies: tuple[str, ...],
    allow: tuple[str, ...],
    allow_files: bool,
    until_empty: bool,
) -> None:
    """\b
        droptune worker --store postgresql://me@host/droptune --allow my_project

    Take queued studies in order and work on them until told to stop; as many workers as you like,
    on as many machines. A study names its code, and running it runs that code: a worker imports
    nothing that --allow does not name.

    SIGTERM or Ctrl-C ends the epoch, stores checkpoints, hands the trials back and exits with 0; a
    second one stops at once. While the database is away a worker waits for it.
    """
    from droptune.report.text import one_line
    from droptune.workers.local import worker_seats
    from droptune.workers.service import Rules, Service, check_rules

    rules = Rules(allow, allow_files, studies, until_empty)
    check_rules(rules)
    seats = worker_seats(devices or "auto", workers)
    Service(store, seats, rules, lambda text: click.echo(one_line(text), err=True)).run()


@main.command(short_help="Queued and running studies, and who works on them.")
@store_option
@json_option
def status(store: str, as_json: bool) -> None:
    """\b
        droptune status --store sqlite:///droptune.db

    The studies that wait or run, and the workers; those that died, for a day.

    \b
    --json prints
      studies  a list with, for each,
        name, state (queued, done, failed, withdrawn, or null if it was not submitted), message
        target, options, submitted_at (UTC), or null
        workers  how many live ones are on it
        trials   how many are complete, pruned, failed, running and waiting
        phase, done, total   search or confirm, and how many trials or runs of it have ended
        best     value so far
        per_hour   trials that ended in the last hour
        per_hour_ever   trials an hour of search since the study began
        seconds_left    until the end of the phase, as its workers expect; or null
      workers  a list with, for each,
        id, host, pid, device, study
        alive    its last sign of life is young
        seen     seconds since, by the database's clock
        doing    {"phase", "done", "total", "running", "epochs_per_second", ...} of its study; or
                 {"processes"}: how many it has at work; or null
    """
    from droptune.store.service import Service

    with Service(store) as service:
        row = service.status()
    if as_json:
        return print_json(row)
    from droptune.report import service as tables
    from droptune.report.tables import show

    show(*tables.status(row))
