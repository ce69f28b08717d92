"""The command line: parse, call the library, print.

Everything heavy is imported inside the commands, so that help and the listings start at once.
What a command prints is data and goes to stdout; progress and remarks go to stderr. An error
is one line and exit code 1, wrong usage 2, Ctrl-C 130.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from droptune import __version__
from droptune.errors import DroptuneError, StudyError

if TYPE_CHECKING:
    from droptune.store import Queries
    from droptune.study import Study

STORE = "sqlite:///droptune.db"  # where no other is given
TRACEBACK = "DROPTUNE_TRACEBACK"  # the environment variable that asks for tracebacks


class Commands(click.Group):
    """A group in which errors come out as one line, behind the traceback of a user's model."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = "what has finished is kept; the same command goes on from there"
            said = f"Interrupted: {kept}" if ctx.invoked_subcommand == "optimize" else "Interrupted"
            click.echo(said, err=True)
            ctx.exit(130)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            from droptune.target import traceback_of

            shown = traceback_of(error, whole=bool(os.environ.get(TRACEBACK)))
            click.echo(shown, err=True, nl=False)
            raise click.ClickException(_explained(error)) from error


def _explained(error: Exception) -> str:
    """Return an error as one line; one that is not ours with its place in the user's code."""
    from droptune.report.text import one_line

    if isinstance(error, DroptuneError):
        return one_line(error)
    from droptune.target import user_line

    place = user_line(error)
    said = f"{type(error).__name__}: {one_line(error)}" + (f", at {place}" if place else "")
    return f"{said}; set {TRACEBACK}=1 to see the traceback"


# The options that several commands share.
store_option = click.option(
    "--store",
    metavar="URL",
    envvar="DROPTUNE_STORE",
    default=STORE,
    show_default=True,
    show_envvar=True,
    help="The database.",
)
study_option = click.option(
    "--study", "name", metavar="NAME", required=True, help="The study; `studies` lists them."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="droptune")
def main() -> None:
    """\b
        droptune optimize model.py --trials 64
        droptune best --study mine

    Does dropout help this PyTorch model, and if so which kind, where and how much?
    """
    with contextlib.suppress(AttributeError, ValueError):  # not every stream can
        sys.stdout.reconfigure(errors="backslashreplace")


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
    help="Fresh seeds for the verdict; 0: none, the verdict stays undecided.",
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

    with _stdout_for_data(as_json):
        study = _loaded(target, options)
        result = study.optimize(progress=progress(quiet))
    if result.finished_before and quiet:  # else the progress says so
        click.echo(f"nothing was left to do, study {study.name!r} is finished", err=True)
    if as_json:
        return _print_json(result.to_json())
    from droptune.report import tables

    tables.show(tables.best(result.to_json(), str(result.verdict)))
    click.echo(_next(study))


@main.command(short_help="The answer of a study: verdict, plan and figures.")
@study_option
@store_option
@json_option
def best(name: str, store: str, as_json: bool) -> None:
    """\b
        droptune best --study mine

    The answer of a study: the verdict, the plan to use and the figures behind it. Before
    there is a verdict it is the best trial so far.

    \b
    --json prints
      study       name
      verdict     helps, no benefit, hurts or undecided
      plan        {"version", "sites": {site: {"kind", "rate", "schedule"}}}, or null; a
                  rate that moves has its "fraction" of training, too, a kind the "settings"
                  that differ from its defaults, and a plan that adds to the loss its "term"
      objective   name of the metric that decides
      best        {"arm", "value", "trial", "search_value"}: the plan's name, its mean over
                  the fresh seeds, its trial and the value it had there; before a verdict
                  {"trial", "value"}; or null
      control     the same of no dropout, or null
      difference  {"mean", "low", "high", "p_value", "blocks", "level"} from no dropout in
                  the objective's unit: of the plan where it helps, of the model as given
                  where that hurts, else of the nearest finalist; or null
      test        {metric: {"best", "control", "difference"}} on the test split, or null
    """
    with _queries(store) as queries:
        row, verdict = queries.best(name), queries.verdict(name)
    if as_json:
        return _print_json(row)
    from droptune.report import tables

    tables.show(tables.best(row, verdict["text"] if verdict else None))


