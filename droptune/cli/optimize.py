"""`droptune optimize`."""

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from droptune.cli.group import STORE, json_option, main
from droptune.cli.options import (
    device_option,
    devices_option,
    own_store_option,
    study_options,
    workers_option,
)
from droptune.cli.output import load_study, print_json, settings, stdout_for_data

if TYPE_CHECKING:
    from droptune.study import Study


@main.command(short_help="Tune the study that a file defines.")
@click.argument("target")
@study_options
@device_option
@devices_option
@workers_option("Processes that share the study; auto: as many as pay, which its start shows.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where processes run: on this machine, or on a Ray cluster.",
)
@click.option("--address", metavar="HOST:PORT", help="Of the Ray cluster; auto: the one here.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@own_store_option
@json_option
def optimize(
    target: str,
    devices: str | None,
    workers: int | None,
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """\b
        droptune optimize model.py --trials 64 --time 10m

    Search, confirm on fresh seeds, and print the verdict.

    TARGET is file.py[:name] or package.module[:name], by default the `study` it defines;
    options override what is written there. Run it again to go on after an interruption, or
    with more --trials to search on.

    --json prints the keys of `droptune best --json`.
    """
    if engine == "ray" and devices is not None:
        raise click.UsageError("--devices is of this machine; Ray places processes itself")
    if engine == "local" and address is not None:
        raise click.UsageError("--address is of a Ray cluster; give --engine ray, too")
    from droptune.progress import progress
    from droptune.workers.local import WorkerError, run_study

    with stdout_for_data(as_json):
        study, shown, given = load_study(target, options), progress(quiet), settings(options)
        try:
            if engine == "ray":
                from droptune.workers.ray import run_on_ray

                answer = run_on_ray(study.url, target, given, shown, address, workers)
            else:
                answer = run_study(study, target, given, shown, devices or "auto", workers)
        except WorkerError as error:
            click.echo(error.traceback, err=True, nl=False)
            raise
    if answer.finished_before and quiet:  # else the progress says so
        click.echo(f"nothing was left to do, study {study.name!r} is finished", err=True)
    if as_json:
        return print_json(answer.best)
    from droptune.report import tables

    tables.show(tables.best(answer.best, answer.verdict))
    click.echo(_next(study))


def _next(study: "Study") -> str:
    """Return what to type next."""
    from droptune.report.text import visible
    from droptune.store import hide

    about = f"--study {shlex.quote(study.name)}"
    if study.url != (os.environ.get("DROPTUNE_STORE") or STORE):
        about += f" --store {shlex.quote(hide(study.url))}"
    about = visible(about)  # a name may hold anything
    others = [
        f"\n  droptune best {about} --objective {shlex.quote(visible(name))}"
        for name in study.objectives[1:]
    ]
    best = "".join([f"droptune best {about}", *others])
    return f"\nnext:\n  {best}\n  droptune export {about} -o plan.json"
