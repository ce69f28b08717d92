"""The options of a study, which `optimize` and `submit` share."""

from collections.abc import Callable
from typing import Any

import click

from droptune.cli.group import STORE

_STUDY = (
    click.option("--trials", type=int, help="Trials in all, with earlier ones."),
    click.option("--time", metavar="TIME", help="Time to spend, such as 90s, 10m or 2h."),
    click.option(
        "--trial-time", metavar="TIME", help="Time of one trial, after which it has failed."
    ),
    click.option(
        "--hang-time",
        metavar="TIME",
        help="Time for which training may wait and do nothing; then the process ends, with exit "
        "code 75. 0: for ever.",
    ),
    click.option(
        "--gpu-memory",
        type=float,
        metavar="SHARE",
        help="Share of the GPU's memory to use, such as 0.5; by default most of what is free.",
    ),
    click.option("--seed", type=int, help="Seed of everything that is random."),
    click.option(
        "--objective",
        metavar="NAMES",
        callback=lambda context, option, value: (
            [n.strip() for n in value.split(",")] if value and "," in value else value
        ),
        help="The metric that decides: val_loss, accuracy, balanced_accuracy, f1, auroc, r2, rmse "
        "or calibration_error; or one that the study's own loop yields. Several, separated by "
        "commas, have a verdict each.",
    ),
    click.option(
        "--sampler", metavar="NAME", help="tpe, gp, cmaes, qmc, random, grid or autodropout."
    ),
    click.option("--strategy", metavar="NAME", help="search, or pbt: population-based training."),
    click.option(
        "--pruner", metavar="NAME", help="none, paired, median, hyperband or successive-halving."
    ),
    click.option(
        "--encoding",
        metavar="NAME",
        help="Parameters of the search: uniform, shape, site or auto, from coarse to fine.",
    ),
    click.option(
        "--tune",
        metavar="NAMES",
        callback=lambda context, option, value: value and [n.strip() for n in value.split(",")],
        help="Tune lr, weight_decay or label_smoothing with dropout; separated by commas.",
    ),
    click.option(
        "--from",
        "warm_start",
        metavar="STUDY",
        multiple=True,
        callback=lambda context, option, names: (
            None if not names else [n for n in names if n != "none"]
        ),
        help="Try the best plans of STUDY, or URL#STUDY, first; none: not even of a similar study.",
    ),
    click.option("--slots", metavar="N", help="Trials that train side by side; auto measures."),
    click.option("--trainer", metavar="NAME", help="auto, fused or serial."),
    click.option(
        "--patience",
        type=int,
        metavar="N",
        help="End the search when N more trials are expected to gain too little to show; 0: never.",
    ),
    click.option(
        "--confirm-blocks",
        type=int,
        help="Fresh seeds for the verdict, at most; 2 more choose the finalist. 0: none.",
    ),
    click.option(
        "--recalibrate",
        is_flag=True,
        default=None,
        help="Take BatchNorm's statistics again without dropout before each validation.",
    ),
    click.option("--study", "name", metavar="NAME", help="Another name for the study."),
)

device_option = click.option(
    "--device", metavar="NAME", help="auto, or a device of torch such as cpu or cuda:0."
)
own_store_option = click.option(
    "--store",
    metavar="URL",
    help="The database; by default the study's own, else DROPTUNE_STORE, else " + STORE + ".",
)
devices_option = click.option(
    "--devices",
    metavar="LIST",
    help="auto, cpu, or GPUs by number such as 0,1,3: a process works at each.",
)


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that define a study or its budget."""
    for option in reversed(_STUDY):
        command = option(command)
    return command


def _workers(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    if value in (None, "auto"):
        return None
    if not value.isdecimal() or not int(value):
        raise click.BadParameter(f"{value!r} is neither auto nor a whole number from 1")
    return int(value)


def workers_option(text: str) -> Callable[..., Any]:
    """Return the option for how many processes there are."""
    return click.option("--workers", metavar="N", callback=_workers, help=text)