@main.command(short_help="The places of a model where dropout can act.")
@click.argument("target")
@json_option
def sites(target: str, as_json: bool) -> None:
    """\b
        droptune sites model.py

    The places of the study's model where dropout acts or could, in call order. TARGET is
    as in `droptune optimize`.

    \b
    --json prints a list with, for each site,
      name   what a plan calls it
      path   the module it is reached by
      reach  module, output or input of that module, function (a call in its forward)
      role   input, embedding, hidden, conv, recurrent, attention, residual or head
      layout, shape   the axes of the tensor, without the batch in the shape
      depth  place in call order
      kind, rate      the dropout found there, or null
      calls  calls in one forward
      kinds  the kinds of dropout that fit there
      remark   what is to be known of it, or null
      trains   of the model: fused, or serially and why
    """
    with _stdout_for_data(as_json):
        study = _loaded(target, {})
        rows, remarks = [site.described() for site in study.sites()], study.remarks()
        trains = study.trains() if rows else ""
    for remark in remarks:
        click.echo(remark, err=True)
    rows = [{**row, "trains": trains} for row in rows]
    _print(rows, as_json, "sites", "no place for dropout was found in this model")
    if rows and not as_json:
        click.echo(f"\ntrains {trains}")


@main.command(short_help="The studies of a database.")
@store_option
@json_option
def studies(store: str, as_json: bool) -> None:
    """\b
        droptune studies --store sqlite:///droptune.db

    The studies of a database, oldest first.

    \b
    --json prints a list with, for each study,
      name, objective, direction, created_at (UTC)
      trials   how many are complete, pruned, failed, running and waiting
      best     best value of a complete trial, or null
      verdict  helps, no benefit, hurts, undecided, or null
    """
    with _queries(store) as queries:
        rows = queries.studies()
    _print(rows, as_json, "studies", "no study is stored yet; run `droptune optimize`")


@main.command(short_help="The trials of a study.")
@study_option
@click.option("--limit", type=click.IntRange(min=1), help="Only the latest N.", metavar="N")
@store_option
@json_option
def trials(name: str, limit: int | None, store: str, as_json: bool) -> None:
    """\b
        droptune trials --study mine --limit 20

    The trials of a study by number.

    \b
    --json prints a list with, for each trial,
      number, value (null unless complete), epochs
      state    complete, pruned, failed, running or waiting
      seconds  time it trained
      plan     as in `droptune best`
      name     of a plan that was not sampled, such as "no dropout", or null
    """
    with _queries(store) as queries:
        rows = queries.trials(name, limit)
    _print(rows, as_json, "trials", "no trial is stored yet; run `droptune optimize`")


@main.command(short_help="All about a study, or about one of its trials.")
@study_option
@click.option("--trial", "number", type=click.IntRange(min=0), metavar="N", help="One trial.")
@store_option
@json_option
def show(name: str, number: int | None, store: str, as_json: bool) -> None:
    """\b
        droptune show --study mine --trial 3

    All about a study, or about one of its trials.

    \b
    --json prints the keys of `droptune studies` and
      definition, environment, sites
      verdict  all columns of the latest verdict, or null
    or, with --trial, the keys of `droptune trials` and
      params   parameters of the search space
      curve    list of {"epoch", "train_loss", "metrics"}
      message  why it failed, or null
      seed, clock (the block's epoch at which it entered), trainer, device
    """
    with _queries(store) as queries:
        row = queries.study(name) if number is None else queries.trial(name, number)
    _print(row, as_json, "study" if number is None else "trial")


