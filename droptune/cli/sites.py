"""`droptune sites`."""

import click

from droptune.cli.group import json_option, main
from droptune.cli.output import load_study, print_rows, stdout_for_data


@main.command(short_help="The places of a model where dropout can act.")
@click.argument("target")
@json_option
def sites(target: str, as_json: bool) -> None:
    """\b
        droptune sites model.py

    The places of the study's model where dropout acts or could, in call order, and below them
    what no plan reaches, as fixed, with the reason. TARGET is as in `droptune optimize`.

    \b
    --json prints a list with, for each site,
      name   what a plan calls it
      path   the module it is reached by
      reach  module, output or input of that module, function (a call in its forward), inside
             (a place inside a layer); or fixed: it stays as it is, and depth and calls are null
      role   input, embedding, hidden, conv, recurrent, attention, residual or head
      layout, shape   the axes of the tensor, without the batch in the shape
      depth  place in call order
      kind, rate      the dropout found there, or null
      calls  calls in one forward
      kinds  the kinds of dropout that fit there
      remark   what is to be known of it, or null
      trains   of the model: fused, or serially and why
    """
    with stdout_for_data(as_json):
        study = load_study(target, {})
        found, remarks = study.sites(), study.remarks()
        rows = [place.described() for place in (*found, *study.fixed)]
        trains = study.trains() if found else "in no way that droptune can change"
    for remark in remarks:
        click.echo(remark, err=True)
    rows = [{**row, "trains": trains} for row in rows]
    print_rows(rows, as_json, "sites", "no place for dropout was found in this model")
    if rows and not as_json:
        click.echo(f"\ntrains {trains}")
