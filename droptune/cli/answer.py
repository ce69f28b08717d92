"""`droptune best` and `droptune export`: the answer of a study."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from droptune.cli.group import (
    json_option,
    main,
    objective_option,
    store_option,
    study_option,
)
from droptune.cli.output import open_queries, print_json, print_rows
from droptune.errors import StudyError


@main.command(short_help="The answer of a study: verdict, plan and figures.")
@study_option
@objective_option
@store_option
@json_option
def best(name: str, objective: str | None, store: str, as_json: bool) -> None:
    """\b
        droptune best --study mine

    The answer of a study: the verdict, the plan to use and the figures behind it. While it is
    confirmed, that is what the seeds so far say, and before that the best trial. Of several
    objectives each has its answer.

    \b
    --json prints
      study       name
      verdict     helps, no benefit, hurts or undecided
      plan        {"version", "sites": {site: {"kind", "rate", "schedule"}}}, or null; a
                  rate that moves has its "fraction" of training or its "steps", too, a kind
                  the "settings" that differ from its defaults, a plan that adds to the loss
                  its "term", one that was tuned with training its "training": {"lr", ...}
      objective   name of the metric that decides
      best        {"arm", "value", "trial", "search_value"}: the plan's name, its mean over
                  the fresh seeds, its trial and the value it had there; with several
                  objectives "others", too, its means in them; before a verdict
                  {"trial", "value"}; or null
      control     the same of no dropout, plain or tuned, whichever decides; or null
      difference  {"mean", "low", "high", "p_value", "blocks", "level", "relative", "search"}
                  from no dropout in the objective's unit: of the chosen finalist, or of the
                  model as given where that hurts; "relative" is a part of the value of no
                  dropout, "search" the difference that the search saw, luck and all; or null
      test        {metric: {"best", "control", "difference"}} on the test split, or null
      fit         {"train_loss", "val_loss", "gap", "low", "high", "reading"} of no dropout in
                  eval mode, with the 95 % interval of the gap; the reading is overfits,
                  underfits, fits, no gap or unclear; or null
      others      {objective: its verdict in a line}, of the other objectives
    """
    with open_queries(store) as queries:
        row, verdict = queries.best(name, objective), queries.verdict(name, objective)
    if as_json:
        return print_json(row)
    from droptune.report import tables

    tables.show(tables.best(row, verdict["text"] if verdict else None))


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
@objective_option
@store_option
def export(name: str, output: Path, form: str | None, objective: str | None, store: str) -> None:
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
    with open_queries(store) as queries:
        answer, sites = queries.best(name, objective), queries.study(name)["sites"]
    if answer["plan"] is None:
        raise StudyError(
            f"study {name!r} has no plan yet, no trial has finished; run `droptune optimize`"
        )
    if answer["verdict"] == "undecided":
        click.echo("note: the verdict is undecided, this plan is not confirmed", err=True)
    form = form or {".py": "python", ".txt": "table"}.get(output.suffix, "json")
    if str(output) == "-" and form == "table":
        return print_rows(answer["plan"], False, "plan")
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
    from droptune import __version__
    from droptune.report import snippet, tables, text

    if form == "table":
        return tables.plain(tables.plan(answer["plan"])).rstrip("\n")
    if form == "json":
        return text.json_text(answer["plan"])
    about = f"Dropout of study {answer['study']!r} ({answer['verdict']}), droptune {__version__}"
    return snippet.python(answer["plan"], sites, about).rstrip("\n")
