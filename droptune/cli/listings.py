"""`droptune studies`, `trials` and `show`: what a database holds."""

import click

from droptune.cli.group import json_option, main, store_option, study_option
from droptune.cli.output import open_queries, print_rows


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
      objectives  {name: direction}; of several the first is objective and direction above,
               and what best and verdict are about
      trials   how many are complete, pruned, failed, running and waiting
      best     best value of a complete trial, or null
      verdict  helps, no benefit, hurts, undecided, or null
    """
    with open_queries(store) as queries:
        rows = queries.studies()
    print_rows(rows, as_json, "studies", "no study is stored yet; run `droptune optimize`")


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
      values   {objective: value}, or null; value is that of the first
      state    complete, pruned, failed, running or waiting
      seconds  time it trained
      plan     as in `droptune best`
      name     of a plan that was not sampled, such as "no dropout", or null
    """
    with open_queries(store) as queries:
        rows = queries.trials(name, limit)
    print_rows(rows, as_json, "trials", "no trial is stored yet; run `droptune optimize`")


@main.command(short_help="All about a study, or about one of its trials.")
@study_option
@click.option("--trial", "number", type=click.IntRange(min=0), metavar="N", help="One trial.")
@click.option("--importance", is_flag=True, help="Which parameters and sites matter.")
@store_option
@json_option
def show(name: str, number: int | None, importance: bool, store: str, as_json: bool) -> None:
    """\b
        droptune show --study mine --trial 3

    All about a study, or about one of its trials.

    \b
    --json prints the keys of `droptune studies` and
      definition, environment, sites
      verdict  all columns of the latest verdict, or null
      verdicts {objective: the same of that objective}
    or, with --trial, the keys of `droptune trials` and
      params   parameters of the search space
      curve    list of {"epoch", "train_loss", "metrics"}
      message  why it failed, or null
      seed, clock (the block's epoch at which it entered), trainer, device
    or, with --importance, of the first objective,
      parameters  {name: share}, which add up to 1 (PED-ANOVA), the most important first
      places   {site, role or "all sites": share}, the same summed
      trials   complete trials behind it
      remark   why there are no shares, or null
    """
    if importance and number is not None:
        raise click.UsageError("--importance is of a study; leave out --trial")
    if importance:
        return _importance(name, store, as_json)
    with open_queries(store) as queries:
        row = queries.study(name) if number is None else queries.trial(name, number)
    print_rows(row, as_json, "study" if number is None else "trial")


def _importance(name: str, store: str, as_json: bool) -> None:
    """Print the importance of a study's parameters; all that loads Optuna here."""
    from droptune.importance import importance_of
    from droptune.store.drawn import Drawn

    with Drawn(store) as queries:
        row = importance_of(queries, name).to_json()
    print_rows(row, as_json, "importance")