@main.command(short_help="Write the best plan of a study: JSON, Python or a table.")
@study_option
@click.option(
    "-o",
    "--output",
    default="-",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="The file to write; stdout by default.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "python", "table"]),
    help="python for a file that ends in .py, table for .txt, else json by default.",
)
@store_option
def export(name: str, output: Path, form: str | None, store: str) -> None:
    """\b
        droptune export --study mine -o plan.json
        droptune export --study mine -o dropout.py

    Write the plan of `droptune best`.

    \b
    json    what `droptune.Plan.load` reads
    python  set_dropout(model): plain torch where the plan only changes rates of dropout that
            the model has, else droptune.apply with the plan and the reasons
    table   for people
    """
    with _queries(store) as queries:
        answer, sites = queries.best(name), queries.study(name)["sites"]
    if answer["plan"] is None:
        raise StudyError(
            f"study {name!r} has no plan yet, no trial has finished; run `droptune optimize`"
        )
    if answer["verdict"] == "undecided":
        click.echo("note: the verdict is undecided, this plan is not confirmed", err=True)
    form = form or {".py": "python", ".txt": "table"}.get(output.suffix, "json")
    if str(output) == "-" and form == "table":
        return _print(answer["plan"], False, "plan")
    text = _plan_text(answer, sites, form)
    if str(output) == "-":
        return click.echo(text)
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {str(output)!r}: {error.strerror}") from error
    click.echo(f"wrote {output}", err=True)


def _plan_text(answer: Mapping[str, Any], sites: list[Mapping[str, Any]], form: str) -> str:
    """Return the plan of an answer in one of the forms of `export`."""
    from droptune.report import snippet, tables, text

    if form == "table":
        return tables.plain(tables.plan(answer["plan"])).rstrip("\n")
    if form == "json":
        return text.json_text(answer["plan"])
    about = f"Dropout of study {answer['study']!r} ({answer['verdict']}), droptune {__version__}"
    return snippet.python(answer["plan"], sites, about).rstrip("\n")


@main.group(short_help="Upgrade or check a database.")
def db() -> None:
    """\b
        droptune db check

    Upgrade or check a database.
    """


@db.command(short_help="Bring a database to the schema of this droptune.")
@store_option
def upgrade(store: str) -> None:
    """\b
        droptune db upgrade --store sqlite:///droptune.db

    Bring a database to the schema of this droptune; a SQLite file is copied aside first.
    """
    from droptune.store.migrate import upgrade_url

    click.echo(upgrade_url(store))


@db.command(short_help="Look a database over without changing it.")
@store_option
def check(store: str) -> None:
    """\b
        droptune db check --store sqlite:///droptune.db

    Look a database over without changing it; exit code 1 when something is wrong.
    """
    from droptune.store.migrate import check as check_url

    report = check_url(store)
    click.echo(report)
    if not report.ok:
        sys.exit(1)


def _queries(store: str) -> "Queries":
    from droptune.store import Queries

    return Queries(store)


def _loaded(target: str, options: Mapping[str, Any]) -> "Study":
    """Return the study of a target with the options that were given."""
    from droptune.target import load_target

    changes = {key: value for key, value in options.items() if value is not None}
    with contextlib.suppress(KeyError, ValueError):
        changes["slots"] = int(changes["slots"])
    return load_target(target).using(**changes)


def _stdout_for_data(as_json: bool) -> contextlib.AbstractContextManager:
    """Send what the user's own code prints to stderr, where stdout is for JSON alone."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _next(study: "Study") -> str:
    """Return what to type next."""
    from droptune.report.text import visible
    from droptune.store import hide

    about = f"--study {shlex.quote(study.name)}"
    if study.url != (os.environ.get("DROPTUNE_STORE") or STORE):
        about += f" --store {shlex.quote(hide(study.url))}"
    about = visible(about)  # a name may hold anything
    return f"\nnext:\n  droptune best {about}\n  droptune export {about} -o plan.json"


def _print(rows: Any, as_json: bool, table: str, empty: str | None = None) -> None:
    """Print rows as JSON or as the table of that name; `empty` is said when there is none."""
    if as_json:
        return _print_json(rows)
    if not rows:
        return click.echo(empty, err=True)
    from droptune.report import tables

    tables.show(getattr(tables, table)(rows))


def _print_json(value: Any) -> None:
    from droptune.report.text import json_text

    click.echo(json_text(value))
