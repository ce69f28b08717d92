"""`droptune optimize`."""

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from droptune.cli.group import STORE, json_option, main
from droptune.cli.output import load_study, print_json, stdout_for_data

if TYPE_CHECKING:
    from droptune.study import Study


@main.command(short_help="Tune the study that a file defines.")
@click.argument("target")
@click.option("--trials", type=int, help="Trials in all, with earlier ones.")
@click.option("--time", metavar="TIME", help="Time to spend, such as 90s, 10m or 2h.")
@click.option("--seed", type=int, help="Seed of everything that is random.")
@click.option("--sampler", metavar="NAME", help="tpe, gp, cmaes, qmc, random, grid or autodropout.")
@click.option("--pruner", metavar="NAME", help="none, median, hyperband or successive-halving.")
@click.option(
    "--encoding", metavar="NAME", help="Parameters of the search: uniform, shape or site."
)
@click.option("--slots", metavar="N", help="Trials that train side by side; auto measures.")
@click.option("--trainer", metavar="NAME", help="auto, fused or serial.")
@click.option("--device", metavar="NAME", help="auto, or a device of torch such as cpu or cuda:0.")
@click.option(
    "--confirm-blocks",
    type=int,
    help="Fresh seeds for the verdict, at most; 2 more choose the finalist. 0: none.",
)
@click.option(
    "--recalibrate",
    is_flag=True,
    default=None,
    help="Take BatchNorm's statistics again without dropout before each validation.",
)
@click.option("--study", "name", metavar="NAME", help="Another name for the study.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option(
    "--store",
    metavar="URL",
    help="The database; by default the study's own, else DROPTUNE_STORE, else " + STORE + ".",
)
@json_option
def optimize(target: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """\b
        droptune optimize model.py --trials 64 --time 10m

    Search, confirm on fresh seeds, and print the verdict.

    TARGET is file.py[:name] or package.module[:name], by default the `study` it defines;
    options override what is written there. Run it again to go on after an interruption, or
    with more --trials to search on.

    --json prints the keys of `droptune best --json`.
    """
    from droptune.progress import progress

    with stdout_for_data(as_json):
        study = load_study(target, options)
        result = study.optimize(progress=progress(quiet))
    if result.finished_before and quiet:  # else the progress says so
        click.echo(f"nothing was left to do, study {study.name!r} is finished", err=True)
    if as_json:
        return print_json(result.to_json())
    from droptune.report import tables

    tables.show(tables.best(result.to_json(), str(result.verdict)))
    click.echo(_next(study))


def _next(study: "Study") -> str:
    """Return what to type next."""
    from droptune.report.text import visible
    from droptune.store import hide

    about = f"--study {shlex.quote(study.name)}"
    if study.url != (os.environ.get("DROPTUNE_STORE") or STORE):
        about += f" --store {shlex.quote(hide(study.url))}"
    about = visible(about)  # a name may hold anything
    return f"\nnext:\n  droptune best {about}\n  droptune export {about} -o plan.json"
