"""`droptune optimize`."""

import os
import shlex
from functools import partial
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
@click.option("--trial-time", metavar="TIME", help="Time of one trial, after which it has failed.")
@click.option(
    "--hang-time",
    metavar="TIME",
    help="Time for which training may wait and do nothing; then the process ends, with exit code "
    "75. 0: for ever.",
)
@click.option(
    "--gpu-memory",
    type=float,
    metavar="SHARE",
    help="Share of the GPU's memory to use, such as 0.5; by default most of what is free.",
)
@click.option("--seed", type=int, help="Seed of everything that is random.")
@click.option(
    "--objective",
    metavar="NAMES",
    callback=lambda context, option, value: (
        [n.strip() for n in value.split(",")] if value and "," in value else value
    ),
    help="The metric that decides: val_loss, accuracy, balanced_accuracy, f1, auroc, r2, rmse or "
    "calibration_error; or one that the study's own loop yields. Several, separated by commas, "
    "have a verdict each.",
)
@click.option("--sampler", metavar="NAME", help="tpe, gp, cmaes, qmc, random, grid or autodropout.")
@click.option("--strategy", metavar="NAME", help="search, or pbt: population-based training.")
@click.option(
    "--pruner", metavar="NAME", help="none, paired, median, hyperband or successive-halving."
)
@click.option(
    "--encoding", metavar="NAME", help="Parameters of the search: uniform, shape, site or auto."
)
@click.option(
    "--tune",
    metavar="NAMES",
    callback=lambda context, option, value: value and [n.strip() for n in value.split(",")],
    help="Tune lr, weight_decay or label_smoothing with dropout; separated by commas.",
)
@click.option(
    "--from",
    "warm_start",
    metavar="STUDY",
    multiple=True,
    callback=lambda context, option, names: (
        None if not names else [n for n in names if n != "none"]
    ),
    help="Try the best plans of STUDY, or URL#STUDY, first; none: not even of a similar study.",
)
@click.option("--slots", metavar="N", help="Trials that train side by side; auto measures.")
@click.option("--trainer", metavar="NAME", help="auto, fused or serial.")
@click.option("--device", metavar="NAME", help="auto, or a device of torch such as cpu or cuda:0.")
@click.option(
    "--patience",
    type=int,
    metavar="N",
    help="End the search when N more trials are expected to gain too little to show; 0: do not.",
)
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
    from droptune.hang import leave
    from droptune.progress import progress

    with stdout_for_data(as_json):
        study = load_study(target, options)
        shown = progress(quiet)
        result = study.optimize(progress=shown, on_hang=partial(leave, shown))
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
    others = [
        f"\n  droptune best {about} --objective {shlex.quote(visible(name))}"
        for name in study.objectives[1:]
    ]
    best = "".join([f"droptune best {about}", *others])
    return f"\nnext:\n  {best}\n  droptune export {about} -o plan.json"
