"""`droptune report` and `droptune dashboard`: a study in the browser."""

from pathlib import Path

import click

from droptune.cli.group import main, store_option, study_option


@main.command(short_help="Write a study as one HTML page, with figures.")
@study_option
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.",
)
@store_option
def report(name: str, output: Path, store: str) -> None:
    """\b
        droptune report --study mine -o report.html

    Write a study as one HTML page that opens without a network: the verdict, the plan, paired
    differences, training curves, rates over depth, the search, importance and all runs. Needs
    the extra: pip install 'droptune[report]'.
    """
    from droptune.importance import importance_of
    from droptune.report.facts import gather
    from droptune.report.page import page
    from droptune.store.drawn import Drawn

    with Drawn(store) as queries:
        facts = gather(queries, name)
        text = page(facts, importance_of(queries, name).to_json())
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {str(output)!r}: {error.strerror}") from error
    click.echo(f"wrote {output}", err=True)


@main.command(short_help="Optuna's dashboard on a database, in the browser.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Where it listens, on this machine alone; 0: a free one.",
)
@store_option
def dashboard(store: str, port: int) -> None:
    """\b
        droptune dashboard --port 8080

    Serve Optuna's dashboard on the trials of a database until Ctrl-C. Needs the extra:
    pip install 'droptune[dashboard]'.
    """
    from droptune import dashboard as server
    from droptune.store import Queries, hide

    Queries(store).close()  # a database that is not there is not to be made
    with server.dashboard(store, port) as listening:
        address = f"http://{server.HOST}:{listening.server_port}/"
        click.echo(f"{address} shows {hide(store)}; Ctrl-C ends it", err=True)
        listening.serve_forever()
